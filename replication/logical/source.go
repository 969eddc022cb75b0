package logical

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/replication"
)

// Limits bound one batch; a transaction beyond them is handed over in pieces. What is zero is taken from DefaultLimits.
type Limits struct {
	Changes int
	Bytes   int
}

// DefaultLimits keep two batches in flight below 64 MB.
var DefaultLimits = Limits{Changes: 20000, Bytes: 16 << 20}

// Options say what to stream.
type Options struct {
	URL         string
	ID          postgres.Identity
	Slot        string
	Publication string
	// Seams are the tables' copies; changes that a copy already saw are left out of the stream.
	Seams  map[replication.TableName]replication.Seam
	Limits Limits
	// Pull is the size of a backlog, in bytes of write-ahead log, from which on it is pulled; 0: DefaultPull, negative: never.
	Pull int64
	Log  *slog.Logger // nil: none
}

// Source streams from one slot. It implements replication.Source.
type Source struct {
	o     Options
	acked atomic.Uint64
	news  chan struct{}
	// Until then nothing is pulled: it was tried and isn't possible, or the destination stood still. Only Stream's goroutines use it.
	notBefore time.Time
	pace      pace
}

// NewSource returns a Source; nothing is opened before Stream.
func NewSource(o Options) *Source {
	o.Limits.Changes = cmp.Or(o.Limits.Changes, DefaultLimits.Changes)
	o.Limits.Bytes = cmp.Or(o.Limits.Bytes, DefaultLimits.Bytes)
	o.Pull = cmp.Or(o.Pull, DefaultPull)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	return &Source{o: o, news: make(chan struct{}, 1), pace: usualPace}
}

// Reached compares LSNs.
func (s *Source) Reached(p, q replication.Position) (bool, error) {
	a, err := ParsePosition(p)
	if err != nil {
		return false, err
	}
	b, err := ParsePosition(q)
	return a >= b, err
}

// ParsePosition reads a position of this kind of source; the empty position is 0.
func ParsePosition(p replication.Position) (uint64, error) {
	if p == "" {
		return 0, nil
	}
	lsn, err := pglogrepl.ParseLSN(string(p))
	if err != nil {
		return 0, fmt.Errorf("parse position %q as an LSN: %w", p, err)
	}
	return uint64(lsn), nil
}

// FormatPosition is the inverse of ParsePosition.
func FormatPosition(lsn uint64) replication.Position { return position(lsn) }

// Acknowledge lets the server forget what lies before p.
func (s *Source) Acknowledge(p replication.Position) {
	lsn, err := ParsePosition(p)
	if err != nil {
		return // never one of ours: Reached and Stream report it
	}
	for {
		old := s.acked.Load()
		if lsn <= old {
			return
		}
		if s.acked.CompareAndSwap(old, lsn) {
			signal(s.news)
			return
		}
	}
}

// Stream implements replication.Source. Starting acknowledges start: the destination must have made durable what lies before it.
func (s *Source) Stream(ctx context.Context, start replication.Position, out chan<- *replication.Batch) error {
	lsn, err := ParsePosition(start)
	if err != nil {
		return err
	}
	b := newBuilder(s.o.Limits, lsn, s.o.Seams)
	s.acked.Store(lsn)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.feed(ctx, b) })
	g.Go(func() error { return deliver(ctx, b, out) })
	return g.Wait()
}

// feed fills the builder until ctx ends or an error occurs: from the replication session, or while much is to be made up for by pulling.
func (s *Source) feed(ctx context.Context, b *builder) error {
	for ours := false; ; ours = true { // ours: the session that streamed before is just ending
		if err := s.pull(ctx, b); err != nil {
			return err
		}
		if err := s.stream(ctx, b, ours); !errors.Is(err, errBehind) {
			return err
		}
	}
}

func deliver(ctx context.Context, b *builder, out chan<- *replication.Batch) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if wait := b.early(); wait > 0 {
			timer.Reset(wait)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-b.filled:
				continue
			case <-timer.C:
			}
		}
		batch := b.take()
		if batch == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-b.filled:
			}
			continue
		}
		for delivered := false; !delivered; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case out <- batch:
				delivered = true
			case <-b.filled:
				b.join(batch)
			}
		}
	}
}
