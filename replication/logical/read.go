package logical

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"replicator/replication"
)

// conversation is what a session's messages mean: those of a replication session, or the answers to queries.
type conversation interface {
	// message takes one message, whose body lies in chunk. The caller holds the builder's mu.
	message(kind byte, body []byte, chunk *replication.Chunk) error
	// taken is called when all that has come was taken; done says that the conversation is over. The caller doesn't hold mu.
	taken() (done bool, err error)
	// moment is how long messages may gather before they are read.
	moment() time.Duration
}

// receiver takes a session's messages straight off the connection, many at a time, into the memory that batches refer to ("Message Formats" in the
// PostgreSQL documentation).
type receiver struct {
	b     *builder
	with  conversation
	conn  net.Conn
	chunk *replication.Chunk
	// chunk.Bytes[from:to] was received and not yet looked at; need is the size of the message that begins there, as far as it is known.
	from, to, need int
	gather         *gatherer
}

// receive reads until ctx ends or the conversation does. What the session itself has read ahead must have been taken.
func receive(ctx context.Context, conn *pgconn.PgConn, b *builder, with conversation) error {
	r := &receiver{b: b, with: with, conn: conn.Conn(), chunk: replication.NewChunk(0), gather: newGatherer(conn.Conn())}
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
	err := r.run(ctx)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return err
}

func (r *receiver) run(ctx context.Context) error {
	for {
		if err := r.receive(ctx); err != nil {
			return err
		}
		if err := r.parse(ctx); err != nil {
			return err
		}
		if done, err := r.with.taken(); done || err != nil {
			return err
		}
	}
}

// least is how much room a chunk must have for a read to be worth it.
const least = 32 << 10

// receive reads what there is into the chunk, or into another one where that has no room.
func (r *receiver) receive(ctx context.Context) error {
	room := len(r.chunk.Bytes) - r.to
	if r.need-(r.to-r.from) > room || (room < least && r.need <= replication.ChunkSize) {
		r.next(r.need)
	}
	if err := r.gather.wait(r.with.moment()); err != nil {
		return err
	}
	n, err := r.conn.Read(r.chunk.Bytes[r.to:])
	r.gather.took(n)
	r.to += n
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
		if err := r.with.message(rest[0], rest[5:r.need:r.need], r.chunk); err != nil {
			return err
		}
		if r.b.full() {
			r.b.tell()
			if err := r.b.room(ctx); err != nil {
				return err
			}
		}
	}
	r.b.tell()
	return nil
}
