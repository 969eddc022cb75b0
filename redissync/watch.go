package redissync

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// runWatch looks at both servers every second for what the feed can't tell: restarts, failovers, SWAPDB and FLUSH, consumer groups,
// and strangers that write on the destination.
func (f *flow) runWatch(ctx context.Context) error {
	origin := &session{endpoint: f.origin.endpoint, name: f.pair.o.connectionName(f.role("watch"))}
	destination := &session{endpoint: f.destination.endpoint, name: f.pair.o.connectionName(f.role("watch"))}
	defer origin.close()
	defer destination.close()
	err := retry.Do(ctx, f.policy("clock", f.destination), func(ctx context.Context) error {
		offset, slack, err := clockOffset(ctx, origin, destination)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.offset, f.slack, f.clocked = offset, slack, true
		f.wake()
		f.mu.Unlock()
		return nil
	})
	if err != nil {
		return err
	}
	f.pair.solved(f.destination.name, direction(f.reverse)+" clock")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		for _, at := range []struct {
			side  side
			check func() error
		}{
			{f.origin, func() error { return f.originEye.look(ctx, f.lookAtOrigin) }},
			{f.destination, func() error { return f.destinationEye.look(ctx, f.lookAtDestination) }},
			{f.origin, func() error { return f.prove(ctx) }},
			{f.origin, func() error { return f.pollStreams(ctx, origin) }},
		} {
			err := at.check()
			if err != nil && !errors.Is(err, errUnproved) {
				err = at.check() // a connection that was ended meanwhile needs no mention
			}
			if err != nil && ctx.Err() == nil && !errors.Is(err, errUnproved) {
				f.pair.problem(problemOf(err, at.side, direction(f.reverse)+" watch"))
			} else if err == nil {
				f.pair.solved(at.side.name, direction(f.reverse)+" watch")
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lookAtOrigin compares the origin with how it was last seen, and notes a gap where changes may have happened unreported.
func (f *flow) lookAtOrigin(ctx context.Context, s *session) error {
	y, err := s.relearn(ctx)
	if err != nil {
		return err
	}
	f.covers(y)
	info, err := readInfo(ctx, s, "server", "replication", "keyspace", "commandstats")
	if err != nil {
		return err
	}
	now := seen{ok: true, layout: y.sign, runID: info.runID, replID: info.replID, upheavals: info.upheavals(), functions: info.functionCalls()}
	f.mu.Lock()
	was := f.originSeen
	f.originSeen, f.originInfo = now, info
	f.wake()
	f.mu.Unlock()
	switch {
	case !was.ok:
	case was.runID != now.runID:
		f.gap("the origin was restarted or replaced")
	case was.replID != now.replID:
		f.gap("the origin has failed over")
	case was.layout != now.layout:
		f.gap("the origin's primaries or their slots have changed")
	case was.upheavals != now.upheavals:
		f.gap("SWAPDB, FLUSH or slots on the move on the origin")
	}
	f.judgeRole(info, f.origin)
	return nil
}

// lookNow looks at both servers at once, for what happened just before.
func (f *flow) lookNow(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.originEye.look(ctx, f.lookAtOrigin) })
	g.Go(func() error { return f.destinationEye.look(ctx, f.lookAtDestination) })
	return g.Wait()
}

// eye is a connection for looking at one server. Readings are made one after the other, since they are compared in that order.
type eye struct {
	turn    chan struct{}
	session *session
}

func (f *flow) newEye(at side) *eye {
	return &eye{turn: make(chan struct{}, 1), session: &session{endpoint: at.endpoint, name: f.pair.o.connectionName(f.role("look"))}}
}

func (e *eye) look(ctx context.Context, look func(context.Context, *session) error) error {
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	err := look(ctx, e.session)
	if err != nil && !isReplyError(err) && ctx.Err() == nil {
		err = look(ctx, e.session) // the connection had been ended meanwhile
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", e.session.endpoint.address, err)
	}
	return nil
}

func (e *eye) close() {
	e.turn <- struct{}{}
	e.session.close()
	<-e.turn
}

func (f *flow) judgeRole(info serverInfo, at side) {
	key := direction(f.reverse) + " role"
	if info.role == "master" {
		f.pair.solved(at.name, key)
		return
	}
	f.pair.problem(at.name+" "+key, preflight.Finding{Code: "redis-not-primary", Severity: preflight.Error, Side: at.name,
		Message: "the " + at.name + " Redis is a replica", Hint: "give the address of the primary, as the provider's primary endpoint does"})
}

// writes are the commands by which applications change keys (Redis documentation, "Command reference"), without those that
// replicator itself runs on a destination, whose counts tell nothing about strangers: RESTORE, UNLINK, PSETEX, HSETNX.
var writes = strings.Fields(`append bitfield bitop blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin copy decr decrby expire
	expireat flushall flushdb geoadd georadius georadiusbymember geosearchstore getdel getex getset hdel hexpire hexpireat hgetdel hgetex hincrby
	hincrbyfloat hmset hpersist hpexpire hpexpireat hset hsetex incr incrby incrbyfloat linsert lmove lmpop lpop lpush lpushx lrem lset ltrim move mset msetnx persist
	pexpire pexpireat pfadd pfmerge rename renamenx rpop rpoplpush rpush rpushx sadd sdiffstore set setbit setex setnx setrange
	sinterstore smove sort spop srem sunionstore swapdb xack xadd xautoclaim xclaim xdel xreadgroup xsetid xtrim zadd zdiffstore
	zincrby zinterstore zmpop zpopmax zpopmin zrangestore zrem zremrangebylex zremrangebyrank zremrangebyscore zunionstore`)

// settleTime is how long after a restart, a failover or a move of slots the destination's counts may tell of writes of ours: those that were
// counted before and run after.
const settleTime = 10 * time.Second

// lookAtDestination notes a gap where the destination has lost or changed data, and names strangers that write there.
func (f *flow) lookAtDestination(ctx context.Context, s *session) error {
	y, err := s.relearn(ctx)
	if err != nil {
		return err
	}
	info, err := readInfo(ctx, s, "server", "replication", "keyspace", "commandstats", "stats", "memory")
	if err != nil {
		return err
	}
	now := seen{ok: true, layout: y.sign, evicted: info.evictions(), memory: info.fields["maxmemory"] + " " + info.fields["maxmemory_policy"], version: info.version, fieldExpiry: info.fieldExpiry(), runID: info.runID, replID: info.replID, upheavals: info.upheavals(), calls: map[string]int64{}}
	f.mu.Lock()
	was := f.destSeen
	for _, c := range writes {
		now.calls[c] = info.calls[c] - f.written[c]
		if was.runID == now.runID { // what we have counted but not sent yet is no stranger's either
			now.calls[c] = max(now.calls[c], was.calls[c])
		}
	}
	f.destSeen = now
	if was.ok && (was.runID != now.runID || was.layout != now.layout) {
		f.reset = time.Now()
	}
	settling := time.Since(f.reset) < settleTime
	f.wake()
	f.mu.Unlock()
	f.judgeRole(info, f.destination)
	if !was.ok {
		return nil
	}
	switch {
	case was.runID != now.runID:
		f.noted.Store(nil)
		f.gap("the destination was restarted or replaced")
		return nil
	case was.replID != now.replID:
		f.gap("the destination has failed over")
	case was.layout != now.layout:
		f.gap("the destination's primaries or their slots have changed")
	case was.upheavals != now.upheavals:
		f.noted.Store(nil)
		f.gap("SWAPDB, FLUSH or slots on the move on the destination")
	}
	f.sawEvictions(was, now)
	var strays int64
	var names []string
	for _, c := range writes {
		if d := now.calls[c] - was.calls[c]; d > 0 {
			strays += d
			names = append(names, c)
		}
	}
	if strays > 0 && !settling && !f.gate.shutFor(shutDrained) { // drained: the application may have been let in already
		total := f.pair.strays.Add(strays)
		who := ""
		if clients := writingClients(ctx, s); len(clients) > 0 {
			who = " by " + strings.Join(clients, ", ")
		}
		f.pair.problemFor(f.destination.name+" strays", preflight.Finding{Code: "redis-stray-writes", Severity: preflight.Warning, Side: f.destination.name,
			Message: fmt.Sprintf("%d write commands (lately %s) were run%s on the %s Redis, which only follows the %s", total, strings.Join(names[:min(len(names), 5)], ", "), who, f.destination.name, f.origin.name),
			Hint:    "find with CLIENT LIST who still writes there and point it to the " + f.origin.name + "; then make both sides equal with: replicator resync --pair " + f.pair.o.Name}, 10*time.Minute)
	}
	return nil
}

// pollStreams marks streams whose consumer groups have changed: XACK, XCLAIM and XREADGROUP are reported by no feed.
func (f *flow) pollStreams(ctx context.Context, s *session) error {
	f.mu.Lock()
	ids := slices.Collect(maps.Keys(f.streams))
	f.mu.Unlock()
	byDB := map[int][]keyID{}
	for _, id := range ids {
		byDB[id.db] = append(byDB[id.db], id)
	}
	for db, ids := range byDB {
		for ids := range slices.Chunk(ids, batchKeys) {
			units := make([]unit, len(ids))
			for i, id := range ids {
				units[i] = unit{id.key, []command{{"XINFO", "GROUPS", id.key}}}
			}
			replies, err := s.exec(ctx, db, units)
			if err != nil {
				return err
			}
			for i, r := range replies {
				sign := ""
				if r[0].err() == nil && len(r[0].items) > 0 {
					sign = fmt.Sprint(r[0].items)
				}
				f.mu.Lock()
				was, known := f.streams[ids[i]]
				if known {
					f.streams[ids[i]] = sign
				}
				f.mu.Unlock()
				if known && was != sign {
					f.queue.mark(ids[i])
				}
			}
		}
	}
	return nil
}

// markStreams marks every stream among some keys, or every one there is if none are given, as a freeze wants it.
func (f *flow) markStreams(among ...keyID) {
	f.mu.Lock()
	ids := slices.Collect(maps.Keys(f.streams))
	if len(among) > 0 {
		ids = slices.DeleteFunc(slices.Clone(among), func(id keyID) bool { _, known := f.streams[id]; return !known })
	}
	f.mu.Unlock()
	if len(ids) > 0 {
		f.queue.mark(ids...)
	}
}
