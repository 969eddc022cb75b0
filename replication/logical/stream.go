package logical

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/internal/retry"
	"replicator/replication"
)

// stream goes on from where the builder stands by the replication protocol, until ctx ends or an error occurs; errBehind between two transactions.
// A slot that is in use is waited for if a session of ours has used it.
func (s *Source) stream(ctx context.Context, b *builder, ours bool) (err error) {
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
	lsn := pglogrepl.LSN(b.where())
	err = retry.Do(ctx, retry.Policy{Attempts: 6}, func(ctx context.Context) error {
		err := pglogrepl.StartReplication(ctx, conn, s.o.Slot, lsn, pglogrepl.StartReplicationOptions{Mode: pglogrepl.LogicalReplication, PluginArgs: args})
		if ours && postgres.Code(err) == postgres.CodeObjectInUse {
			return err
		}
		return retry.Stop(err)
	})
	if err != nil {
		return fmt.Errorf("start streaming from slot %q at %s: %w", s.o.Slot, lsn, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.read(ctx, conn, b) })
	g.Go(func() error { return s.report(ctx, conn) })
	return g.Wait()
}

// ignoreClosed drops the error of closing a session that had already failed; the failure itself was reported.
func ignoreClosed(error) error { return nil }

// streamed is what a replication session says ("Streaming Replication Protocol" in the PostgreSQL documentation).
type streamed struct {
	s *Source
	b *builder
	// How often in a row the server has asked for an answer, and when it last did.
	asked   int
	askedAt time.Time
	began   time.Time
}

// read reads until ctx ends or the stream does.
func (s *Source) read(ctx context.Context, conn *pgconn.PgConn, b *builder) error {
	r := &streamed{s: s, b: b, began: time.Now()}
	err := r.ahead(ctx, conn)
	if err == nil {
		err = receive(ctx, conn, b, r)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("receive from slot %q: %w", s.o.Slot, err)
}

// ahead takes the messages that the session had read before it was taken over.
func (r *streamed) ahead(ctx context.Context, conn *pgconn.PgConn) error {
	for conn.Frontend().ReadBufferLen() > 0 {
		msg, err := conn.ReceiveMessage(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			err = r.b.locked(ctx, func() error { return r.data(msg.Data, nil) })
		case *pgproto3.CopyDone:
			err = fmt.Errorf("the server ended the stream: %w", errStreamEnded)
		case *pgproto3.ErrorResponse:
			err = pgconn.ErrorResponseToPgError(msg)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *streamed) message(kind byte, body []byte, chunk *replication.Chunk) error {
	switch kind {
	case 'd':
		return r.data(body, chunk)
	case 'c':
		return fmt.Errorf("the server ended the stream: %w", errStreamEnded)
	case 'E':
		return serverError(body)
	}
	return nil // notices and parameter changes don't concern the stream
}

func serverError(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return err
	}
	return pgconn.ErrorResponseToPgError(&e)
}

// errBehind ends a stream that is so far behind that pulling what is missing may be worth it.
var errBehind = errors.New("the stream is far behind")

func (r *streamed) taken() (bool, error) {
	if r.b.late <= r.s.pace.farBehind { // which only this goroutine writes
		return false, nil
	}
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	if !r.b.open && !r.b.closed && r.s.mayPull() && time.Since(r.began) > r.s.pace.settled {
		return true, errBehind
	}
	return false, nil
}

const (
	// inTime is how late messages may come without being waited for, longest the longest moment.
	inTime  = 20 * time.Millisecond
	longest = 10 * time.Millisecond
)

// moment grows with how late what came last was sent: waiting adds a part to what has been lost already. A stream that follows in time has
// bursts, and whoever waits for their last row.
func (r *streamed) moment() time.Duration { return min(max((r.b.late-inTime)/4, 0), longest) }

// errStreamEnded is what a server's orderly shutdown looks like; it unwraps to a lost connection, so that it is tried again.
var errStreamEnded = &pgconn.PgError{Severity: "FATAL", Code: "57P01", Message: "stream ended"}

// impatience is how often in a row the server may ask for an answer, which it gets at most ten times a second. A server that shuts down
// asks on and on until everything that it sent has been acknowledged ("wal_sender_timeout" doesn't end this): a destination that
// stands still must not keep it from doing so. Otherwise it asks only after half of wal_sender_timeout without word from us.
const impatience = 30

// data takes the body of one CopyData message, which lies in chunk if that isn't nil. The caller holds the builder's mu.
func (r *streamed) data(data []byte, chunk *replication.Chunk) error {
	const head = 1 + 8 + 8 + 8 // XLogData: its start, the end of the log, the time of sending
	switch {
	case len(data) >= head && data[0] == pglogrepl.XLogDataByteID:
		r.asked = 0
		return r.b.decode(data[head:], chunk, int64(binary.BigEndian.Uint64(data[head-8:])))
	case len(data) > 0 && data[0] == pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return err
		}
		r.b.advanced(k.ServerWALEnd)
		if !k.ReplyRequested {
			return nil
		}
		if time.Since(r.askedAt) > 500*time.Millisecond {
			r.asked = 0
		}
		r.askedAt = time.Now()
		if r.asked++; r.asked > impatience {
			return fmt.Errorf("the server waits for acknowledgements, as it does when it shuts down: %w", errStreamEnded)
		}
		signal(r.s.news)
		return nil
	}
	return errNotAMessage
}

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
