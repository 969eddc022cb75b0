package redissync

import (
	"context"
	"fmt"
	"time"

	"replicator/internal/preflight"
)

// sealed is the length of a pause that is to last until it is ended. CLIENT PAUSE never shortens a pause that is already in force;
// CLIENT UNPAUSE ends it (Redis documentation, "CLIENT PAUSE").
const sealed = 10 * 365 * 24 * time.Hour

// freeze is what this process knows of a freeze that it made.
type freeze struct {
	reverse   bool
	deadline  time.Time
	runID     string
	permanent bool
	fenced    bool
	events    int64 // the feed's count at the fence
	gaps      int64
	calm      *tally // of an origin that can't be held but was found quiet
}

// Check is the preflight of a cutover; it changes nothing.
func (p *Pair) Check(ctx context.Context, reverse bool) []preflight.Finding {
	var out []preflight.Finding
	add := func(code string, s preflight.Severity, side, message, hint string) {
		out = append(out, preflight.Finding{Code: code, Severity: s, Pair: p.o.Name, Side: side, Message: message, Hint: hint})
	}
	if p.err != nil {
		add("redis-url", preflight.Error, "", p.err.Error(), "")
		return out
	}
	p.mu.Lock()
	f, paused := p.active, p.paused
	p.mu.Unlock()
	origin := p.side(reverse)
	switch {
	case f == nil:
		add("redis-not-running", preflight.Error, "", "the pair isn't being synchronised", "start `replicator run` and wait until it streams")
		return out
	case f.reverse != reverse:
		add("redis-direction", preflight.Error, "", "the pair runs in the other direction", "a cutover goes from the source to the target, a rollback back")
		return out
	case paused:
		add("redis-paused", preflight.Error, "", "the copying is paused", "run `replicator resume` first")
	}
	f.mu.Lock()
	ready, gaps, emptied := f.reconciled && f.feed != nil, len(f.holds), f.emptied
	f.mu.Unlock()
	if emptied {
		add("redis-origin-empty", preflight.Error, origin.name, "the "+origin.name+" came back without its data after a restart or failover", "restore it, or mirror the emptiness with: replicator resync --pair "+p.o.Name)
	} else if !ready {
		add("redis-not-caught-up", preflight.Error, "", "the first copy isn't complete, or the "+origin.name+" can't be listened to at the moment", "wait with: replicator wait caught-up")
	} else if gaps > 0 {
		add("redis-reconciling", preflight.Info, "", "both sides are being reconciled after a gap; the freeze waits for that", "")
	}
	if held, err := p.holds(ctx, origin); err != nil {
		_, x := problemOf(err, origin, "")
		add(x.Code, preflight.Error, origin.name, x.Message, x.Hint)
	} else if !held {
		add("redis-pause", preflight.Warning, origin.name, "the "+origin.name+" can't hold writes (CLIENT PAUSE … WRITE): the freeze waits until nobody writes there",
			"stop all writers by a hook at: before; the attempt gives up if they don't stop")
	}
	if _, err := p.control(ctx, p.side(!reverse), command{"PING"}); err != nil {
		_, x := problemOf(err, p.side(!reverse), "")
		add(x.Code, preflight.Error, x.Side, x.Message, x.Hint)
	}
	if len(out) == 0 {
		add("redis-ready", preflight.OK, "", "the pair is ready to be moved", "")
	}
	return out
}

// Prepare does before the freeze what takes time: it compares all keys so that only those touched later remain to be compared in the
// freeze, and catches up. It ends under any load: it compares each key a bounded number of times, and waits for no more than what was
// dirty when it came to waiting.
func (p *Pair) Prepare(ctx context.Context, reverse bool) error {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return err
	}
	if _, err := f.ready(ctx, true); err != nil {
		return err
	}
	for pass := 0; pass < 2 || pass < maxPasses && !f.compared(); pass++ { // from the second one on, only what was touched meanwhile
		r, err := p.verify(ctx, f, pass == 0, false)
		if err != nil {
			return err
		}
		if r.Mismatches > 0 {
			return fmt.Errorf("redis pair %s: %d keys differ before the freeze, such as %s: make both sides equal with: replicator resync --pair %s", p.o.Name, r.Mismatches, r.Differences[0], p.o.Name)
		}
	}
	return p.CaughtUp(ctx)
}

