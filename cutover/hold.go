package cutover

import (
	"context"
	"sync"
	"time"
)

// hold is a freeze that is being kept up: one goroutine per pair renews its pair's deadline, so that a slow pair can't starve the
// others. The instant until which every pair is known to be frozen only grows by acknowledged renewals.
type hold struct {
	pairs    []Pair
	reverse  bool
	ttl      time.Duration
	deadline time.Time
	// lapse hears of a pair whose freeze could not be renewed before it ran out.
	lapse func(error)
	// spent makes the error that lapse hears when the deadline passes.
	spent func() error

	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	mu    sync.Mutex
	until map[Pair]time.Time
}

// newHold starts from a freeze that is about to be asked for until held().
func newHold(pairs []Pair, reverse bool, ttl time.Duration, deadline time.Time, lapse func(error)) *hold {
	h := &hold{pairs: pairs, reverse: reverse, ttl: ttl, deadline: deadline, lapse: lapse, quit: make(chan struct{}), until: map[Pair]time.Time{}}
	until := h.grant(time.Now())
	for _, p := range pairs {
		h.until[p] = until
	}
	return h
}

// grant is the deadline to ask for now.
func (h *hold) grant(now time.Time) time.Time {
	if t := now.Add(h.ttl); t.Before(h.deadline) {
		return t
	}
	return h.deadline
}

// held is the instant until which pair is known to be frozen; at the beginning, the deadline for its Freeze.
func (h *hold) held(pair Pair) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until[pair]
}

// start begins renewing, until stop or ctx ends.
func (h *hold) start(ctx context.Context) {
	h.wg.Go(func() { h.expire(ctx) })
	for _, p := range h.pairs {
		h.wg.Go(func() { h.keep(ctx, p) })
	}
}

// stop lets renewals that are under way finish, and returns when no other will be made. ctx of start bounds them.
func (h *hold) stop() {
	h.once.Do(func() { close(h.quit) })
	h.wg.Wait()
}

// left is how long every pair is still known to be frozen.
func (h *hold) left(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	least := h.deadline
	for _, t := range h.until {
		if t.Before(least) {
			least = t
		}
	}
	return least.Sub(now)
}

// expire gives the attempt up when the deadline passes.
func (h *hold) expire(ctx context.Context) {
	timer := time.NewTimer(time.Until(h.deadline))
	defer timer.Stop()
	select {
	case <-timer.C:
		h.lapse(h.spent())
	case <-h.quit:
	case <-ctx.Done():
	}
}

// keep renews one pair's freeze.
func (h *hold) keep(ctx context.Context, p Pair) {
	wait := h.ttl / 3
	for {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-h.quit:
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		}
		held := h.held(p)
		if !held.Before(h.deadline) {
			// Nothing left to ask for: the budget's own end is near.
			return
		}
		err := h.renew(ctx, p)
		switch {
		case err == nil:
			wait = h.ttl / 3
		case ctx.Err() != nil:
			return
		case !time.Now().Before(held):
			h.lapse(errLapsed(p.Name(), err))
			return
		default:
			// Sooner than usual, and once more at the very end of the hold.
			wait = min(h.ttl/12, time.Until(held))
		}
	}
}

// renew asks once; it must be acknowledged before the hold in force runs out.
func (h *hold) renew(ctx context.Context, p Pair) error {
	ctx, cancel := context.WithDeadline(ctx, h.held(p))
	defer cancel()
	want := h.grant(time.Now())
	if err := p.Renew(ctx, h.reverse, want); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if want.After(h.until[p]) {
		h.until[p] = want
	}
	return nil
}
