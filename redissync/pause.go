package redissync

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Where CLIENT PAUSE … WRITE is known and allowed, the origin itself holds all writes. Elsewhere whoever writes is stopped by hooks, and
// quiet.go proves that nobody does.

// holds tells whether the origin can hold writes itself: on every primary, together with what ends that again, and with what ends the clients
// whose writes were held. An error says that it couldn't be found out.
func (p *Pair) holds(ctx context.Context, at side) (bool, error) {
	_, err := p.control(ctx, at, command{"MULTI"}, command{"DISCARD"})
	if err == nil { // a pause of no length shortens none that is in force, and delays nobody
		_, err = p.control(ctx, at, command{"CLIENT", "PAUSE", "0", "WRITE"})
	}
	if err == nil { // what is queued and discarded isn't run, but refused if it isn't allowed
		_, err = p.control(ctx, at, command{"MULTI"}, command{"CLIENT", "KILL", "TYPE", "normal"}, command{"CLIENT", "UNPAUSE"}, command{"DISCARD"})
	}
	switch {
	case err == nil:
		return true, nil
	case isReplyError(err):
		p.log.Debug("writes can't be held", "side", at.name, "error", err)
		return false, nil
	}
	return false, fmt.Errorf("ask whether the %s can hold writes: %w", at.name, err)
}

// pause pauses writes for at least d on every primary and returns the server's run id, or those of all.
func (p *Pair) pause(ctx context.Context, at side, d time.Duration) (string, error) {
	if d < time.Millisecond {
		return "", fmt.Errorf("freeze the %s: the deadline has passed", at.name)
	}
	s := &session{endpoint: at.endpoint, name: p.o.connectionName("layout")}
	defer s.close()
	for {
		before, err := s.layout(ctx)
		if err != nil {
			return "", fmt.Errorf("freeze the %s: %w", at.name, err)
		}
		vs, err := p.everywhere(ctx, at, command{"CLIENT", "PAUSE", strconv.FormatInt(d.Milliseconds(), 10), "WRITE"}, command{"INFO", "server"})
		if err != nil {
			return "", fmt.Errorf("freeze the %s: %w", at.name, err)
		}
		// A primary that came to slots meanwhile isn't held yet.
		after, err := s.agreed(ctx)
		if err != nil {
			return "", fmt.Errorf("freeze the %s: %w", at.name, err)
		}
		if before.sign != after.sign {
			continue
		}
		var ids []string
		for _, v := range vs {
			info := serverInfo{databases: map[int]int64{}, calls: map[string]int64{}, fields: map[string]string{}}
			info.parse(v.str)
			ids = append(ids, info.runID)
		}
		return strings.Join(ids, ","), nil
	}
}

// unpause ends a pause. A side whose writes can't be held has none.
func (p *Pair) unpause(ctx context.Context, at side) error {
	_, err := p.control(ctx, at, command{"CLIENT", "UNPAUSE"})
	if isReplyError(err) {
		held, herr := p.holds(ctx, at)
		if herr != nil {
			return herr
		}
		if !held {
			return nil
		}
	}
	return err
}

// evict ends the clients of a side and the pause in one transaction: a held write runs when the pause ends unless its client is gone. Clients
// of class pubsub may hold writes too, in RESP3. Where nothing was held, clients are ended only so that they look for the other side.
func (p *Pair) evict(ctx context.Context, at side) error {
	held, err := p.holds(ctx, at)
	if err != nil {
		return fmt.Errorf("retire the %s: %w", at.name, err)
	}
	normal, pubsub := command{"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"}, command{"CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"}
	if !held {
		for _, c := range []command{normal, pubsub} {
			if _, err := p.control(ctx, at, c); isReplyError(err) {
				p.log.Warn("connections to the side that was left can't be ended: see that the application lets go of them", "side", at.name, "error", err)
			} else if err != nil {
				return fmt.Errorf("retire the %s: %w", at.name, err)
			}
		}
		return nil
	}
	vs, err := p.everywhere(ctx, at, command{"MULTI"}, normal, pubsub, command{"CLIENT", "UNPAUSE"}, command{"EXEC"})
	if err != nil {
		return fmt.Errorf("retire the %s: %w", at.name, err)
	}
	var ended int64
	for _, v := range vs {
		for _, r := range v.items {
			if err := r.err(); err != nil {
				return fmt.Errorf("retire the %s: %w", at.name, err)
			}
		}
		if len(v.items) == 3 {
			ended += v.items[0].num + v.items[1].num
		}
	}
	p.log.Info("ended the connections to the side that was left", "side", at.name, "connections", ended)
	return nil
}
