package redissync

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/retry"
)

// side is one server of the pair.
type side struct {
	name     string // "source" or "target"
	endpoint endpoint
}

// flow synchronises one direction: from origin, where the application writes, to destination. Until its gate is open it only
// listens and remembers what is dirty.
type flow struct {
	pair        *Pair
	reverse     bool
	origin      side
	destination side
	log         *slog.Logger
	queue       *queue
	gate        *gate
	stop        chan struct{}
	ended       chan struct{}
	known       atomic.Pointer[[]int] // databases seen on either side, ever
	events      atomic.Int64          // changes of our keys that the feed reported
	scanned     atomic.Int64
	gaps        atomic.Int64
	copied      *atomic.Int64
	room        atomic.Pointer[room]   // of the origin, as last seen
	noted       atomic.Pointer[string] // the origin's identity as it stands on the destination
	proving     chan struct{}          // held by the one that proves the origin
	bigs        chan struct{}          // held by the lanes that copy a very big key: the others go on with small ones

	originEye, destinationEye *eye

	mu           sync.Mutex
	changed      chan struct{}
	feed         *feeds
	trusted      string    // identity of the origin that may be followed; empty: none yet
	emptied      bool      // it came back without its data, and nothing is copied
	heard        time.Time // when the feed was last known to have reported everything
	holds        []*entry  // gaps that no reconcile has covered yet
	eviction     eviction  // of the destination's keys
	reconciled   bool      // once at least
	total        int64
	originInfo   serverInfo
	offset       time.Duration      // of the clocks
	slack        time.Duration      // of comparisons of expiries
	clocked      bool               // both are measured
	streams      map[keyID]string   // keys that hold streams, with what their groups looked like
	large        map[keyID]struct{} // keys under which the destination may hold big values
	originSeen   seen
	destSeen     seen
	reset        time.Time                // when the destination's counts began anew
	written      map[string]int64         // commands of an application's kind that we ran on the destination
	probe        map[string]chan struct{} // keys that the feed is expected to report
	verified     map[keyID]struct{}       // dirtied since the last complete verification; nil: there was none
	verifiedFull bool
	observed     map[string]bool // keys of which a verification wants to know whether they are written to
	observedAll  bool            // a gap: any of them may have been
}

// seen is what was last read from a server's INFO.
type seen struct {
	ok      bool
	version version
	// fieldExpiry tells whether the server knows expiries of hash fields.
	fieldExpiry bool
	runID       string
	replID      string
	upheavals   int64
	functions   int64
	evicted     int64
	memory      string // its limit and what is done at it
	calls       map[string]int64
	layout      string
}

// newFlow prepares a direction. A clean one starts from two sides that are known to be equal; any other begins with a reconcile.
func newFlow(p *Pair, reverse, clean bool) *flow {
	f := &flow{
		pair: p, reverse: reverse, origin: p.side(reverse), destination: p.side(!reverse), queue: newQueue(), gate: newGate(),
		stop: make(chan struct{}), ended: make(chan struct{}), changed: make(chan struct{}), streams: map[keyID]string{},
		large: map[keyID]struct{}{}, bigs: make(chan struct{}, max(1, p.o.workers()/2)),
		written: map[string]int64{}, reconciled: clean, copied: &p.copied, heard: time.Now(), proving: make(chan struct{}, 1),
	}
	f.log = p.o.log().With("direction", direction(reverse))
	f.originEye, f.destinationEye = f.newEye(f.origin), f.newEye(f.destination)
	f.queue.lanes = p.o.workers()
	f.known.Store(&[]int{0})
	if !clean {
		f.holds = append(f.holds, f.queue.hold(time.Now()))
	}
	return f
}

func direction(reverse bool) string {
	if reverse {
		return "reverse"
	}
	return "forward"
}

func (f *flow) role(what string) string { return direction(f.reverse) + "-" + what }

func (f *flow) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// tolerance is how far expiries of equal keys may differ.
func (f *flow) tolerance() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pair.o.tolerance() + f.slack
}

