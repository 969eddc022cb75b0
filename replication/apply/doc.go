// Package apply carries batches of changes into the destination.
//
// A batch of whole transactions becomes one destination transaction; the pieces of a larger one share one. The position moves in the same
// transaction, fenced by the epoch, so that after any crash rows and position agree and nothing is applied twice.
//
// Within a batch the changes of a table are compacted to their net effect by key and carried out as sets: deletes and updates over unnested
// arrays, in the order of their keys, inserts by COPY. A truncation, a change of the table's description and a change of a key are barriers.
// Every statement must hit exactly the rows expected, and fails by itself where it doesn't; so a batch goes in one round trip with its
// commit, and the next one is compiled and sent while it executes. If a constraint refuses the set form, or a count is off, what is under way
// is undone and carried out change by change in the original order: the fast path never changes the outcome, and the slow one names the
// row that is wrong. Where a statement can't check itself (a change of a key, a table without one), the commit waits for the answer.
//
// A session that was cut off may leave a batch with its commit on the way. The position is therefore fenced by the session too: opening another
// one waits for a commit that has begun, and whatever comes after it fails.
//
// Data is committed with synchronous_commit off; the caller is told the write-ahead log position of each commit, and acknowledges to the source
// once that has been flushed.
//
// How to add a kind of table: choose its statements in plan.go, its compaction in compact.go, and give it a case in the tests that
// compare against change-by-change application.
package apply
