package redissync

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/preflight"
)

// redirectTime bounds how long commands are sent after slots that are being moved before the exchange fails and is tried anew.
const redirectTime = 3 * time.Second

// node returns the session for one address of a cluster, unconnected at first.
func (s *session) node(address string) *session {
	if s.nodes == nil {
		s.nodes = map[string]*session{}
	}
	n := s.nodes[address]
	if n == nil {
		n = &session{endpoint: s.endpoint.at(address), name: s.name, exclusive: s.exclusive, admit: s.admit}
		s.nodes[address] = n
	}
	return n
}

// everyNode calls f with a session for each primary, one after the other; for a single server, with s itself.
func (s *session) everyNode(ctx context.Context, f func(*session) error) error {
	l, err := s.layout(ctx)
	if err != nil {
		return err
	}
	if !l.cluster {
		return f(s)
	}
	for _, n := range l.nodes {
		if err := f(s.node(n.address)); err != nil {
			if !isReplyError(err) {
				s.endpoint.topology.doubt()
			}
			return err
		}
	}
	return nil
}

// route runs each unit on the node that holds its key, and follows redirections (Redis documentation, "Redis cluster specification",
// MOVED and ASK). What a node redirects it hasn't executed.
func (s *session) route(ctx context.Context, db int, units []unit) ([][]value, error) {
	out := make([][]value, len(units))
	units = slices.Clone(units) // what remains of each
	todo := make([]int, len(units))
	for i := range todo {
		todo[i] = i
	}
	asked := map[int]string{}
	began := time.Now()
	for attempt := 0; ; attempt++ {
		l, err := s.layout(ctx)
		if err != nil {
			return nil, err
		}
		groups := map[string][]int{}
		var last error
		var left []int
		for _, i := range todo {
			address := asked[i]
			if address == "" {
				shard := l.shard(units[i].key)
				if shard < 0 {
					last = fmt.Errorf("slot %d is held by no primary", slotOf(units[i].key))
					left = append(left, i)
					continue
				}
				address = l.nodes[shard].address
			}
			groups[address] = append(groups[address], i)
		}
		replies := make([][]value, len(units))
		if err := s.runGroups(ctx, db, units, groups, asked, replies); err != nil {
			s.endpoint.topology.doubt()
			return nil, err
		}
		for address, is := range groups {
			for _, i := range is {
				n, r, ok := redirectionOf(units[i].cmds, replies[i])
				out[i] = append(out[i], replies[i][:n]...)
				if !ok {
					continue
				}
				units[i].cmds = units[i].cmds[n:]
				delete(asked, i)
				left = append(left, i)
				last = r
				if ask, ok := strings.CutPrefix(string(r), "ASK "); ok {
					_, to, _ := strings.Cut(ask, " ")
					host, port, err := net.SplitHostPort(to)
					if err != nil {
						return nil, fmt.Errorf("redirection %q", string(r))
					}
					if host == "" {
						host, _, _ = net.SplitHostPort(address)
					}
					asked[i] = net.JoinHostPort(host, port)
				}
			}
		}
		if len(left) == 0 {
			return out, nil
		}
		if time.Since(began) > redirectTime {
			// Not a reply's error: it says nothing of the key.
			return nil, &preflight.Hinted{Code: "redis-busy", Err: fmt.Errorf("the cluster is moving slots or lacks some: %s", last.Error()),
				Hint: "replicator tries again by itself; if it lasts, see CLUSTER INFO for what the cluster lacks"}
		}
		todo = left
		if len(asked) < len(left) {
			s.endpoint.topology.doubt()
		}
		if attempt > 0 {
			timer := time.NewTimer(min(time.Duration(attempt)*10*time.Millisecond, 200*time.Millisecond))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil, ctx.Err()
			}
		}
	}
}

// runGroups runs each node's units as one pipeline, all nodes at once.
func (s *session) runGroups(ctx context.Context, db int, units []unit, groups map[string][]int, asked map[int]string, out [][]value) error {
	if len(groups) == 1 {
		for address, is := range groups {
			return s.node(address).runGroup(ctx, db, units, is, asked, out)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for address, is := range groups {
		n := s.node(address)
		g.Go(func() error { return n.runGroup(ctx, db, units, is, asked, out) })
	}
	return g.Wait()
}

func (s *session) runGroup(ctx context.Context, db int, units []unit, is []int, asked map[int]string, out [][]value) error {
	mine := make([]unit, len(is))
	for k, i := range is {
		mine[k] = units[i]
		if asked[i] != "" {
			mine[k].cmds = asking(units[i].cmds)
		}
	}
	if db != 0 { // most clusters have no other
		if err := s.enter(ctx, db); err != nil {
			return err
		}
	}
	replies, err := s.execHere(ctx, db, mine)
	if err != nil {
		return err
	}
	for k, i := range is {
		out[i] = replies[k]
		if asked[i] != "" {
			out[i] = answered(units[i].cmds, replies[k])
		}
	}
	return nil
}

// asking puts ASKING before each command that stands by itself, and before each transaction, for whose length it holds.
func asking(cmds []command) []command {
	var out []command
	within := false
	for _, c := range cmds {
		if !within {
			out = append(out, command{"ASKING"})
		}
		within = (within || c[0] == "MULTI") && c[0] != "EXEC"
		out = append(out, c)
	}
	return out
}

// answered leaves the replies to ASKING out.
func answered(cmds []command, replies []value) []value {
	var out []value
	within := false
	at := 0
	for _, c := range cmds {
		if !within {
			at++
		}
		within = (within || c[0] == "MULTI") && c[0] != "EXEC"
		out = append(out, replies[at])
		at++
	}
	return out
}

// redirectionOf tells how many of a unit's commands were run, and returns the reply by which the node declined the next because of its slot. It
// has declined all that follow as well, and of a transaction every command.
func redirectionOf(cmds []command, replies []value) (run int, r replyError, ok bool) {
	within := false
	for i, v := range replies {
		if !within {
			run = i
		}
		within = (within || cmds[i][0] == "MULTI") && cmds[i][0] != "EXEC"
		if v.kind != kindError {
			continue
		}
		word, _, _ := strings.Cut(v.str, " ")
		switch word {
		case "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN":
			return run, replyError(v.str), true
		}
	}
	return len(replies), "", false
}

// owner is the session that a key's commands go through: s itself for a single server. Without a key, any primary's.
func (s *session) owner(ctx context.Context, key string) (*session, error) {
	l, err := s.layout(ctx)
	if err != nil || !l.cluster {
		return s, err
	}
	shard := 0
	if key != "" {
		shard = max(l.shard(key), 0)
	}
	return s.node(l.nodes[shard].address), nil
}
