// Package shop is a sample application, a small online shop on one Postgres and one Redis, as real as a migration's test needs it:
// its schema has the usual features of such applications (enum, domain, arrays, jsonb, generated columns, full-text search,
// partitions, triggers, a materialized view), its writers run multi-table transactions and hot rows, its Redis holds sessions,
// counters, queues, locks and streams with expiry.
//
// Load creates and fills it. Writers writes to it at a steady rate and follows a switch from one side to the other as a good
// application does: it repoints when told, retries what a shut gate or a broken connection refused under the same id for a
// bounded time, and notes each write in a ledger.Ledger. Switch receives replicator's signed webhook. When the writers rest,
// Audit proves from the ledger that each acknowledged write exists exactly once, Invariants checks the balances that hold only
// at transaction boundaries, and Compare compares both sides' full contents without any of replicator's code.
//
// How to add a kind of write: write its transaction beside the others in orders.go (every transaction ends in sign, which writes
// the ledger's rows), give it a weight in the table of transactions, and if it moves a balance, add the balance to Invariants.
package shop
