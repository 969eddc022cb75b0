// Package trigger captures the changes of a Postgres database by triggers and a change log, where there is no logical replication to be
// had: all it needs is to own the tables.
//
// Each table has a log of the keys that were written, before and after, with the transaction's id, kept in two log tables of which one is
// written to; a row trigger, a truncation trigger (both ENABLE ALWAYS) and a function of its own. The log says only *which* rows may
// have changed. What they are now is read from the table itself.
//
// A Source reads by windows, as PgQ does. A window is one REPEATABLE READ transaction with snapshot S: it finds what S sees of the log and the
// snapshot before, P, did not, joins it to the current rows in S, and hands over the net change as one batch, which takes the destination
// from exactly what P saw to exactly what S sees. A large window goes out in pieces that become visible together, each as soon as somebody
// waits for it. Nothing depends on the order in which transactions took ids or sequence numbers, committed, or fired triggers: whether a
// key existed in P follows from whether it exists in S and how often it was inserted and deleted in between. So updates and deletes stay as strict as those of logical capture, each must hit its row.
//
// A position is P, with what it takes to notice that the server is no longer the one that P belongs to ("commits-lost"): behind each window
// a commit of our own is counted and flushed, in a row that only this session counts in, and a server that counts less, or lacks the row, has
// lost something. Behind each copy's snapshot such a row is committed too, so that a copy which has seen what was lost is known for void.
//
// A log has one owner (owner.go): who empties it must be the only one that reads it.
//
// Not protected by MVCC, and therefore watched in every window: TRUNCATE and rewriting ALTER TABLE (the window's tables are locked ACCESS
// SHARE, and read again under a new snapshot where the file in the catalog isn't the current one); triggers that were disabled. Rows that ALTER
// TABLE computes anew fire no trigger: finding them is left to the pair (schema.Storage).
//
// Small tables that are updated much are not logged by row: their updates are found by reading them whole (scan.go, ADR 13).
//
// A log table that has grown is left for the other one by replacing the function, and truncated once nobody who could have written to it
// is left and the destination has all of it. No VACUUM is needed, writers never wait, and an old transaction only holds back the tables
// that it wrote to itself.
//
// A key's column that is renamed, dropped or given another type makes the function fail, and with it the application's write; so does a column of a
// table without key that is renamed or dropped. Lost finds such tables, and Silence, which the pair calls in every phase, ends that within some ten
// seconds: the function then does nothing, all streams stop before they hand over a window that sees this, and Install makes the log anew. Uncaptured finds
// these tables and others whose copies are void: those where nothing keeps the key unique any more (two rows of one key would both be taken for new), and
// those without key that have other columns than their log. Everything else that may be altered is either harmless or stops the stream with a
// remedy. (What PostgreSQL 15 offers instead was tried: a WHEN clause or UPDATE OF that names the key makes DROP COLUMN and ALTER TYPE fail, renames pass
// it all the same; an exception block costs a subtransaction for every row.)
//
// A log that outgrows what the origin can bear is given up (relieve.go) without waiting for a table; what is left of tables that are no longer captured,
// or no longer there, is removed beside the stream (retire.go). No table of the application is measured or locked but those that have changes or are scanned.
//
// How to add a kind of table: decide in install.go (describe, refused) what its log holds, write the function's body in function.go, the
// statement that gives its net change in table.go, and add it to the schema of the concurrency test.
package trigger