// run works until ctx ends or the flow is stopped.
func (f *flow) run(ctx context.Context) error {
	defer close(f.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		select {
		case <-f.stop:
			cancel()
		case <-ctx.Done():
		}
		return nil
	})
	g.Go(func() error { return f.runFeed(ctx) })
	g.Go(func() error { return f.runResolver(ctx) })
	g.Go(func() error { return f.runReconciler(ctx) })
	g.Go(func() error { return f.runWatch(ctx) })
	g.Go(func() error { return f.runPulse(ctx) })
	g.Go(func() error { return f.runRoom(ctx) })
	for i := range f.pair.o.workers() {
		g.Go(func() error { return f.runWorker(ctx, i) })
	}
	err := g.Wait()
	f.originEye.close()
	f.destinationEye.close()
	select {
	case <-f.stop:
		return nil
	default:
	}
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// halt stops the flow and waits for its end.
func (f *flow) halt(ctx context.Context) error {
	f.mu.Lock()
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	f.mu.Unlock()
	select {
	case <-f.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// policy is how a loop of the flow tries again: for ever, with the reason in the status meanwhile.
func (f *flow) policy(loop string, at side) retry.Policy {
	return retry.Policy{Max: 3 * time.Second, Notify: func(err error, attempt int, wait time.Duration) {
		if !errors.Is(err, errUnproved) {
			f.pair.problem(problemOf(err, at, direction(f.reverse)+" "+loop))
		}
		f.log.Debug("trying again", "loop", loop, "error", err, "attempt", attempt, "wait", wait)
	}}
}

// feedUp takes a feed whose subscription stands.
func (f *flow) feedUp(fd *feeds, first bool) {
	f.mu.Lock()
	f.feed, f.heard = fd, time.Now()
	f.wake()
	f.mu.Unlock()
	f.pair.solved(f.origin.name, direction(f.reverse)+" feed")
	f.log.Info("the feed stands", "first", first)
}

// feedDown notes a gap: whatever happens from now until the next feed stands is found by a reconcile.
func (f *flow) feedDown(err error) {
	f.mu.Lock()
	f.feed = nil
	f.gapLocked()
	f.mu.Unlock()
	if !errors.Is(err, context.Canceled) {
		f.pair.suspect()
		f.pair.o.Metrics.Gap()
		f.gaps.Add(1)
		f.pair.gaps.Add(1)
		f.log.Warn("the feed broke: what it may have missed will be reconciled", "error", err)
	}
}

func (f *flow) gapLocked() {
	f.holds = append(f.holds, f.queue.hold(f.heard))
	f.verified, f.verifiedFull, f.observedAll = nil, false, true
	f.wake()
}

// gap notes that changes may have happened that the feed doesn't report.
func (f *flow) gap(why string) {
	f.mu.Lock()
	f.gapLocked()
	f.mu.Unlock()
	f.countGap(why)
}

func (f *flow) countGap(why string) {
	f.pair.o.Metrics.Gap()
	f.gaps.Add(1)
	f.pair.gaps.Add(1)
	f.log.Warn("a gap: both sides will be reconciled", "reason", why)
}

func (f *flow) changedNames(names []string) {
	f.probed(names)
	names = slices.DeleteFunc(names, func(n string) bool { return !f.pair.o.owns(n) })
	if len(names) == 0 {
		return
	}
	f.events.Add(int64(len(names)))
	f.sawChange(names...)
	f.queue.markName(names, *f.known.Load())
}

func (f *flow) changedKey(db int, key string) {
	if !f.pair.o.ownsDatabase(db) || !f.pair.o.owns(key) {
		return
	}
	f.events.Add(1)
	f.sawChange(key)
	f.queue.mark(keyID{db, key})
}

func (f *flow) flushed() {
	f.events.Add(1)
	f.gap("the origin was flushed")
}

func (f *flow) probed(names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.probe) == 0 {
		return
	}
	for _, n := range names {
		if c := f.probe[n]; c != nil {
			close(c)
			delete(f.probe, n)
		}
	}
}

// learn adds databases to the known ones.
func (f *flow) learn(dbs []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.Concat(*f.known.Load(), f.pair.o.ownDatabases(slices.Clone(dbs)))
	slices.Sort(all)
	all = slices.Compact(all)
	f.known.Store(&all)
}

// resolvePause spares the origin: without it, a steady stream of changes makes thousands of questions a second. Names are copied from the
// databases known so far without waiting for it.
const resolvePause = 2 * time.Millisecond

// runResolver finds out, for names that a broadcast gave without a database, whether they may be in one that was not known yet.
func (f *flow) runResolver(ctx context.Context) error {
	s := &session{endpoint: f.origin.endpoint, name: f.pair.o.connectionName(f.role("resolve"))}
	defer s.close()
	for {
		changed := f.queue.state().changed
		e := f.queue.unresolved()
		if e == nil {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
			continue
		}
		err := retry.Do(ctx, f.policy("resolver", f.origin), func(ctx context.Context) error {
			info, err := readInfo(ctx, s, "keyspace")
			if err != nil {
				return err
			}
			dbs := f.pair.o.ownDatabases(mergeDatabases(info.databases))
			if more := subtract(dbs, *f.known.Load()); len(more) > 0 {
				f.learn(more)
			}
			f.queue.resolved(e, subtract(*f.known.Load(), e.dbs))
			return nil
		})
		if err != nil {
			f.queue.unresolve(e)
			return err
		}
		f.pair.solved(f.origin.name, direction(f.reverse)+" resolver")
		if !f.queue.hurried() {
			timer := time.NewTimer(resolvePause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
		}
	}
}

// ready waits until the feed stands and no gap is left open.
func (f *flow) ready(ctx context.Context, whole bool) (*feeds, error) {
	for {
		f.mu.Lock()
		fd, holds, changed := f.feed, len(f.holds), f.changed
		f.mu.Unlock()
		if fd != nil && (holds == 0 || !whole) {
			return fd, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the feed of %s: %w", f.origin.name, ctx.Err())
		case <-f.ended:
			return nil, errors.New("the pair's synchronisation has ended")
		case <-changed:
		}
	}
}

// fence returns once every change made on origin before the call is in the queue, and the queue's last sequence number then.
func (f *flow) fence(ctx context.Context) (uint64, error) {
	for {
		fd, err := f.ready(ctx, false)
		if err != nil {
			return 0, err
		}
		err = fd.ping(ctx)
		if err == nil {
			f.mu.Lock()
			f.heard = time.Now()
			f.mu.Unlock()
			return f.queue.state().last, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		f.mu.Lock() // the feed broke: its end adds a reconcile, which is a fence as well
		gone, changed := f.feed != fd, f.changed
		f.mu.Unlock()
		if !gone {
			select {
			case <-changed:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	}
}

// lag is the age of the oldest change that the destination doesn't have; nil as long as the first reconcile isn't through.
func (f *flow) lag() *float64 {
	f.mu.Lock()
	reconciled, heard := f.reconciled, f.heard
	f.mu.Unlock()
	if !reconciled {
		return nil
	}
	var lag float64
	if s := f.queue.state(); s.first != 0 {
		lag = max(0, time.Since(s.oldest).Seconds())
	}
	// The feed is asked every second: when it doesn't answer, changes as old as its silence may be unknown.
	if silent := time.Since(heard); silent > 3*time.Second {
		lag = max(lag, silent.Seconds())
	}
	return &lag
}
