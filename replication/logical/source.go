package logical

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
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
}

// Source streams from one slot. It implements replication.Source.
type Source struct {
	o     Options
	acked atomic.Uint64
	news  chan struct{}
}

// NewSource returns a Source; nothing is opened before Stream.
func NewSource(o Options) *Source {
	o.Limits.Changes = cmp.Or(o.Limits.Changes, DefaultLimits.Changes)
	o.Limits.Bytes = cmp.Or(o.Limits.Bytes, DefaultLimits.Bytes)
	return &Source{o: o, news: make(chan struct{}, 1)}
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
func (s *Source) Stream(ctx context.Context, start replication.Position, out chan<- *replication.Batch) (err error) {
	lsn, err := ParsePosition(start)
	if err != nil {
		return err
	}
	b := newBuilder(s.o.Limits, lsn, s.o.Seams)
	conn, err := postgres.ConnectReplication(ctx, s.o.URL, s.o.ID, "stream")
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, ignoreClosed(conn.Close(closing)))
	}()
	// Names of publications are SQL identifiers inside a string; ours hold only letters, digits and underscores.
	args := []string{"proto_version '1'", "publication_names " + replication.QuoteLiteral(s.o.Publication)}
	// After a write that took long, the session goes on reading in the background; it would take what read takes off the connection.
	if err := conn.SyncConn(ctx); err != nil {
		return fmt.Errorf("take over the session: %w", err)
	}
	s.acked.Store(lsn)
	if err := pglogrepl.StartReplication(ctx, conn, s.o.Slot, pglogrepl.LSN(lsn), pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication, PluginArgs: args}); err != nil {
		return fmt.Errorf("start streaming from slot %q at %s: %w", s.o.Slot, pglogrepl.LSN(lsn), err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.read(ctx, conn, b) })
	g.Go(func() error { return s.report(ctx, conn) })
	g.Go(func() error { return deliver(ctx, b, out) })
	return g.Wait()
}

// ignoreClosed drops the error of closing a session that had already failed; the failure itself was reported.
func ignoreClosed(error) error { return nil }

// report tells the server what is durable: at once when that has moved (at most ten times a second), and every second in any case, so
// that wal_sender_timeout doesn't end a stream whose reader waits for the applier. All three positions are the durable one: the
// server must not forget what was merely received.
func (s *Source) report(ctx context.Context, conn *pgconn.PgConn) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		lsn := pglogrepl.LSN(s.acked.Load())
		err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{
			WALWritePosition: lsn, WALFlushPosition: lsn, WALApplyPosition: lsn, ClientTime: time.Now(),
		})
		if err != nil {
			return fmt.Errorf("acknowledge to slot %q: %w", s.o.Slot, err)
		}
		pause.Reset(100 * time.Millisecond)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-s.news:
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
