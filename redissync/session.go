package redissync

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"replicator/internal/preflight"
)

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
