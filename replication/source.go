package replication

import "context"

// Source is where the changes of one side come from: a logical slot or a trigger change log.
//
// One Stream runs at a time. Everything a Source delivers lies after the start position, each transaction exactly once and in commit
// order; what lies before an acknowledged position may be forgotten by the server.
type Source interface {
	// Stream sends batches to out until ctx ends or an error occurs; it returns only when no goroutine of its own is left. While nobody
	// receives, batches grow to their bounds and then the server waits; memory stays bounded. Starting again after any error, from
	// the position that the destination holds, loses and repeats nothing.
	Stream(ctx context.Context, start Position, out chan<- *Batch) error
	// Acknowledge says that everything up to p is durable on the destination. It doesn't block and may be called at any time.
	Acknowledge(p Position)
	// Reached tells whether p lies at or after q. Both must be positions of this source.
	Reached(p, q Position) (bool, error)
}

// Seam is the point at which a table's copy and the stream meet: the snapshot the copy saw, and the write-ahead log insert position
// read after that snapshot was taken. A transaction that commits at or above LSN is not in the copy; below it, the snapshot decides.
type Seam struct {
	Snapshot Snapshot
	LSN      uint64
	// Witness is a row of ours that was committed on the source behind the snapshot; empty if none was. A source without it has lost commits that the
	// copy has seen, and the seam means nothing.
	Witness string
}

// Needs tells whether the stream must apply a transaction's changes to the table: whether the copy did not see it.
func (s Seam) Needs(xid uint32, commit uint64) bool {
	return commit >= s.LSN || !s.Snapshot.Sees(s.Snapshot.Widen(xid))
}
