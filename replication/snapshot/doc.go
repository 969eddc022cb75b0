// Package snapshot makes the first copy of tables: raw COPY from one server piped into COPY on the other, nothing decoded.
//
// Every table is copied under a snapshot of its own, taken after an ACCESS SHARE lock (so that no TRUNCATE or rewriting ALTER TABLE, which
// aren't MVCC-safe, can come between), and after every transaction that was open when the capture was put in place has ended. The snapshot
// and the write-ahead log position read after it are the table's Seam: the stream adds exactly what the copy did not see. No
// snapshot outlives its table's copy.
//
// A table that is larger than a worker's share is copied in parts, ranges of its pages, by all workers that have nothing else to do: its leader
// exports the snapshot. What takes longest from its first row to its last index begins first, and the keys and indexes of a table that is
// done are built while others are copied, so that nobody is idle at the end.
//
// A copy and the note that it is done are one transaction on the target; of a table in parts, each part is a transaction that only the
// leader can commit, and the note comes after the last of them. After a crash only unfinished tables are copied again, from their
// emptying on.
//
// How to add a format: decide in format.go when both sides agree on it.
package snapshot
