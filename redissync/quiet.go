package redissync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// An origin that can't hold writes itself is proved quiet: for a while no command that writes was counted (INFO commandstats), and the feed
// reported nothing but what expired or was evicted. That stays so until the switch, or the attempt is given up. What expires meanwhile
// expires on the destination as well, at the same instant: such keys are compared rather than copied.

// quietTick is how often an origin is asked whether it is quiet.
const quietTick = 100 * time.Millisecond

// alsoWrites are commands that write and that replicator runs on a destination, but never on an origin in a freeze. PSETEX is left out, by which
// the lead is renewed: the feed reports a stranger's.
var alsoWrites = []string{"restore", "hsetnx", "migrate", "restore-asking"}

// tally is what was written on an origin up to an instant, as far as it counts that.
type tally struct {
	runID   string
	calls   map[string]int64
	unlinks int64 // counted apart, since the journal of a rollback makes some
	removed int64 // keys that expired or were evicted before any event beyond those counted
	expired int64 // the same, and perhaps some more: none beyond these is the cause of an event counted
	events  int64 // changes that the feed reported
	gaps    int64
}

// tally reads what was written so far. Every change that it counts has been reported by the feed.
func (f *flow) tally(ctx context.Context, s *session) (tally, error) {
	info, err := readInfo(ctx, s, "server", "commandstats", "stats")
	if err != nil {
		return tally{}, fmt.Errorf("look at %s: %w", f.origin.name, err)
	}
	if _, err := f.fence(ctx); err != nil {
		return tally{}, err
	}
	t := tally{runID: info.runID, calls: map[string]int64{}, unlinks: info.calls["unlink"], removed: info.removals(), events: f.events.Load(), gaps: f.gaps.Load()}
	// Keys may expire between the reading of the counts and the fence: their events are counted then, and they are not.
	later, err := readInfo(ctx, s, "stats")
	if err != nil {
		return tally{}, fmt.Errorf("look at %s: %w", f.origin.name, err)
	}
	t.expired = later.removals()
	for _, names := range [][]string{writes, alsoWrites} {
		for _, c := range names {
			t.calls[c] = info.calls[c]
		}
	}
	return t, nil
}

// removals counts the keys that a server has removed by itself.
func (i serverInfo) removals() (n int64) {
	for _, field := range []string{"expired_keys", "evicted_keys"} {
		k, _ := strconv.ParseInt(i.fields[field], 10, 64)
		n += k
	}
	return n
}

// since names what was written between two tallies; nothing if the origin was quiet.
func (t tally) since(was tally, unlinks bool) []string {
	if t.runID != was.runID {
		return []string{"a restart or failover"}
	}
	type count struct {
		name string
		n    int64
	}
	var counts []count
	for c, n := range t.calls {
		if d := n - was.calls[c]; d > 0 {
			counts = append(counts, count{c, d})
		}
	}
	if d := t.unlinks - was.unlinks; unlinks && d > 0 {
		counts = append(counts, count{"unlink", d})
	}
	slices.SortFunc(counts, func(a, b count) int { return cmp.Or(cmp.Compare(b.n, a.n), cmp.Compare(a.name, b.name)) })
	var out []string
	for _, c := range counts[:min(len(counts), 6)] {
		out = append(out, fmt.Sprintf("%s (%d)", c.name, c.n))
	}
	switch {
	case len(out) > 0:
	case t.gaps != was.gaps:
		out = append(out, "an interruption of the feed")
	case t.events != was.events && t.expired == was.removed:
		out = append(out, fmt.Sprintf("changes of keys (%d)", t.events-was.events))
	}
	return out
}

// writers is the error that says who doesn't stop.
func (f *flow) writers(ctx context.Context, s *session, what []string) error {
	text := strings.Join(what, ", ")
	if who := writingClients(ctx, s); len(who) > 0 {
		text += " by " + strings.Join(who, ", ")
	}
	return &preflight.Hinted{Code: "redis-writers", Err: fmt.Errorf("the %s Redis, which can't be held by CLIENT PAUSE, is still written to: %s", f.origin.name, text),
		Hint: "stop the writers by a hook at: before, or let replicator's user use CLIENT PAUSE and UNPAUSE there; then start again"}
}

// writingClients names up to three clients that have lately run a command that writes.
func writingClients(ctx context.Context, s *session) (out []string) {
	_ = s.everyNode(ctx, func(n *session) error {
		clients, err := listClients(ctx, n)
		if err != nil {
			return err
		}
		for _, c := range clients {
			word, _, _ := strings.Cut(c.cmd, "|")
			if len(out) < 3 && c.idle <= 2 && slices.Contains(writes, word) && !strings.HasPrefix(c.name, "replicator:") {
				out = append(out, strings.TrimSpace(c.name+" "+c.addr))
			}
		}
		return nil
	})
	return out
}

