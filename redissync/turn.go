package redissync

import (
	"context"
	"errors"
	"fmt"
)

// Arm starts listening on the destination, so that everything written there from now on is known, and proves by a key of its own that the
// feed reports it. Nothing is written back before Retire.
func (p *Pair) Arm(ctx context.Context, reverse bool) error {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return err
	}
	if !f.gate.shutFor(shutDrained) {
		return fmt.Errorf("arm redis pair %s: it isn't drained", p.o.Name)
	}
	p.mu.Lock()
	o := p.opposite
	fresh := o == nil
	if fresh {
		o = newFlow(p, !reverse, true)
		p.opposite = o
	}
	p.mu.Unlock()
	if fresh {
		o.learn(*f.known.Load())
		o.inherit(f)
		if err := p.start(ctx, o); err != nil {
			p.mu.Lock()
			p.opposite = nil
			p.mu.Unlock()
			return err
		}
	}
	if _, err := o.ready(ctx, false); err != nil {
		return err
	}
	if err := o.trustNow(ctx); err != nil {
		return fmt.Errorf("arm: %w", err)
	}
	return o.probeFeeds(ctx)
}

// inherit takes over which keys hold streams and big values: the way back has copied none of them itself.
func (f *flow) inherit(from *flow) {
	from.mu.Lock()
	defer from.mu.Unlock()
	for id := range from.streams {
		f.streams[id] = ""
	}
	for id := range from.large {
		f.large[id] = struct{}{}
	}
}

// Open lets the destination take writes. It always does, unless a pause of an earlier attempt still holds there.
func (p *Pair) Open(ctx context.Context, reverse bool) error {
	return p.unpause(ctx, p.side(!reverse))
}

// Retire ends the application's connections to the origin, held writes and all, together with the pause, and lets the way back
// write. It may be repeated.
func (p *Pair) Retire(ctx context.Context, reverse bool) error {
	p.mu.Lock()
	f, o, running := p.active, p.opposite, p.running
	p.mu.Unlock()
	if f != nil && f.reverse == reverse {
		if err := f.halt(ctx); err != nil {
			return err
		}
	}
	// A held write runs when the pause ends unless its client is gone: both in one transaction. Clients of class pubsub may hold
	// writes too, in RESP3.
	if err := p.evict(ctx, p.side(reverse)); err != nil {
		return err
	}
	if running {
		if err := p.turn(ctx, f, o, reverse); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.frozen = nil
	p.mu.Unlock()
	p.strays.Store(0)
	return nil
}

// turn makes the way back the one that copies. In a process that didn't arm it, it starts with a reconcile.
func (p *Pair) turn(ctx context.Context, f, o *flow, reverse bool) error {
	switch {
	case f != nil && f.reverse != reverse:
		return nil // turned already
	case o == nil:
		o = newFlow(p, !reverse, false)
		if err := p.start(ctx, o); err != nil {
			return err
		}
	}
	if !o.reverse { // the application may have flushed the target, note and all, while it was the one that took writes
		if err := p.markClaimed(ctx); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.active, p.opposite = o, nil
	p.turned = &o.reverse
	if p.paused {
		o.gate.forbid(shutPaused)
	}
	o.gate.open(shutIdle)
	p.wake()
	return nil
}

// Thaw lets the origin's writes run again and goes on as before the attempt. It may be repeated, and in any state before the switch.
func (p *Pair) Thaw(ctx context.Context, reverse bool) error {
	err := p.unpause(ctx, p.side(reverse))
	p.mu.Lock()
	f, o := p.active, p.opposite
	if f != nil && f.reverse != reverse {
		f = nil
	}
	if f != nil {
		p.opposite = nil
	}
	p.mu.Unlock()
	if f != nil {
		if o != nil {
			err = errors.Join(err, o.halt(ctx))
		}
		f.queue.rush(false)
		f.gate.open(shutDrained)
	}
	if err != nil {
		return fmt.Errorf("thaw the %s: %w", p.side(reverse).name, err)
	}
	p.mu.Lock()
	p.frozen = nil
	p.mu.Unlock()
	return nil
}
