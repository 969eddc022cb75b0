package redissync

import (
	"context"
	"fmt"
	"time"
)

// PredictFreeze tells how long a freeze that began now would last, by doing what takes time in one, while the application writes: what
// PredictUncompared does, and the comparison of the keys that were touched since they were last compared. Without such a comparison all
// keys are compared first, as Prepare does.
func (p *Pair) PredictFreeze(ctx context.Context, reverse bool) (time.Duration, error) {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return 0, err
	}
	if _, err := f.ready(ctx, true); err != nil {
		return 0, err
	}
	f.mu.Lock()
	known := f.verifiedFull
	f.mu.Unlock()
	if !known {
		if _, err := p.verify(ctx, f, true, false); err != nil {
			return 0, err
		}
	}
	took, err := p.PredictUncompared(ctx, reverse)
	if err != nil {
		return 0, err
	}
	r, err := p.verify(ctx, f, false, false)
	if err != nil {
		return 0, err
	}
	if r.Mismatches > 0 {
		return 0, fmt.Errorf("%d keys differ, such as %s", r.Mismatches, r.Differences[0])
	}
	return took + r.Elapsed, nil
}

// PredictUncompared is PredictFreeze for a freeze in which nothing is compared: it waits until everything written so far is on the
// destination. The round trip that proves the way back is taken to last as long as the one that it measures.
func (p *Pair) PredictUncompared(ctx context.Context, reverse bool) (time.Duration, error) {
	f, err := p.flowFor(ctx, reverse)
	if err != nil {
		return 0, err
	}
	if _, err := f.ready(ctx, true); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := p.CaughtUp(ctx); err != nil {
		return 0, err
	}
	took := 2 * time.Since(began)
	if held, err := p.holds(ctx, p.side(reverse)); err != nil {
		return 0, err
	} else if !held {
		took += p.o.quietFor() // to prove that nobody writes
	}
	return took, nil
}