// maxPasses bounds the comparisons before a freeze: a gap makes all keys to be compared anew.
const maxPasses = 4

// compared tells whether all keys were compared and only those touched since remain.
func (f *flow) compared() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verifiedFull
}

// flowFor waits for the flow that copies in the given direction.
func (p *Pair) flowFor(ctx context.Context, reverse bool) (*flow, error) {
	f, err := p.current(ctx)
	if err != nil {
		return nil, err
	}
	if f.reverse != reverse {
		return nil, fmt.Errorf("redis pair %s runs in the %s direction already", p.o.Name, direction(f.reverse))
	}
	return f, nil
}

// Freeze holds all writes on the origin until deadline (CLIENT PAUSE … WRITE). Reads go on. When the deadline passes, the server
// lets the held writes run by itself. It acts at once: every write was executed before it or waits. On an origin that can't hold writes it
// returns once nobody has written for a while, and nothing is held: whoever writes later makes the attempt fail (see quiet.go).
func (p *Pair) Freeze(ctx context.Context, reverse bool, deadline time.Time) error {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return err
	}
	origin := p.side(reverse)
	p.mu.Lock()
	already := p.frozen != nil && p.frozen.reverse == reverse
	p.mu.Unlock()
	if reverse && !already {
		if err := p.markElsewhere(ctx); err != nil {
			return err
		}
	}
	held, err := p.holds(ctx, origin)
	if err != nil {
		return err
	}
	if !held {
		return p.freezeQuietly(ctx, f, deadline)
	}
	runID, err := p.pause(ctx, origin, time.Until(deadline))
	if err != nil {
		return err
	}
	f.queue.rush(true)
	p.mu.Lock()
	if p.frozen == nil || p.frozen.reverse != reverse {
		p.frozen = &freeze{reverse: reverse, runID: runID}
	}
	p.frozen.runID, p.frozen.deadline, p.frozen.fenced = runID, deadline, false
	p.mu.Unlock()
	return nil
}

// Renew moves the deadline of a freeze. It fails if the freeze may have ended meanwhile.
func (p *Pair) Renew(ctx context.Context, reverse bool, deadline time.Time) error {
	p.mu.Lock()
	fz := p.frozen
	p.mu.Unlock()
	if fz == nil && p.Waiting() != "" {
		return nil // Freeze waits for writers to stop; there is nothing to renew yet
	}
	if fz == nil || fz.reverse != reverse {
		return p.Freeze(ctx, reverse, deadline)
	}
	if fz.calm != nil {
		return p.renewQuietly(ctx, fz, deadline)
	}
	if err := p.unbroken(fz); err != nil {
		return err
	}
	runID, err := p.pause(ctx, p.side(reverse), time.Until(deadline))
	if err != nil {
		return err
	}
	if runID != fz.runID {
		return fmt.Errorf("freeze the %s: the server was restarted or replaced, which ended the freeze", p.side(reverse).name)
	}
	p.mu.Lock()
	if p.frozen == fz && deadline.After(fz.deadline) {
		fz.deadline = deadline
	}
	p.mu.Unlock()
	return nil
}

// unbroken tells whether the freeze's deadline is still ahead.
func (p *Pair) unbroken(fz *freeze) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().After(fz.deadline) {
		return fmt.Errorf("freeze the %s: the deadline has passed and held writes have run: try again with a larger freeze budget", p.side(fz.reverse).name)
	}
	return nil
}

// Fence notes everything that was written before the freeze: when it returns, all of it is in the queue.
func (p *Pair) Fence(ctx context.Context, reverse bool) error {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return err
	}
	s := &session{endpoint: f.origin.endpoint, name: p.o.connectionName(f.role("fence"))}
	defer s.close()
	if err := f.lookNow(ctx); err != nil { // a SWAPDB or a restart just before the freeze
		return fmt.Errorf("fence: %w", err)
	}
	if err := f.syncFunctions(ctx, s); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	f.markStreams()
	f.queue.rush(true)
	if _, err := f.fence(ctx); err != nil {
		return fmt.Errorf("fence: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if fz := p.frozen; fz != nil && fz.reverse == reverse {
		fz.fenced, fz.events, fz.gaps = true, f.events.Load(), f.gaps.Load()
	}
	return nil
}

