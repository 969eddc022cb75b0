package redissync

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"replicator/internal/preflight"
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

// unit is the commands of one key, run in order on the node that holds it.
type unit struct {
	key  string
	cmds []command
}

// session runs units on one side, in any database, opening its link when needed: one for a single server, one for each node of a
// cluster. One goroutine at a time.
type session struct {
	endpoint endpoint
	name     string
	link     *link
	nodes    map[string]*session // by address; of a cluster
	// exclusive ends other connections of the same name before this one is used: what a broken connection had sent may otherwise
	// be executed after what its successor sends.
	exclusive bool
	// admit, if set, is asked before each use of the connection whether it may be used.
	admit func(context.Context, *link) error
}

// exec pipelines the units in database db, each on the node that holds its key, and returns each one's replies in order.
func (s *session) exec(ctx context.Context, db int, units []unit) ([][]value, error) {
	y, err := s.layout(ctx)
	if err != nil {
		return nil, err
	}
	if y.cluster {
		return s.route(ctx, db, units)
	}
	return s.execHere(ctx, db, units)
}

// execHere is exec on a single server, or on one node.
func (s *session) execHere(ctx context.Context, db int, units []unit) ([][]value, error) {
	l, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	var cmds []command
	if l.db != db {
		cmds = append(cmds, command{"SELECT", strconv.Itoa(db)})
	}
	for _, u := range units {
		cmds = append(cmds, u.cmds...)
	}
	vs, err := l.pipe(ctx, cmds)
	if err != nil {
		return nil, err
	}
	if l.db != db {
		if err := vs[0].err(); err != nil {
			// The commands behind it ran in the wrong database; so nothing that writes is ever sent before the select is known.
			return nil, fmt.Errorf("select database %d: %w", db, err)
		}
		l.db, vs = db, vs[1:]
	}
	out := make([][]value, len(units))
	for i, u := range units {
		out[i], vs = vs[:len(u.cmds)], vs[len(u.cmds):]
	}
	return out, nil
}

// enter selects db before anything that writes is sent; in a cluster, each node does so before its first write.
func (s *session) enter(ctx context.Context, db int) error {
	n, err := s.owner(ctx, "")
	if err != nil || n != s && db == 0 {
		return err
	}
	l, err := n.open(ctx)
	if err != nil || l.db == db {
		return err
	}
	if _, err := l.do(ctx, "SELECT", strconv.Itoa(db)); err != nil {
		return err
	}
	l.db = db
	return nil
}

// do runs one command: on the node that holds its key, or on any if it has none.
func (s *session) do(ctx context.Context, args ...string) (value, error) {
	key := keyOf(args)
	n, err := s.owner(ctx, key)
	if err != nil {
		return value{}, err
	}
	if n != s && key != "" {
		r, err := s.exec(ctx, 0, []unit{{key, []command{args}}})
		if err == nil {
			err = r[0][0].err()
		}
		if err != nil {
			return value{}, fmt.Errorf("%s: %w", args[0], err)
		}
		return r[0][0], nil
	}
	l, err := n.open(ctx)
	if err != nil {
		return value{}, err
	}
	return l.do(ctx, args...)
}

func (s *session) open(ctx context.Context) (*link, error) {
	l, err := s.connected(ctx)
	if err == nil && s.admit != nil {
		err = s.admit(ctx, l)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (s *session) connected(ctx context.Context) (*link, error) {
	if s.link != nil && !s.link.dead {
		if time.Since(s.link.used) < idleTime {
			return s.link, nil
		}
		// Servers end connections that were idle for some minutes ("timeout" in redis.conf).
		if _, err := s.link.do(ctx, "PING"); err == nil {
			return s.link, nil
		}
		s.link.close()
	}
	l, err := dial(ctx, s.endpoint, s.name, false)
	if err != nil {
		return nil, err
	}
	if s.exclusive {
		if err := endNamesakes(ctx, l, s.name); err != nil {
			l.close()
			return nil, err
		}
	}
	s.link = l
	return l, nil
}

// endNamesakes ends every other connection of this one's role, and refuses to go on where one belongs to a later term: a process that
// has lost the lead without knowing can't write again.
func endNamesakes(ctx context.Context, l *link, name string) error {
	id, err := l.do(ctx, "CLIENT", "ID")
	if err != nil {
		return err
	}
	clients, err := listClients(ctx, l)
	if err != nil {
		return err
	}
	role, term := splitTerm(name)
	for _, c := range clients {
		other, epoch := splitTerm(c.name)
		if other != role || c.id == strconv.FormatInt(id.num, 10) {
			continue
		}
		if epoch > term {
			return superseded(epoch, term)
		}
		if _, err := l.do(ctx, "CLIENT", "KILL", "ID", c.id); err != nil && !isReplyError(err) { // it may have gone by itself
			return err
		}
	}
	return nil
}

var termInName = regexp.MustCompile(`:e(\d+)$`)

// splitTerm takes the term off a connection's name; -1 if it carries none.
func splitTerm(name string) (string, int64) {
	m := termInName.FindStringSubmatchIndex(name)
	if m == nil {
		return name, -1
	}
	term, err := strconv.ParseInt(name[m[2]:m[3]], 10, 64)
	if err != nil {
		return name, -1
	}
	return name[:m[0]], term
}

func superseded(theirs, mine int64) error {
	return &preflight.Hinted{Code: "redis-superseded", Err: fmt.Errorf("another process leads this migration in term %d; this one had term %d", theirs, mine),
		Hint: "nothing to do if you started it; otherwise find the second daemon and stop it"}
}

func (s *session) close() {
	for _, n := range s.nodes {
		n.close()
	}
	if s.link != nil {
		s.link.close()
		s.link = nil
	}
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
