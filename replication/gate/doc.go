// Package gate shuts a database to the application's writes within a millisecond, without queueing anything behind a lock, and opens
// it again as fast.
//
// A BEFORE … FOR EACH STATEMENT trigger named replicator_gate stands on every table, partition leaf, partitioned ancestor and
// inheritance parent; all of them call one function, replicator.gate(). Installing is the slow, calm part and happens long
// before. Arming, renewing and disarming replace only the *function* (CREATE OR REPLACE takes no lock on any table), whose body
// carries the deadline and the token's hash as literals: a session under an old snapshot runs the current body, since catalogs are
// never read under the transaction's snapshot.
//
// Authority: the function's body in pg_proc is the only state. A fresh process reads it with State; nothing is kept in memory.
//
// States: absent → disarmed → armed until a deadline (Arm, Renew) → permanent (Seal; Arm with ttl 0) → disarmed. An armed gate whose
// deadline has passed lets every statement through by itself. Permanent never falls back to a deadline: Disarm comes between, on
// purpose. Renew and Seal act only on a freeze that still stands under the caller's token, so that a process which lost the lead
// can't freeze an application that was thawed.
//
// Why the barrier is exact. A statement locks its table in ROW EXCLUSIVE mode (TRUNCATE: ACCESS EXCLUSIVE), then processes pending
// catalog invalidations, then fires statement triggers. So a transaction that is not among the holders in pg_locks after the arming
// transaction has committed takes its lock later and runs the armed body. Barrier waits for the others to end. A lock that
// a transaction already holds is the only way to skip the invalidations, and holders are waited for.
//
// What a gate doesn't stop: DDL, tables created after Install, sequences, large objects, sessions with session_replication_role =
// replica (our own apply, but also a subscription of the application's own), and superusers who mean it.
//
// How to gate another kind of relation: add its relkind to gatedKinds and to the list in State's query, say in the comment there
// which statements name it, and add a writer for it to writers_test.go.
package gate
