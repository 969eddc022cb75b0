package redissync

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// control runs commands that may be repeated on a connection kept for that purpose, once more if the connection had gone, and
// returns the last reply. In a cluster, commands on a key go to the key's node and all others to every primary.
func (p *Pair) control(ctx context.Context, at side, cmds ...command) (value, error) {
	if key := keyOf(cmds[0]); key != "" {
		return p.onKey(ctx, at, key, cmds)
	}
	vs, err := p.everywhere(ctx, at, cmds...)
	if err != nil {
		return value{}, err
	}
	return vs[len(vs)-1], nil
}

// everywhere is control on every primary, and returns the last reply of each.
func (p *Pair) everywhere(ctx context.Context, at side, cmds ...command) (out []value, err error) {
	err = p.withControl(at, "control", func(s *session) error {
		out = nil
		return s.everyNode(ctx, func(n *session) error {
			v, err := repeated(ctx, n, at, cmds)
			out = append(out, v)
			return err
		})
	})
	return out, err
}

// onEach calls f with the session of each primary on which control's commands are run.
func (p *Pair) onEach(ctx context.Context, at side, f func(*session) error) error {
	return p.withControl(at, "control", func(s *session) error { return s.everyNode(ctx, f) })
}

func (p *Pair) onKey(ctx context.Context, at side, key string, cmds []command) (v value, err error) {
	err = p.withControl(at, "keys", func(s *session) error {
		n, err := s.owner(ctx, key)
		if err != nil {
			return err
		}
		if n == s {
			v, err = repeated(ctx, s, at, cmds)
			return err
		}
		r, err := s.exec(ctx, 0, []unit{{key, cmds}})
		if err != nil && !isReplyError(err) && ctx.Err() == nil {
			r, err = s.exec(ctx, 0, []unit{{key, cmds}}) // the connection had gone
		}
		if err != nil {
			return err
		}
		v, err = lastOf(r[0], at, cmds)
		return err
	})
	return v, err
}

// control is a connection that is kept, and who uses it.
type control struct {
	mu      sync.Mutex
	session *session
}

// withControl runs f with the connection that is kept for a purpose on a side. Commands on keys have one of their own: a pause holds them up,
// and must not hold up what ends it.
func (p *Pair) withControl(at side, purpose string, f func(*session) error) error {
	p.controlMu.Lock()
	c := p.controls[at.name+" "+purpose]
	if c == nil {
		c = &control{session: &session{endpoint: at.endpoint, name: p.o.connectionName(purpose)}}
		p.controls[at.name+" "+purpose] = c
	}
	p.controlMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	return f(c.session)
}

// endControls closes the connections that are kept.
func (p *Pair) endControls() {
	p.controlMu.Lock()
	all := slices.Collect(maps.Values(p.controls))
	p.controlMu.Unlock()
	for _, c := range all {
		c.mu.Lock()
		c.session.close()
		c.mu.Unlock()
	}
}

// repeated runs commands on one server, twice if the first connection had been used before and breaks.
func repeated(ctx context.Context, s *session, at side, cmds []command) (value, error) {
	for attempt := 0; ; attempt++ {
		fresh := s.link == nil || s.link.dead
		l, err := s.open(ctx)
		if err != nil {
			return value{}, err
		}
		vs, err := l.pipe(ctx, cmds)
		if err != nil {
			if fresh || attempt > 0 || ctx.Err() != nil {
				return value{}, err
			}
			continue
		}
		return lastOf(vs, at, cmds)
	}
}

func lastOf(vs []value, at side, cmds []command) (value, error) {
	for i, v := range vs {
		if err := v.err(); err != nil {
			return value{}, fmt.Errorf("%s on the %s: %w", strings.Join(cmds[i][:min(2, len(cmds[i]))], " "), at.name, err)
		}
	}
	return vs[len(vs)-1], nil
}
