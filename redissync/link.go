package redissync

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	ioTimeout   = 30 * time.Second // without any progress
	idleTime    = 30 * time.Second // after which a connection is tried before it is relied on
)

// link is one connection to one server, used by one goroutine at a time. After any error other than a reply it is closed.
type link struct {
	conn net.Conn
	in   *reader
	out  []byte
	db   int
	dead bool
	used time.Time
	over atomic.Bool // the exchange's context has ended
	// admitted is when whoever uses the connection has last found that it may be used; see session.admit. 0: never.
	admitted int64
}

// Read and Write are the connection's, each step with a deadline of its own, so that a large value may take as long as it moves.
func (l *link) Read(b []byte) (int, error) {
	l.conn.SetReadDeadline(time.Now().Add(ioTimeout))
	if l.over.Load() { // it ended before the deadline above was set
		return 0, os.ErrDeadlineExceeded
	}
	return l.conn.Read(b)
}

// Write writes in steps for the same reason.
func (l *link) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		l.conn.SetWriteDeadline(time.Now().Add(ioTimeout))
		if l.over.Load() {
			return n, os.ErrDeadlineExceeded
		}
		var m int
		m, err = l.conn.Write(b[n:min(len(b), n+256<<10)])
		n += m
	}
	return n, err
}

// command is one command with its arguments.
type command []string

// dial connects, authenticates and names the connection. With resp3 it also switches the protocol, which pushes need.
func dial(ctx context.Context, e endpoint, name string, resp3 bool) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := net.Dialer{KeepAlive: 15 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", e.address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", e.address, err)
	}
	if e.tls != nil {
		// A server that speaks no TLS waits for more of what it takes for a command.
		ctx, cancel := context.WithTimeout(ctx, dialTimeout/2)
		defer cancel()
		tc := tls.Client(conn, e.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, fmt.Errorf("TLS handshake with %s: %w", e.address, err)
		}
		conn = tc
	}
	l := &link{conn: conn, used: time.Now()}
	l.in = newReader(l)
	if err := l.greet(ctx, e, name, resp3); err != nil {
		l.close()
		return nil, fmt.Errorf("open a session on %s: %w", e.address, err)
	}
	return l, nil
}

func (l *link) greet(ctx context.Context, e endpoint, name string, resp3 bool) error {
	var cmds []command
	if e.password != "" {
		if e.user != "" {
			cmds = append(cmds, command{"AUTH", e.user, e.password})
		} else {
			cmds = append(cmds, command{"AUTH", e.password})
		}
	}
	if resp3 {
		cmds = append(cmds, command{"HELLO", "3"})
	}
	if name != "" {
		cmds = append(cmds, command{"CLIENT", "SETNAME", name})
	}
	cmds = append(cmds, command{"PING"})
	vs, err := l.pipe(ctx, cmds)
	if err != nil {
		return err
	}
	for i, v := range vs {
		if err := v.err(); err != nil && cmds[i][0] != "CLIENT" { // a session without a name still works; check names it
			return fmt.Errorf("%s: %w", cmds[i][0], err)
		}
	}
	return nil
}

// unnoticed keeps keys that this connection reads from looking recently used, where the server can do that safely: Redis 8.0 to 8.2 and
// Valkey 8.1 crash when a connection with CLIENT NO-TOUCH makes a key ready for which another client waits (BRPOP, XREADGROUP), which
// even a read does that finds a key expired. The crash was fixed in Redis 8.4 and Valkey 9.0.
func (l *link) unnoticed(ctx context.Context, server serverInfo) error {
	if !server.noTouchIsSafe() {
		return nil
	}
	_, err := l.pipe(ctx, []command{{"CLIENT", "NO-TOUCH", "ON"}}) // a refusal does no harm
	return err
}

func (l *link) close() {
	if !l.dead {
		l.dead = true
		l.conn.Close()
	}
}

// bound ties the exchanges that follow to ctx until the returned function is called.
func (l *link) bound(ctx context.Context) func() bool {
	l.over.Store(false)
	return context.AfterFunc(ctx, func() {
		l.over.Store(true)
		l.conn.SetDeadline(time.Unix(1, 0))
	})
}

// pipe sends all commands at once and returns one reply for each. Error replies are values; an error means the link is closed.
func (l *link) pipe(ctx context.Context, cmds []command) ([]value, error) {
	if l.dead {
		return nil, net.ErrClosed
	}
	stop := l.bound(ctx)
	defer stop()
	l.out = l.out[:0]
	for _, c := range cmds {
		l.out = appendCommand(l.out, c)
	}
	written := make(chan error, 1)
	if len(l.out) > 32<<10 { // a server whose output we don't read stops reading our input: write and read at once
		go func() { _, err := l.Write(l.out); written <- err }()
	} else {
		_, err := l.Write(l.out)
		written <- err
	}
	vs := make([]value, len(cmds))
	var err error
	for i := range vs {
		if vs[i], err = l.in.read(); err != nil {
			break
		}
		if vs[i].kind == kindPush {
			err = errors.New("read reply: unexpected push")
			break
		}
	}
	if err != nil {
		l.close()
	}
	if werr := <-written; err == nil && werr != nil {
		l.close()
		err = werr
	}
	l.used = time.Now()
	if cap(l.out) > 1<<20 {
		l.out = nil
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("talk to %s: %w", l.conn.RemoteAddr(), err)
	}
	return vs, nil
}

// do runs one command; an error reply is an error.
func (l *link) do(ctx context.Context, args ...string) (value, error) {
	vs, err := l.pipe(ctx, []command{args})
	if err != nil {
		return value{}, err
	}
	if err := vs[0].err(); err != nil {
		word := args[0]
		if len(args) > 1 && (word == "CLIENT" || word == "CONFIG" || word == "FUNCTION") {
			word += " " + args[1]
		}
		return value{}, fmt.Errorf("%s: %w", word, err)
	}
	return vs[0], nil
}

// isAuth tells whether an error means that the server refuses who we are, which trying again can't mend.
func isAuth(err error) bool {
	var r replyError
	if !errors.As(err, &r) {
		return false
	}
	for _, p := range []string{"WRONGPASS", "NOAUTH", "ERR invalid password", "ERR AUTH", "ERR Client sent AUTH"} {
		if strings.HasPrefix(string(r), p) {
			return true
		}
	}
	return false
}
