package pair

import (
	"context"
	"fmt"

	"replicator/replication"
)

// hold asks the apply loop to stop exactly at a place of the stream, to do something there, and to go on.
type hold struct {
	// at is called while nothing is applied, and returns the place, which lies at or after what has been applied; nil: here.
	at func(ctx context.Context) (replication.Position, error)
	// do is called when the destination has exactly what commits before that place.
	do   func(ctx context.Context) error
	done chan error
	// broken is an error of the stream itself, which must end it.
	broken error
}

// holdAt runs a hold through the apply loop.
func (l *link) holdAt(ctx context.Context, at func(context.Context) (replication.Position, error), do func(context.Context) error) error {
	h := &hold{at: at, do: do, done: make(chan error, 1)}
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for the stream to come to a transaction's end: %w", ctx.Err())
	case l.holds <- h:
	}
	return <-h.done
}

// still runs do while nothing is applied.
func (l *link) still(ctx context.Context, do func(context.Context) error) error {
	return l.holdAt(ctx, nil, do)
}

// hold serves one request in the apply loop.
func (l *link) hold(ctx context.Context, h *hold, batches <-chan *replication.Batch) error {
	if h.at == nil {
		return h.do(ctx)
	}
	place, err := h.at(ctx)
	if err != nil {
		return err
	}
	// A place covers the transactions up to it; one that it doesn't cover lies beyond.
	beyond := func(p replication.Position) bool {
		covered, err := l.source.Reached(place, p)
		return err != nil || !covered
	}
	for {
		var b *replication.Batch
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b = <-batches:
		}
		head, tail, position := b, (*replication.Batch)(nil), b.Position // what is applied is used again
		if b.Whole() {
			head, tail = b.Cut(func(m replication.Mark) bool { return beyond(m.Position) })
		} else if b.First {
			// A transaction in pieces: it ends after the place, or it would have been delivered before a keepalive could tell. Apply it
			// to its end; if that lies beyond the place the comparison can't be exact.
			if h.broken = l.pieces(ctx, b, batches); h.broken != nil {
				return h.broken
			}
			if beyond(l.applier.Position()) {
				return errTooLarge
			}
			continue
		}
		if head != nil {
			if h.broken = l.applyOne(ctx, head); h.broken != nil {
				return h.broken
			}
		}
		reached := tail != nil
		if !reached {
			if reached, err = l.source.Reached(position, place); err != nil {
				return err
			}
		}
		if !reached {
			continue
		}
		err := h.do(ctx)
		if tail != nil {
			if h.broken = l.applyOne(ctx, tail); h.broken != nil {
				return h.broken
			}
		}
		return err
	}
}

var errTooLarge = fmt.Errorf("a transaction too large for memory passed while both sides were to be compared: try again when it is through")

// pieces applies a transaction that comes in pieces, to its end.
func (l *link) pieces(ctx context.Context, b *replication.Batch, batches <-chan *replication.Batch) error {
	for {
		last := b.Last
		if err := l.applyOne(ctx, b); err != nil {
			return err
		}
		if last {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b = <-batches:
		}
	}
}
