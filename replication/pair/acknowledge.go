package pair

import (
	"context"
	"fmt"
	"time"

	"replicator/internal/postgres"
	"replicator/replication/state"
)

// acknowledge tells the source what the destination has flushed.
func (l *link) acknowledge(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	look := time.NewTicker(longBatch)
	defer look.Stop()
	var last int
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			under := l.underWay()
			if under != 0 && under == last {
				if err := l.wakeWriter(ctx); err != nil {
					return err
				}
			}
			last = under
			continue
		case <-tick.C:
		}
		pending, urgent, err := l.unflushed()
		if err != nil {
			return err
		}
		if !pending {
			continue
		}
		if err := l.flushed(ctx, urgent); err != nil {
			return err
		}
	}
}

// unflushed tells whether something was applied that may not be flushed yet, and whether somebody waits for nothing but that. To make the
// destination flush sooner would only hold up what it applies.
func (l *link) unflushed() (pending, urgent bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.commits) == 0 {
		return false, false, nil
	}
	applied := l.commits[len(l.commits)-1].position
	for place := range l.awaited {
		if urgent, err = l.source.Reached(applied, *place); urgent || err != nil {
			break
		}
	}
	return true, urgent, err
}

// flushed reads how far the destination has flushed and moves durable up to there. With force set it makes it flush first.
func (l *link) flushed(ctx context.Context, force bool) error {
	if force {
		if _, err := state.Flush(ctx, l.destination.pool); err != nil {
			return fmt.Errorf("%s: %w", l.destination.name, err)
		}
	}
	lsn, err := state.Flushed(ctx, l.watch)
	if err != nil {
		return fmt.Errorf("%s: %w", l.destination.name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(l.commits) && l.commits[n].lsn <= lsn {
		n++
	}
	if n == 0 {
		return nil
	}
	last := l.commits[n-1].position
	l.commits = append(l.commits[:0], l.commits[n:]...)
	l.durable = last
	l.source.Acknowledge(last)
	close(l.moved)
	l.moved = make(chan struct{})
	return nil
}

// longBatch is how long a batch may be under way before what it writes is flushed beside it.
const longBatch = 10 * time.Millisecond

// underWay is the number of the oldest batch that was sent and not yet applied, from 1 on, 0 if there is none.
func (l *link) underWay() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sent) == 0 {
		return 0
	}
	return l.ended + 1
}

// wakeWriterSQL commits a message that nobody reads, asynchronously and without a transaction id, where there is more than a megabyte to flush.
const wakeWriterSQL = `SELECT pg_logical_emit_message(false, 'replicator', '')
WHERE pg_wal_lsn_diff(pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()) > 1048576`

// wakeWriter has the destination's WAL writer write and flush what there is. A session that writes more log than wal_buffers hold would else do so itself, a page
// at a time, and wait for the flush of each segment; the WAL writer looks only five times a second, unless an asynchronous commit wakes it ("WAL
// Configuration" and "Asynchronous Commit" in the PostgreSQL documentation).
func (l *link) wakeWriter(ctx context.Context) error {
	_, err := l.watch.Exec(ctx, wakeWriterSQL)
	if err != nil && postgres.Code(err) == "" { // who may not do that does without
		return fmt.Errorf("%s: wake the WAL writer: %w", l.destination.name, err)
	}
	return nil
}
