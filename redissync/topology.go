package redissync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// topology is what is known of how one side is laid out: a single server, or the primaries of a cluster. All sessions of a side share it.
// Whether a side is a cluster is asked of the server, once (INFO, cluster_enabled).
type topology struct {
	turn chan struct{} // held by the one that asks

	mu    sync.Mutex
	known *layout
	stale bool
}

func newTopology() *topology { return &topology{turn: make(chan struct{}, 1)} }

// layout is one reading. It doesn't change.
type layout struct {
	cluster bool
	nodes   []node // a cluster's primaries in order of their ids, those without slots too: slots may be on their way to them
	owner   [slotCount]int16
	moving  bool   // some slot is being moved, as the node says that was asked
	sign    string // equal for equal layouts
}

// node is one primary of a cluster.
type node struct {
	id, address string
	slots       int
}

// shard is the index of the primary that holds a key; 0 for a single server, -1 while no node holds the slot.
func (l *layout) shard(key string) int {
	if !l.cluster {
		return 0
	}
	return int(l.owner[slotOf(key)])
}

func (l *layout) shards() int {
	if !l.cluster {
		return 1
	}
	return len(l.nodes)
}

// unowned counts the slots that no primary holds.
func (l *layout) unowned() (n int) {
	if !l.cluster {
		return 0
	}
	for _, o := range l.owner {
		if o < 0 {
			n++
		}
	}
	return n
}

// at is the endpoint of one node of a cluster that e leads to.
func (e endpoint) at(address string) endpoint {
	host, _, _ := net.SplitHostPort(address)
	was, _, _ := net.SplitHostPort(e.address)
	e.address, e.topology = address, nil
	// A node that is known by its number shows the certificate of the name under which the cluster was given.
	if e.tls != nil && (net.ParseIP(host) == nil || net.ParseIP(was) != nil) && e.tls.ServerName == was {
		e.tls = e.tls.Clone()
		e.tls.ServerName = host
	}
	return e
}

// doubt has the layout read again before its next use.
func (t *topology) doubt() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stale = true
}

func (t *topology) get() (known *layout, stale bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known, t.stale
}

func (t *topology) set(l *layout) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known, t.stale = l, false
}

var single = &layout{sign: "single"}

// layout returns how the session's side is laid out, as last read.
func (s *session) layout(ctx context.Context) (*layout, error) {
	t := s.endpoint.topology
	if t == nil {
		return single, nil
	}
	known, stale := t.get()
	if known != nil && (!known.cluster || !stale) {
		return known, nil
	}
	return s.relearn(ctx)
}

