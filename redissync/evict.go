package redissync

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"replicator/internal/preflight"
)

// A destination that reaches its maxmemory may evict what was copied to it (redis.conf, maxmemory-policy), of which it counts the keys. That
// is a gap. To fill it at once would only make such a destination evict others, and cost the origin a scan each time: so it is filled after a
// while, longer each time, and at once when the destination's limit or policy has changed. Until then the lag tells how long keys are missing.

// firstEvictionRest and maxEvictionRest bound the while.
const (
	firstEvictionRest = 2 * time.Second
	maxEvictionRest   = 5 * time.Minute
)

// eviction is what the destination has evicted lately.
type eviction struct {
	hold  *entry // the gap, as long as no reconcile covers it
	until time.Time
	wait  time.Duration
	shown bool
}

func (i serverInfo) evictions() int64 {
	n, _ := strconv.ParseInt(i.fields["evicted_keys"], 10, 64)
	return n
}

// sawEvictions compares two readings of the destination.
func (f *flow) sawEvictions(was, now seen) {
	f.mu.Lock()
	e := &f.eviction
	if was.memory != now.memory {
		e.wait, e.until = 0, time.Time{}
		f.wake()
	}
	fresh := now.evicted > was.evicted && e.hold == nil
	if fresh {
		f.gapLocked()
		e.hold = f.holds[len(f.holds)-1]
		e.wait = min(max(2*e.wait, firstEvictionRest), maxEvictionRest)
		e.until = time.Now().Add(e.wait)
	}
	e.shown = e.shown || now.evicted > was.evicted
	f.mu.Unlock()
	if now.evicted <= was.evicted {
		return
	}
	if fresh {
		f.countGap("the destination has evicted keys")
	}
	f.pair.problem(f.destination.name+" "+direction(f.reverse)+" eviction", preflight.Finding{Code: "redis-eviction", Severity: preflight.Error, Side: f.destination.name,
		Message: fmt.Sprintf("the %s Redis evicts keys that were copied to it, %d so far (maxmemory and its policy: %s)", f.destination.name, now.evicted, now.memory),
		Hint:    "raise its maxmemory, or set maxmemory-policy noeviction there, until the cutover is done; what is missing is then copied again by itself"})
}

// evictionRestLocked is how long nothing is to be reconciled, because nothing but evictions calls for it.
func (f *flow) evictionRestLocked() time.Duration {
	if len(f.holds) != 1 || f.holds[0] != f.eviction.hold {
		return 0
	}
	return time.Until(f.eviction.until)
}

// evictionsOver looks whether a reconcile has made the destination evict keys again. If not, that trouble is over.
func (f *flow) evictionsOver(ctx context.Context) {
	f.mu.Lock()
	shown := f.eviction.shown
	f.mu.Unlock()
	if !shown || f.destinationEye.look(ctx, f.lookAtDestination) != nil { // what is wrong with it, the watch names
		return
	}
	f.mu.Lock()
	over := f.eviction.hold == nil
	if over {
		f.eviction = eviction{}
	}
	f.mu.Unlock()
	if over {
		f.pair.solved(f.destination.name, direction(f.reverse)+" eviction")
	}
}
