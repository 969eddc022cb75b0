package cutover

import (
	"context"
	"fmt"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// hookAttempts bounds the repeats of a hook at any moment but the switch, where nothing but success or the way back ends them.
const hookAttempts = 5

// deliver calls the hooks of a moment that r does not count as delivered, in order. The event is `delivered` after each, so that the journal knows
// before the next; succeeded when none is left; failed when one was given up. It returns an error when ctx has ended, and only then.
func (c *Coordinator) deliver(ctx context.Context, r Record, moment Moment) (event, error) {
	var hooks []Hook
	for _, h := range c.options.Hooks {
		if h.At == moment {
			hooks = append(hooks, h)
		}
	}
	n := r.Deliveries[moment]
	if n >= len(hooks) {
		return event{kind: succeeded}, nil
	}
	hook := hooks[n]
	d := Delivery{Migration: r.Migration, Attempt: r.Attempt, Event: moment, Direction: r.Direction, DryRun: r.DryRun, N: n + 1}
	name := fmt.Sprintf("hook %s/%d (%s)", moment, d.N, hook.Means)
	defer c.waiting.clear("hook")
	c.waiting.set("hook", name)
	persistent := moment == AtSwitch && !r.DryRun
	policy := retry.Policy{First: 200 * time.Millisecond, Max: 5 * time.Second, Attempts: hookAttempts,
		Notify: func(err error, attempt int, wait time.Duration) {
			c.waiting.set("hook", fmt.Sprintf("%s, after %d tries: %v", name, attempt, err))
			c.log.Warn("cutover hook failed and is repeated", "hook", name, "try", attempt, "wait", wait, "err", err)
			if persistent {
				c.setHookFailing(true)
			}
		}}
	if persistent {
		policy.Attempts = 0
		defer c.setHookFailing(false)
	}
	err := retry.Do(ctx, policy, func(ctx context.Context) error {
		d.At = time.Now()
		err := hook.Means.Call(ctx, d)
		if err != nil && persistent {
			err = unmarked{err}
		}
		return err
	})
	switch {
	case err == nil:
		return event{kind: delivered, moment: moment}, nil
	case ctx.Err() != nil:
		return event{}, err
	}
	err = fmt.Errorf("%s: %w", name, err)
	if moment == AtAbort || (moment == AtAfter && !r.DryRun) {
		p := asProblem(err, "cutover-hook-failed", "do by hand what the hook should have done")
		return event{kind: delivered, moment: moment, findings: []preflight.Finding{
			{Code: p.Code, Severity: preflight.Warning, Message: p.Message, Hint: p.Hint}}}, nil
	}
	return event{kind: failed, problem: asProblem(err, "cutover-hook-failed", "nothing was switched: mend the hook's receiver and start again")}, nil
}

// unmarked hides a retry.Stop mark: where only success ends the repeats, even a hopeless answer is asked for again, since the other end may be
// mended.
type unmarked struct{ error }