// relearn reads the layout anew: from a node that is connected, else from any that can be.
func (s *session) relearn(ctx context.Context) (*layout, error) {
	t := s.endpoint.topology
	if t == nil {
		return single, nil
	}
	known, _ := t.get()
	if known != nil && !known.cluster {
		return known, nil
	}
	select {
	case t.turn <- struct{}{}:
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if now, stale := t.get(); now != known && !stale { // somebody else has just read it
		return now, nil
	}
	var addresses []string
	if known != nil {
		for _, n := range known.nodes {
			addresses = append(addresses, n.address)
		}
		slices.SortStableFunc(addresses, func(a, b string) int { return cmp.Compare(s.distance(a), s.distance(b)) })
	}
	var errs []error
	for _, a := range append(addresses, s.endpoint.address) {
		l, err := s.ask(ctx, a)
		if err == nil {
			t.set(l)
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		errs = append(errs, err)
	}
	return nil, errs[len(errs)-1]
}

// distance puts nodes first that are connected.
func (s *session) distance(address string) int {
	if n := s.nodes[address]; n != nil && n.link != nil && !n.link.dead {
		return 0
	}
	return 1
}

// ask reads the layout from one address.
func (s *session) ask(ctx context.Context, address string) (*layout, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	n := &session{endpoint: s.endpoint.at(address), name: s.name}
	if s.distance(address) == 0 {
		n = s.nodes[address]
	} else {
		defer n.close()
	}
	l, err := n.connected(ctx)
	if err != nil {
		return nil, err
	}
	return layoutOn(ctx, l, address)
}

func layoutOn(ctx context.Context, l *link, address string) (*layout, error) {
	info, err := infoOn(ctx, l, "cluster", "server")
	if err != nil {
		return nil, err
	}
	if !info.cluster {
		return single, nil
	}
	vs, err := l.pipe(ctx, []command{{"CLUSTER", "NODES"}, {"CLUSTER", "SLOTS"}})
	if err != nil {
		return nil, err
	}
	for i, what := range []string{"NODES", "SLOTS"} {
		if err := vs[i].err(); err != nil {
			return nil, fmt.Errorf("CLUSTER %s: %w", what, err)
		}
	}
	host, _, _ := net.SplitHostPort(address)
	return parseLayout(vs[0].str, vs[1], host)
}

// parseLayout takes CLUSTER NODES for who is a primary and what it holds, and CLUSTER SLOTS for the address under which clients are to
// find it (Redis documentation, "CLUSTER NODES", "CLUSTER SLOTS"). host stands in where the server doesn't know its own.
func parseLayout(nodes string, slots value, host string) (*layout, error) {
	l := &layout{cluster: true}
	preferred := map[string]string{}
	for _, r := range slots.items {
		if len(r.items) < 3 || len(r.items[2].items) < 3 {
			continue
		}
		n := r.items[2].items
		h := n[0].str
		if h == "" || h == "?" {
			h = host
		}
		preferred[n[2].str] = net.JoinHostPort(h, strconv.FormatInt(n[1].num, 10))
	}
	type line struct {
		node
		ranges []string
	}
	var lines []line
	for text := range strings.Lines(nodes) {
		f := strings.Fields(text)
		if len(f) < 8 {
			continue
		}
		flags := strings.Split(f[2], ",")
		is := func(flag string) bool { return slices.Contains(flags, flag) }
		n := line{node: node{id: f[0]}, ranges: f[8:]}
		for _, r := range n.ranges {
			l.moving = l.moving || strings.HasPrefix(r, "[")
		}
		n.ranges = slices.DeleteFunc(n.ranges, func(r string) bool { return strings.HasPrefix(r, "[") })
		if !is("master") || is("handshake") || is("noaddr") || is("fail") && len(n.ranges) == 0 {
			continue
		}
		address, name, _ := strings.Cut(f[1], ",")
		name, _, _ = strings.Cut(name, ",")
		address, _, _ = strings.Cut(address, "@")
		at := strings.LastIndexByte(address, ':')
		if at < 0 {
			return nil, fmt.Errorf("CLUSTER NODES: address %q", f[1])
		}
		h := cmp.Or(name, strings.Trim(address[:at], "[]"), host)
		n.address = cmp.Or(preferred[n.id], net.JoinHostPort(h, address[at+1:]))
		lines = append(lines, n)
	}
	if len(lines) == 0 {
		return nil, errors.New("CLUSTER NODES: no primary")
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(a.id, b.id) })
	for i := range l.owner {
		l.owner[i] = -1
	}
	var sign strings.Builder
	for i, n := range lines {
		for _, r := range n.ranges {
			from, to, _ := strings.Cut(r, "-")
			a, errA := strconv.Atoi(from)
			b, errB := strconv.Atoi(cmp.Or(to, from))
			if errA != nil || errB != nil || a < 0 || b >= slotCount || a > b {
				return nil, fmt.Errorf("CLUSTER NODES: slots %q", r)
			}
			for slot := a; slot <= b; slot++ {
				l.owner[slot] = int16(i)
			}
			n.slots += b - a + 1
		}
		l.nodes = append(l.nodes, n.node)
		fmt.Fprintf(&sign, "%s %s %v\n", n.id, n.address, n.ranges)
	}
	l.sign = sign.String()
	return l, nil
}

// agreeTime bounds the wait until all primaries of a cluster tell the same of it.
const agreeTime = 3 * time.Second

// agreed reads the layout from every primary and returns once they agree.
func (s *session) agreed(ctx context.Context) (*layout, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, agreeTime, errors.New("the cluster's primaries don't agree on who holds which slots"))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		l, err := s.relearn(ctx)
		if err != nil || !l.cluster {
			return l, err
		}
		same := true
		for _, n := range l.nodes {
			other, err := s.ask(ctx, n.address)
			if err != nil {
				if ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				return nil, fmt.Errorf("ask %s about the cluster: %w", n.address, err)
			}
			same = same && other.sign == l.sign
		}
		if same {
			return l, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}
