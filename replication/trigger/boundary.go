package trigger

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/retry"
	"replicator/replication"
)

// Boundary is a place between two windows, with the source as it was there: everything before Position, and nothing after it, is in the
// snapshot. The stream stands still until Release.
type Boundary struct {
	Position replication.Position
	// Snapshot is the exported snapshot's name, for SET TRANSACTION SNAPSHOT in other sessions, good until Close.
	Snapshot string

	conn    *pgx.Conn
	release func()
}

// Release lets the stream go on; the snapshot stays. It may be called more than once.
func (b *Boundary) Release() { b.release() }

// Close releases the stream and ends the snapshot.
func (b *Boundary) Close(ctx context.Context) {
	b.release()
	closeConn(ctx, b.conn)
}

type boundaryRequest struct {
	s        *Source
	answer   chan boundaryAnswer
	boundary *Boundary
	released chan struct{}
	answered bool
}

type boundaryAnswer struct {
	b   *Boundary
	err error
}

// Boundary makes the running stream end a window now, delivers that window's batch (one that only moves the position, if nothing was
// changed) and holds the stream behind it. Once the destination has applied Position it equals the snapshot. The caller must Release or
// Close; ctx bounds the wait for a running stream.
func (s *Source) Boundary(ctx context.Context) (*Boundary, error) {
	r := &boundaryRequest{s: s, answer: make(chan boundaryAnswer, 1), released: make(chan struct{})}
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the stream to come to a boundary: %w", ctx.Err())
	case s.boundaries <- r:
	}
	select {
	case <-ctx.Done():
		r.release()
		go r.discard()
		return nil, fmt.Errorf("wait for the stream to come to a boundary: %w", ctx.Err())
	case a := <-r.answer:
		return a.b, a.err
	}
}

// discard closes what nobody waits for any more.
func (r *boundaryRequest) discard() {
	if a := <-r.answer; a.b != nil {
		a.b.Close(context.Background())
	}
}

func (r *boundaryRequest) release() {
	select {
	case <-r.released:
	default:
		close(r.released)
	}
}

// export takes the window's snapshot on in a session of its own, which outlives the window's transaction.
func (r *boundaryRequest) export(ctx context.Context, window *pgx.Conn) error {
	var name string
	if err := window.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&name); err != nil {
		return fmt.Errorf("export the window's snapshot: %w", err)
	}
	conn, err := postgres.Connect(ctx, r.s.o.URL, r.s.o.ID, "boundary")
	if err != nil {
		return err
	}
	b := &Boundary{conn: conn, release: sync.OnceFunc(func() { r.release() })}
	if _, err = conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err == nil {
		if _, err = conn.Exec(ctx, "SET TRANSACTION SNAPSHOT "+replication.QuoteLiteral(name)); err == nil {
			err = conn.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&b.Snapshot)
		}
	}
	if err != nil {
		closeConn(ctx, conn)
		return fmt.Errorf("take on the window's snapshot: %w", err)
	}
	if r.boundary != nil {
		closeConn(ctx, r.boundary.conn) // of an attempt that was discarded
	}
	r.boundary = b
	return nil
}

// hold answers the request and waits until the caller lets the stream go on.
func (r *boundaryRequest) hold(ctx context.Context, p replication.Position) error {
	r.boundary.Position = p
	r.answered = true
	r.answer <- boundaryAnswer{b: r.boundary}
	select {
	case <-ctx.Done():
		return retry.Stop(ctx.Err())
	case <-r.released:
		return nil
	}
}

// fail answers a request that came to nothing.
func (r *boundaryRequest) fail(err error) {
	if r.answered {
		return
	}
	r.answered = true
	if r.boundary != nil {
		closeConn(context.Background(), r.boundary.conn)
	}
	if err == nil {
		err = errors.New("the window ended without a boundary")
	}
	r.answer <- boundaryAnswer{err: fmt.Errorf("come to a boundary: %w", err)}
}
