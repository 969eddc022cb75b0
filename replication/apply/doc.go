// Package apply carries batches of changes into the destination.
//
// A batch of whole transactions becomes one destination transaction; the pieces of a larger one share one. The position moves in the same
// transaction, fenced by the epoch, so that after any crash rows and position agree and nothing is applied twice.
//
// Within a batch the changes of a table are compacted to their net effect by key and carried out as sets: deletes, updates, inserts, each
// one statement over unnested arrays, all sent in one round trip. A truncation, a change of the table's description and a
// change of a key are barriers. Every statement must hit exactly the rows expected. If a constraint refuses the set form, or a count is
// off, the batch is rolled back and carried out change by change in the original order: the fast path never changes the outcome, and
// the slow one names the row that is wrong.
//
// Data is committed with synchronous_commit off; Apply returns the write-ahead log position of the commit, and the caller acknowledges
// to the source once that has been flushed.
//
// How to add a kind of table: choose its statements in plan.go, its compaction in compact.go, and give it a case in the tests that
// compare against change-by-change application.
package apply
