package logical

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"replicator/replication"
)

// receiver takes the stream's messages straight off the connection, many at a time, into the memory that batches refer to ("Message Formats"
// and "Streaming Replication Protocol" in the PostgreSQL documentation).
type receiver struct {
	s     *Source
	b     *builder
	conn  net.Conn
	chunk *replication.Chunk
	// chunk.Bytes[from:to] was received and not yet looked at; need is the size of the message that begins there, as far as it is known.
	from, to, need int
	gather         *gatherer
	// How often in a row the server has asked for an answer, and when it last did.
	asked   int
	askedAt time.Time
}

// read reads until ctx ends or the stream does.
func (s *Source) read(ctx context.Context, conn *pgconn.PgConn, b *builder) error {
	r := &receiver{s: s, b: b, conn: conn.Conn(), chunk: replication.NewChunk(0), gather: newGatherer(conn.Conn())}
	defer func() { r.chunk.Release() }()
	// The session would watch the context anew for each message.
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = r.conn.SetReadDeadline(time.Now()) // a broken connection needs no deadline
	})
	defer func() {
		if !stop() {
			<-done
			_ = r.conn.SetReadDeadline(time.Time{}) // closing the session waits for the server's end of it
		}
	}()
	err := r.run(ctx, conn)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("receive from slot %q: %w", s.o.Slot, err)
}

func (r *receiver) run(ctx context.Context, conn *pgconn.PgConn) error {
	// What the session has read ahead comes first.
	for conn.Frontend().ReadBufferLen() > 0 {
		msg, err := conn.ReceiveMessage(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.CopyData:
			err = r.ahead(ctx, msg.Data)
		case *pgproto3.CopyDone:
			err = fmt.Errorf("the server ended the stream: %w", errStreamEnded)
		case *pgproto3.ErrorResponse:
			err = pgconn.ErrorResponseToPgError(msg)
		}
		if err != nil {
			return err
		}
	}
	for {
		if err := r.receive(ctx); err != nil {
			return err
		}
		if err := r.parse(ctx); err != nil {
			return err
		}
	}
}

// ahead takes a message that the session had read.
func (r *receiver) ahead(ctx context.Context, data []byte) error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	if err := r.message(data, nil); err != nil {
		return err
	}
	r.b.tell()
	return r.b.room(ctx)
}

// least is how much room a chunk must have for a read to be worth it.
const least = 32 << 10

// receive reads what there is into the chunk, or into another one where that has no room.
func (r *receiver) receive(ctx context.Context) error {
	room := len(r.chunk.Bytes) - r.to
	if r.need-(r.to-r.from) > room || (room < least && r.need <= replication.ChunkSize) {
		r.next(r.need)
	}
	if err := r.gather.wait(ctx, r.conn); err != nil {
		return err
	}
	n, err := r.conn.Read(r.chunk.Bytes[r.to:])
	r.to += n
	r.gather.read(r.b.late)
	if n > 0 {
		return nil // an error comes again
	}
	return err
}

// next goes on in another chunk with room for a message of that size.
func (r *receiver) next(size int) {
	c := replication.NewChunk(max(size, r.to-r.from+least))
	r.to = copy(c.Bytes, r.chunk.Bytes[r.from:r.to])
	r.from = 0
	r.chunk.Release()
	r.chunk = c
}

var errNotAMessage = errors.New("what the server sent is no message")

// parse takes the whole messages that were received.
func (r *receiver) parse(ctx context.Context) error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	for r.need = 0; r.to-r.from >= 5; r.need = 0 {
		rest := r.chunk.Bytes[r.from:r.to]
		length := int(int32(binary.BigEndian.Uint32(rest[1:])))
		if length < 4 {
			return errNotAMessage
		}
		if r.need = 1 + length; len(rest) < r.need {
			break
		}
		r.from += r.need
		switch body := rest[5:r.need:r.need]; rest[0] {
		case 'd':
			if err := r.message(body, r.chunk); err != nil {
				return err
			}
			if r.b.full() {
				r.b.tell()
				if err := r.b.room(ctx); err != nil {
					return err
				}
			}
		case 'c':
			return fmt.Errorf("the server ended the stream: %w", errStreamEnded)
		case 'E':
			var e pgproto3.ErrorResponse
			if err := e.Decode(body); err != nil {
				return err
			}
			return pgconn.ErrorResponseToPgError(&e)
		default:
			// Notices and parameter changes don't concern the stream.
		}
	}
	r.b.tell()
	return nil
}

// errStreamEnded is what a server's orderly shutdown looks like; it unwraps to a lost connection, so that it is tried again.
var errStreamEnded = &pgconn.PgError{Severity: "FATAL", Code: "57P01", Message: "stream ended"}

// impatience is how often in a row the server may ask for an answer, which it gets at most ten times a second. A server that shuts down
// asks on and on until everything that it sent has been acknowledged ("wal_sender_timeout" doesn't end this): a destination that
// stands still must not keep it from doing so. Otherwise it asks only after half of wal_sender_timeout without word from us.
const impatience = 30

// message takes the body of one CopyData message, which lies in chunk if that isn't nil. The caller holds the builder's mu.
func (r *receiver) message(data []byte, chunk *replication.Chunk) error {
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

// timedOut tells whether a read came to its deadline.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