// awaitQuiet returns when nothing has been written on the origin for as long as Options.QuietFor says. Until then the status says what still is.
func (p *Pair) awaitQuiet(ctx context.Context, f *flow, s *session) (tally, error) {
	key := direction(f.reverse) + " writers"
	p.setWaiting(fmt.Sprintf("writers on the %s Redis to stop", f.origin.name))
	defer p.setWaiting("")
	was, err := f.tally(ctx, s)
	if err != nil {
		return tally{}, err
	}
	since := time.Now()
	tick := time.NewTicker(quietTick)
	defer tick.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return tally{}, errors.Join(last, ctx.Err())
		case <-tick.C:
		}
		now, err := f.tally(ctx, s)
		if err != nil {
			return tally{}, errors.Join(last, err)
		}
		if what := now.since(was, true); len(what) > 0 {
			last = f.writers(ctx, s, what)
			_, finding := problemOf(last, f.origin, key)
			finding.Severity = preflight.Warning
			p.problemFor(f.origin.name+" "+key, finding, time.Minute)
			p.setWaiting(last.Error())
			was, since = now, time.Now()
		} else if time.Since(since) >= p.o.quietFor() {
			p.solved(f.origin.name, key)
			return now, nil
		}
	}
}

// setWaiting notes what a step of a cutover waits for.
func (p *Pair) setWaiting(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = what
}

// Waiting tells what the step under way waits for; empty if nothing particular.
func (p *Pair) Waiting() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting
}

// freezeQuietly is Freeze for an origin that can't be held. It returns once nobody writes there.
func (p *Pair) freezeQuietly(ctx context.Context, f *flow, deadline time.Time) error {
	s := f.quietSession()
	defer s.close()
	calm, err := p.awaitQuiet(ctx, f, s)
	if err != nil {
		return fmt.Errorf("freeze the %s: %w", f.origin.name, err)
	}
	f.queue.rush(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = &freeze{reverse: f.reverse, runID: calm.runID, deadline: deadline, calm: &calm}
	return nil
}

func (f *flow) quietSession() *session {
	return &session{endpoint: f.origin.endpoint, name: f.pair.o.connectionName(f.role("quiet"))}
}

// stillQuiet fails if anything was written since the origin was found quiet.
func (p *Pair) stillQuiet(ctx context.Context, f *flow, calm tally) error {
	s := f.quietSession()
	defer s.close()
	now, err := f.tally(ctx, s)
	if err != nil {
		return err
	}
	if what := now.since(calm, false); len(what) > 0 {
		return f.writers(ctx, s, what)
	}
	return nil
}

// pendingSame fails unless every key that is still dirty is the same on both sides all the same, as keys are that have expired.
func (p *Pair) pendingSame(ctx context.Context, f *flow) error {
	v, done, err := p.newVerifier(ctx, f)
	if err != nil {
		return err
	}
	defer done()
	tick := time.NewTicker(quietTick)
	defer tick.Stop()
	for range rounds {
		ids, more := f.queue.pendingKeys()
		if len(ids) == 0 && !more {
			return nil
		}
		suspects := map[keyID]string{}
		for _, id := range ids {
			suspects[id] = ""
		}
		if suspects, err = v.again(ctx, suspects); err != nil {
			return err
		}
		if len(suspects) == 0 && !more {
			return nil
		}
		if len(suspects) > 0 {
			id := sortedKeys(suspects)[0]
			err = fmt.Errorf("%s was changed on the %s after it was found quiet", Difference{id.db, id.key, suspects[id]}, f.origin.name)
		} else {
			err = fmt.Errorf("the %s is to be compared as a whole again", f.origin.name)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return err
}

// pendingKeys returns the dirty keys, and whether anything else is pending.
func (q *queue) pendingKeys() (ids []keyID, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for el := q.order.Front(); el != nil; el = el.Next() {
		e := el.Value.(*entry)
		if _, hold := q.holds[e]; hold || e.names != nil {
			more = true
		} else {
			ids = append(ids, e.id)
		}
	}
	return ids, more
}

// sealQuietly proves for the last time that the origin is as it was at the fence.
func (p *Pair) sealQuietly(ctx context.Context, f *flow, fz *freeze) error {
	if err := f.lookNow(ctx); err != nil { // has either side lost data, or been flushed?
		return fmt.Errorf("seal: %w", err)
	}
	if err := p.stillQuiet(ctx, f, *fz.calm); err != nil {
		return fmt.Errorf("seal the %s: %w", f.origin.name, err)
	}
	if err := p.pendingSame(ctx, f); err != nil {
		return fmt.Errorf("seal the %s: %w", f.origin.name, err)
	}
	p.mu.Lock()
	fz.permanent, fz.deadline = true, time.Now().Add(sealed)
	p.mu.Unlock()
	return nil
}

// renewQuietly looks whether the origin is still quiet.
func (p *Pair) renewQuietly(ctx context.Context, fz *freeze, deadline time.Time) error {
	f, err := p.flowFor(ctx, fz.reverse)
	if err != nil {
		return err
	}
	if err := p.stillQuiet(ctx, f, *fz.calm); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen == fz && deadline.After(fz.deadline) {
		fz.deadline = deadline
	}
	return nil
}
