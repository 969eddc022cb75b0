package cutover

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// newAttempt returns what an attempt needs in memory, and the context that ends when it is given up.
func (c *Coordinator) newAttempt(ctx context.Context) (*attempt, context.Context) {
	try, revoke := context.WithCancelCause(ctx)
	return &attempt{Coordinator: c, revoke: revoke}, try
}

// drive takes the current attempt to its end: perform the step that is due, ask transition what comes next, save it, again. It
// returns an error when ctx has ended or this process leads no more.
func (a *attempt) drive(ctx, try context.Context) error {
	defer a.release()
	for {
		r := a.record()
		if r.Step.Final() {
			return nil
		}
		var e event
		var err error
		if r.Step.Revocable() && try.Err() != nil {
			e, err = a.outcome(ctx, try, r.Step, try.Err())
		} else {
			e, err = a.perform(ctx, try, r)
		}
		if err != nil {
			return err
		}
		if err := a.proceed(ctx, try, r, e); err != nil {
			return err
		}
	}
}

// attempt is what lives in memory only while an attempt is driven.
type attempt struct {
	*Coordinator
	revoke context.CancelCauseFunc
	hold   *hold
	// sealed: this process has seen every pair's Seal succeed.
	sealed bool
}

// release ends whatever could still renew a freeze, and waits for it.
func (a *attempt) release() {
	a.revoke(nil)
	if a.hold != nil {
		a.hold.stop()
		a.hold = nil
	}
}

// proceed saves what follows e. Until the point of no return an abort, a lapse or a spent budget (the end of try) overrides e,
// also while the journal doesn't answer.
func (a *attempt) proceed(ctx, try context.Context, r Record, e event) error {
	if r.Step.Revocable() && e.kind != failed {
		next, err := transition(r, e, time.Now())
		if err != nil {
			return err
		}
		switch {
		case next.Step == StepOpen && a.commit(try):
			return a.save(ctx, next)
		case next.Step == StepOpen, try.Err() != nil:
		default:
			err = a.save(try, next)
			if err == nil || try.Err() == nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e = event{kind: failed, problem: asProblem(context.Cause(try), "cutover-aborted", "nothing was switched: start again"), findings: e.findings}
	}
	if e.kind == failed {
		// Before the record that leads to Thaw: a renewal that comes after it would freeze again.
		a.release()
	}
	next, err := transition(r, e, time.Now())
	if err != nil {
		return err
	}
	return a.save(ctx, next)
}

// commit closes the way back: from here on Abort refuses, and the record that opens the destination is saved until it is known to be
// saved. It reports false if the attempt was given up before.
func (c *Coordinator) commit(try context.Context) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if try.Err() != nil {
		return false
	}
	c.revoke = nil
	return true
}

func (c *Coordinator) setRevoke(f context.CancelCauseFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.revoke = f
}

func (c *Coordinator) setAbandon(f context.CancelFunc) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.abandon = f
}

func (c *Coordinator) setHookFailing(failing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hookFailing = failing
}

// pairTimeout bounds one call of a method that is repeated until it succeeds, so that a dead connection can't end the repeats.
const pairTimeout = time.Minute

// The ways of repeating a pair's method.
var (
	once       = retry.Policy{Attempts: 1}
	fewTimes   = retry.Policy{First: 50 * time.Millisecond, Max: time.Second, Attempts: 3}
	persistent = retry.Policy{First: 50 * time.Millisecond, Max: 5 * time.Second}
)

// each calls f for all pairs at once and returns when all calls have returned. With bounded attempts the first failure ends the
// others; an error that carries a Hinted is not repeated, since an operator must act first. Without a bound only ctx ends it.
func (c *Coordinator) each(ctx context.Context, s Step, p retry.Policy, f func(context.Context, Pair) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, pair := range c.options.Pairs {
		g.Go(func() error {
			subject, what := fmt.Sprintf("pair %d", i), fmt.Sprintf("pair %s: %s", pair.Name(), s)
			c.waiting.set(subject, what)
			if w, ok := pair.(Waiter); ok {
				c.waiting.explain(subject, w.Waiting)
			}
			defer c.waiting.clear(subject)
			p := p
			p.Notify = func(err error, attempt int, wait time.Duration) {
				c.waiting.set(subject, fmt.Sprintf("%s, after %d tries: %v", what, attempt, err))
				c.log.Warn("cutover step failed and is repeated", "pair", pair.Name(), "step", s.String(), "try", attempt, "wait", wait, "err", err)
			}
			err := retry.Do(ctx, p, func(ctx context.Context) error {
				if p.Attempts == 0 {
					return insist(ctx, pair, f)
				}
				err := f(ctx, pair)
				if isHinted(err) {
					return retry.Stop(err)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("pair %s: %s: %w", pair.Name(), s, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// insist calls f in bounded time and hides that an error is final.
func insist(ctx context.Context, pair Pair, f func(context.Context, Pair) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, pairTimeout, fmt.Errorf("no answer within %s", pairTimeout))
	defer cancel()
	if err := f(ctx, pair); err != nil {
		return unmarked{err}
	}
	return nil
}

// checkAll probes all pairs at once and returns what is worth keeping.
func (c *Coordinator) checkAll(ctx context.Context, reverse bool) []preflight.Finding {
	found := make([][]preflight.Finding, len(c.options.Pairs))
	var g errgroup.Group
	for i, pair := range c.options.Pairs {
		g.Go(func() error {
			subject := fmt.Sprintf("pair %d", i)
			c.waiting.set(subject, fmt.Sprintf("pair %s: %s", pair.Name(), StepCheck))
			defer c.waiting.clear(subject)
			for _, f := range pair.Check(ctx, reverse) {
				if f.Pair == "" {
					f.Pair = pair.Name()
				}
				if f.Severity != preflight.OK {
					found[i] = append(found[i], f)
				}
			}
			return nil
		})
	}
	_ = g.Wait() // no function returns an error
	var all []preflight.Finding
	for _, f := range found {
		all = append(all, f...)
	}
	return all
}