// Drain returns when the destination has everything up to the fence; nothing more is written to it from then on.
func (p *Pair) Drain(ctx context.Context, reverse bool) error {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return err
	}
	for {
		if err := f.queue.await(ctx, f.queue.state().last); err != nil {
			return fmt.Errorf("drain redis pair %s with %d keys left: %w", p.o.Name, f.queue.state().pending, err)
		}
		if err := f.gate.shut(ctx, shutDrained); err != nil {
			return err
		}
		if f.queue.state().first == 0 {
			return nil
		}
		p.mu.Lock()
		quiet := p.frozen != nil && p.frozen.calm != nil
		p.mu.Unlock()
		if quiet && p.pendingSame(ctx, f) == nil {
			return nil // keys that expire make events; they expire there as well
		}
		f.gate.open(shutDrained) // something was marked between the two: the fence's own recopy of streams, or a reconcile
	}
}

// Sequences does nothing: Redis has none.
func (p *Pair) Sequences(context.Context, bool) error { return nil }

// Verify compares the keys that were touched since they were last compared, or all of them if that isn't known, and returns how many
// differ. It is meant for the freeze, after Drain.
func (p *Pair) Verify(ctx context.Context, reverse bool) (int, error) {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return 0, err
	}
	if err := f.lookNow(ctx); err != nil {
		return 0, fmt.Errorf("verify: %w", err)
	}
	r, err := p.verify(ctx, f, false, true)
	if err != nil {
		return 0, err
	}
	for _, d := range r.Differences {
		p.log.Warn("a key differs", "difference", d.String())
	}
	return r.Mismatches, nil
}

// Seal makes the freeze permanent. It fails, without effect on the data, if anything was written on the origin since the fence.
func (p *Pair) Seal(ctx context.Context, reverse bool) error {
	origin := p.side(reverse)
	p.mu.Lock()
	fz, f := p.frozen, p.active
	p.mu.Unlock()
	known := fz != nil && fz.reverse == reverse && !fz.permanent && f != nil && f.reverse == reverse
	switch {
	case known && fz.calm != nil:
		return p.sealQuietly(ctx, f, fz)
	case known:
		if err := p.unbroken(fz); err != nil {
			return err
		}
	default:
		if held, err := p.holds(ctx, origin); err != nil || !held {
			return err
		}
	}
	runID, err := p.pause(ctx, origin, sealed)
	if err != nil {
		return err
	}
	if !known {
		return nil // a repetition, or a process that takes over a switch already decided
	}
	if err := p.untouched(ctx, fz, f, runID); err != nil {
		return err
	}
	p.mu.Lock()
	fz.permanent, fz.deadline = true, time.Now().Add(sealed)
	p.mu.Unlock()
	return nil
}

// untouched proves that the origin is as it was at the fence: the feed, asked again under the permanent pause, has reported nothing.
func (p *Pair) untouched(ctx context.Context, fz *freeze, f *flow, runID string) error {
	if runID != fz.runID {
		return fmt.Errorf("seal the %s: the server was restarted or replaced, which ended the freeze", f.origin.name)
	}
	if _, err := f.fence(ctx); err != nil {
		return err
	}
	if err := f.lookNow(ctx); err != nil { // has either side lost data, or been flushed?
		return fmt.Errorf("seal: %w", err)
	}
	if n := f.events.Load() - fz.events; fz.fenced && (n != 0 || f.gaps.Load() != fz.gaps) {
		return fmt.Errorf("seal the %s: %d changes and %d gaps came after the fence: another client may have ended the pause (CLIENT UNPAUSE), or a server was restarted; start again", f.origin.name, n, f.gaps.Load()-fz.gaps)
	}
	return nil
}
