package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// pieceBytes is the size of the messages that go to the target, and of the buffers of which each pipe has pipeBuffers.
const (
	pieceBytes  = 128 << 10
	pipeBuffers = 4
	header      = 5 // type and length of a message
)

// The source sends 8 kB at a time. A reader that was given little takes a rest, so that it needn't be woken for each of them; the kernel's
// buffers hold what comes meanwhile. TLS hands out 16 kB at most, and would be slowed down.
const (
	enough = 64 << 10
	rest   = 300 * time.Microsecond
)

// pipe runs COPY … TO STDOUT on one session and COPY … FROM STDIN on another and moves what the one sends to the other, without looking at
// it. The source sends every row as a message of its own; they are put together into large ones, which the target takes at a fraction of
// the cost. It reads and writes the sessions' connections itself ("COPY Operations" and "Message Formats" of the protocol): reading,
// writing and hearing of the target's errors go on at the same time, and what is in memory is the pipe's buffers. moved hears of bytes.
//
// After an error both sessions are unusable, but for being closed.
func pipe(ctx context.Context, source, target *pgconn.PgConn, out, in string, moved func(int)) (rows int64, err error) {
	for _, c := range []*pgconn.PgConn{source, target} {
		// After a write that took long, the session goes on reading in the background; it would take what is meant for us.
		if err := c.SyncConn(ctx); err != nil {
			return 0, fmt.Errorf("take over the session: %w", err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a, z := source.Conn(), target.Conn()
	stop := context.AfterFunc(ctx, func() {
		past := time.Now().Add(-time.Minute)
		_, _ = a.SetDeadline(past), z.SetDeadline(past) // connections that are closed already
	})
	full, empty := make(chan []byte), make(chan []byte, pipeBuffers)
	for range pipeBuffers {
		empty <- make([]byte, header, header+pieceBytes)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(full)
		if _, err := a.Write(query(out)); err != nil {
			cancel(fmt.Errorf("read from the source: %w", err))
			return
		}
		_, plain := a.(*net.TCPConn)
		r := &reader{conn: a, plain: plain, buf: make([]byte, pieceBytes), full: full, empty: empty, done: ctx.Done()}
		if err := r.run(); err != nil {
			cancel(fmt.Errorf("read from the source: %w", err))
		}
	})
	wg.Go(func() {
		if err := feed(z, in, full, empty, ctx.Done(), moved); err != nil {
			cancel(fmt.Errorf("write to the target: %w", err))
		}
	})
	wg.Go(func() {
		var err error
		if rows, err = answers(z); err != nil {
			cancel(fmt.Errorf("write to the target: %w", err))
		}
	})
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	if !stop() {
		return 0, ctx.Err() // it ended this moment, and the deadlines are set
	}
	return rows, nil
}

func query(sql string) []byte {
	b := append([]byte{'Q'}, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[1:], uint32(4+len(sql)+1))
	return append(append(b, sql...), 0)
}

// reader takes the messages of a COPY … TO STDOUT and hands their contents on in pieces.
type reader struct {
	conn        net.Conn
	plain       bool
	buf         []byte // as it comes from the connection
	full, empty chan []byte
	done        <-chan struct{}

	piece   []byte // what is handed on next, with room for its header
	left    int    // bytes of the current row's message that are still to come
	held    []byte // the beginning of a message that hasn't come whole
	ended   bool   // CopyDone was seen
	failure error
}

var errPipeClosed = errors.New("the copy was ended from elsewhere")

// run returns when the server is ready for the next query, or with its error.
func (r *reader) run() error {
	pause := time.NewTimer(rest)
	defer pause.Stop()
	for {
		n, err := r.conn.Read(r.buf)
		if n > 0 {
			ready, err := r.take(r.buf[:n])
			if err != nil {
				return err
			}
			if ready {
				if r.failure != nil {
					return r.failure
				}
				if !r.ended {
					return errors.New("the server ended the copy before its last row")
				}
				return r.flush(true)
			}
			if err := r.flush(false); err != nil {
				return err
			}
			if r.plain && n < enough {
				pause.Reset(rest)
				select {
				case <-r.done:
				case <-pause.C:
				}
			}
		}
		if err != nil {
			return err
		}
	}
}

// take goes through what has come; ready tells that ReadyForQuery was among it.
func (r *reader) take(b []byte) (ready bool, err error) {
	for len(b) > 0 {
		if r.left > 0 {
			n := min(r.left, len(b))
			if err := r.put(b[:n]); err != nil {
				return false, err
			}
			r.left -= n
			b = b[n:]
			continue
		}
		if len(r.held) == 0 && len(b) >= header && b[0] == 'd' {
			r.left = int(binary.BigEndian.Uint32(b[1:])) - 4
			b = b[header:]
			continue
		}
		// Everything else is rare: gather it until it is whole.
		n := min(max(header-len(r.held), 0), len(b))
		r.held, b = append(r.held, b[:n]...), b[n:]
		if len(r.held) < header {
			break
		}
		length := int(binary.BigEndian.Uint32(r.held[1:])) + 1
		if r.held[0] == 'd' {
			r.left, r.held = length-header, r.held[:0]
			continue
		}
		n = min(length-len(r.held), len(b))
		r.held, b = append(r.held, b[:n]...), b[n:]
		if len(r.held) < length {
			break
		}
		if ready, err = r.message(r.held[0], r.held[header:]); ready || err != nil {
			return ready, err
		}
		r.held = r.held[:0]
	}
	return false, nil
}

func (r *reader) message(kind byte, body []byte) (ready bool, err error) {
	switch kind {
	case 'c':
		r.ended = true
	case 'E':
		r.failure = serverError(body)
	case 'Z':
		return true, nil
	}
	return false, nil // CopyOutResponse, CommandComplete, notices, changed parameters
}

// put adds to the piece in hand; a full one is handed on.
func (r *reader) put(b []byte) error {
	for len(b) > 0 {
		if r.piece == nil {
			select {
			case <-r.done:
				return errPipeClosed
			case r.piece = <-r.empty:
			}
		}
		n := min(cap(r.piece)-len(r.piece), len(b))
		r.piece, b = append(r.piece, b[:n]...), b[n:]
		if len(r.piece) == cap(r.piece) {
			if err := r.flush(true); err != nil {
				return err
			}
		}
	}
	return nil
}

// flush hands the piece on; unless it must, only to somebody who has nothing else to do.
func (r *reader) flush(must bool) error {
	if len(r.piece) <= header {
		return nil
	}
	if !must {
		select {
		case r.full <- r.piece:
			r.piece = nil
		default:
		}
		return nil
	}
	select {
	case <-r.done:
		return errPipeClosed
	case r.full <- r.piece:
		r.piece = nil
	}
	return nil
}

// feed sends the pieces to the target until full is closed. It doesn't wait for the target to ask for them: one that refuses the command
// ignores them.
func feed(conn net.Conn, sql string, full, empty chan []byte, done <-chan struct{}, moved func(int)) error {
	if _, err := conn.Write(query(sql)); err != nil {
		return err
	}
	for {
		select {
		case <-done:
			return errPipeClosed
		case piece, ok := <-full:
			if !ok {
				select {
				case <-done: // the source failed: what has come must not be taken for all
					return errPipeClosed
				default:
				}
				_, err := conn.Write([]byte{'c', 0, 0, 0, 4})
				return err
			}
			piece[0] = 'd'
			binary.BigEndian.PutUint32(piece[1:], uint32(len(piece)-1))
			if _, err := conn.Write(piece); err != nil {
				return err
			}
			moved(len(piece) - header)
			empty <- piece[:header]
		}
	}
}

// answers reads what the target says until it is ready for the next query.
func answers(conn net.Conn) (rows int64, err error) {
	var head [header]byte
	body := make([]byte, 0, 256)
	for {
		if err := readFull(conn, head[:]); err != nil {
			return 0, err
		}
		n := int(binary.BigEndian.Uint32(head[1:])) - 4
		if cap(body) < n {
			body = make([]byte, n)
		}
		body = body[:n]
		if err := readFull(conn, body); err != nil {
			return 0, err
		}
		switch head[0] {
		case 'E':
			return 0, serverError(body)
		case 'C':
			tag := strings.TrimPrefix(strings.TrimSuffix(string(body), "\x00"), "COPY ")
			if rows, err = strconv.ParseInt(tag, 10, 64); err != nil {
				return 0, fmt.Errorf("the server answered %q to COPY", tag)
			}
		case 'Z':
			return rows, nil
		}
	}
}

func readFull(conn net.Conn, b []byte) error {
	for len(b) > 0 {
		n, err := conn.Read(b)
		b = b[n:]
		if err != nil && len(b) > 0 {
			return err
		}
	}
	return nil
}

func serverError(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return fmt.Errorf("read the server's error: %w", err)
	}
	return pgconn.ErrorResponseToPgError(&e)
}
