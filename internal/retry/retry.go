// Package retry is the one place that repeats what failed: bounded, jittered, and aware of its context. It is called at the level
// of loops (a stream that reconnects, a lock that was busy), never inside a single step.
//
// How to use it: give Do a Policy, return the error as it is to be tried again, wrap it in Stop where trying again can't help.
package retry

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Policy bounds the repetition. The wait before attempt n is min(Max, First·2ⁿ⁻¹), of which a random half is taken off.
type Policy struct {
	// First is the wait after the first failure; 100 ms if zero.
	First time.Duration
	// Max bounds one wait; 10 s if zero.
	Max time.Duration
	// Attempts bounds the calls; zero means until the context ends.
	Attempts int
	// Notify, if set, hears of every failure that will be tried again.
	Notify func(err error, attempt int, wait time.Duration)
}

type permanent struct{ err error }

func (p permanent) Error() string { return p.err.Error() }
func (p permanent) Unwrap() error { return p.err }

// Stop marks an error as one that trying again can't mend. Stop(nil) is nil.
func Stop(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// Do calls f until it returns nil, an error that wraps a Stop, the attempts are used up or ctx ends. It returns f's last error, without the
// mark where that is outermost; where ctx ended while waiting, both are joined.
func Do(ctx context.Context, p Policy, f func(context.Context) error) error {
	wait := p.First
	if wait <= 0 {
		wait = 100 * time.Millisecond
	}
	limit := p.Max
	if limit <= 0 {
		limit = 10 * time.Second
	}
	for attempt := 1; ; attempt++ {
		err := f(ctx)
		if err == nil {
			return nil
		}
		var stop permanent
		if errors.As(err, &stop) {
			if direct, ok := err.(permanent); ok { //nolint:errorlint // only the outermost mark can be taken off
				return direct.err
			}
			return err // what wraps the mark says more than what it marks
		}
		if ctx.Err() != nil || (p.Attempts > 0 && attempt >= p.Attempts) {
			return err
		}
		d := wait/2 + rand.N(wait/2+1)
		if p.Notify != nil {
			p.Notify(err, attempt, d)
		}
		timer := time.NewTimer(d)
		select {
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, ctx.Err())
		case <-timer.C:
		}
		wait = min(wait*2, limit)
	}
}
