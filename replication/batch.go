package replication

import "time"

// Mark ends one source transaction within a batch.
type Mark struct {
	// End is the number of changes of the batch up to and including this transaction's.
	End int
	// Position is the place after the transaction.
	Position Position
	// Commit is the commit time on the source, by the source's clock.
	Commit time.Time
	// Token is the heartbeat or fence token that the transaction wrote, empty for the application's own.
	Token string
}

// Batch is a run of whole transactions, or one piece of a transaction too large for memory. The applier commits rows and position
// together; pieces share one target transaction, which only the piece with Last set commits.
type Batch struct {
	Changes []Change
	// Tables are those that this batch and the pieces after it may touch, as far as their descriptions are new: they can be looked up together,
	// before the changes are there. May be empty.
	Tables []*Relation
	// Marks ends the transactions of the batch, in order; empty on a piece that isn't Last, and on a batch that only moves the position.
	Marks []Mark
	// Position is the place after this batch; meaningful only where Last is set.
	Position Position
	// First and Last are both set on a batch of whole transactions. On pieces: First on the first, Last on the last, neither between.
	First, Last bool
	// Net says that the changes are net effects: at most one a row but for a delete before an insert of the same key, in no order that the
	// source ever had. Where a constraint refuses updates as a set, the rows are replaced instead of updated one by one.
	Net bool
	// Bytes is the size of the values.
	Bytes int
	// Received is when the first change or mark arrived, by our own clock.
	Received time.Time

	memory
}

// NewBatch returns an empty batch of whole transactions.
func NewBatch() *Batch {
	b := batches.Get().(*Batch)
	b.First, b.Last = true, true
	return b
}

// PositionOnly tells whether the batch carries no transaction and only moves the position.
func (b *Batch) PositionOnly() bool {
	return len(b.Changes) == 0 && len(b.Marks) == 0 && b.First && b.Last
}

// Whole tells whether the batch consists of whole transactions, so that it may be applied alone.
func (b *Batch) Whole() bool { return b.First && b.Last }

// Token returns the last token in the batch, empty if there is none.
func (b *Batch) Token() string {
	for i := len(b.Marks) - 1; i >= 0; i-- {
		if b.Marks[i].Token != "" {
			return b.Marks[i].Token
		}
	}
	return ""
}

// Cut splits a batch of whole transactions before the first transaction for which stop answers true. It returns the batch
// itself and nil where no transaction stops it, and nil and the batch where the first one does. Both parts share memory,
// which is then left to the garbage collector.
func (b *Batch) Cut(stop func(Mark) bool) (head, tail *Batch) {
	for i, m := range b.Marks {
		if !stop(m) {
			continue
		}
		if i == 0 {
			return nil, b
		}
		at := b.Marks[i-1].End
		b.shared = true
		h, t := *b, *b
		h.Changes, h.Marks, h.Position = b.Changes[:at:at], b.Marks[:i:i], b.Marks[i-1].Position
		t.Changes = b.Changes[at:]
		t.Marks = make([]Mark, len(b.Marks)-i)
		for j, m := range b.Marks[i:] {
			m.End -= at
			t.Marks[j] = m
		}
		return &h, &t
	}
	return b, nil
}
