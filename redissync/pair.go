package redissync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// Pair keeps the keys of two Redis servers equal in one direction, and is moved to the other by a cutover. New only builds it; Run
// works. All methods may be called concurrently.
type Pair struct {
	o      Options
	log    *slog.Logger
	err    error // of the URLs
	source side
	target side

	copied    atomic.Int64
	gaps      atomic.Int64
	strays    atomic.Int64
	ended     atomic.Bool
	starts    chan *flow
	verifying chan struct{}
	suspicion chan struct{}

	mu       sync.Mutex
	changed  chan struct{}
	running  bool
	finished bool
	paused   bool
	active   *flow // copies
	opposite *flow // armed: listens
	frozen   *freeze
	turned   *bool // the direction into which a cutover in this process has turned the pair
	problems map[string]shown
	waiting  string // what a step of a cutover waits for

	controlMu sync.Mutex
	controls  map[string]*control // by side and purpose
}

// New builds a pair. URLs that can't be read are reported by Run and Check.
func New(o Options) *Pair {
	p := &Pair{o: o, log: o.log(), starts: make(chan *flow), verifying: make(chan struct{}, 1), suspicion: make(chan struct{}, 1), changed: make(chan struct{}), problems: map[string]shown{}, controls: map[string]*control{}}
	p.source.name, p.target.name = "source", "target"
	var err1, err2 error
	p.source.endpoint, err1 = parseEndpoint(o.SourceURL, o.SourceTLS)
	p.target.endpoint, err2 = parseEndpoint(o.TargetURL, o.TargetTLS)
	if err1 != nil {
		err1 = fmt.Errorf("source of redis pair %s: %w", o.Name, err1)
	}
	if err2 != nil {
		err2 = fmt.Errorf("target of redis pair %s: %w", o.Name, err2)
	}
	p.err = errors.Join(err1, err2)
	return p
}

// Name returns the pair's name.
func (p *Pair) Name() string { return p.o.Name }

// side returns the origin of a direction: the target if reverse.
func (p *Pair) side(reverse bool) side {
	if reverse {
		return p.target
	}
	return p.source
}

func (p *Pair) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// Run synchronises until ctx ends: from source to target, or the other way if reverse. It reconnects by itself for ever; an error
// says that trying again can't help: a URL that can't be read, a target that holds keys which aren't ours, a successor that has taken
// the lead. A restart is like any other gap: both sides are reconciled. A pair that a cutover has turned round runs on in the new
// direction when Run is called again, whatever reverse says. Only one Run at a time.
func (p *Pair) Run(ctx context.Context, reverse bool) error {
	if p.err != nil {
		return p.err
	}
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return errors.New("the pair runs already")
	}
	p.running = true
	if p.turned != nil {
		reverse = *p.turned
	}
	p.mu.Unlock()
	defer p.stopped()
	err := retry.Do(ctx, retry.Policy{Max: 3 * time.Second, Notify: func(err error, _ int, _ time.Duration) {
		p.problem(problemOf(err, p.target, "start"))
	}}, func(ctx context.Context) error { return p.enter(ctx, reverse) })
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		p.problem(problemOf(err, p.target, "start"))
		return err
	}
	p.solved(p.target.name, "start")
	f := newFlow(p, reverse, false)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for {
			select {
			case f := <-p.starts:
				g.Go(func() error { return f.run(ctx) })
			case <-ctx.Done():
				return nil
			}
		}
	})
	g.Go(func() error { return f.run(ctx) })
	g.Go(func() error { return p.watchSuccessors(ctx) })
	p.mu.Lock()
	p.active = f
	f.gate.open(shutIdle)
	if p.paused {
		f.gate.forbid(shutPaused)
	}
	p.wake()
	p.mu.Unlock()
	return g.Wait()
}

func (p *Pair) stopped() {
	p.mu.Lock()
	p.running, p.active, p.opposite = false, nil, nil
	p.wake()
	p.mu.Unlock()
	p.ended.Store(true)
	p.endControls()
}

// current waits for Run and returns the flow that copies.
func (p *Pair) current(ctx context.Context) (*flow, error) {
	for {
		p.mu.Lock()
		f, changed := p.active, p.changed
		p.mu.Unlock()
		if f != nil {
			return f, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for redis pair %s to run: %w", p.o.Name, ctx.Err())
		case <-changed:
		}
	}
}

// start hands a flow to Run.
func (p *Pair) start(ctx context.Context, f *flow) error {
	select {
	case p.starts <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CaughtUp returns once everything that was written on the origin before the call is on the destination.
func (p *Pair) CaughtUp(ctx context.Context) error {
	f, err := p.current(ctx)
	if err != nil {
		return err
	}
	// SWAPDB, and a destination that comes back empty, are no events: they show in INFO only, which is looked at once a second otherwise.
	if err := retry.Do(ctx, retry.Policy{Max: time.Second}, f.lookNow); err != nil {
		return err
	}
	f.markStreams()
	seq, err := f.fence(ctx)
	if err != nil {
		return err
	}
	f.queue.hasten()
	return f.queue.await(ctx, seq)
}

// Resync reconciles both sides completely and returns when they are equal. It also is the operator's word that an origin which came
// back empty is to be mirrored.
func (p *Pair) Resync(ctx context.Context) error {
	f, err := p.current(ctx)
	if err != nil {
		return err
	}
	if err := f.accept(ctx); err != nil {
		return fmt.Errorf("resync redis pair %s: %w", p.o.Name, err)
	}
	f.gap("asked for by the operator")
	return p.CaughtUp(ctx)
}

// Pause stops the copying; the feed goes on, so nothing is missed.
func (p *Pair) Pause() {
	p.mu.Lock()
	p.paused = true
	f := p.active
	p.mu.Unlock()
	if f != nil {
		f.gate.forbid(shutPaused)
	}
}

// Resume ends a Pause.
func (p *Pair) Resume() {
	p.mu.Lock()
	p.paused = false
	f := p.active
	p.mu.Unlock()
	if f != nil {
		f.gate.open(shutPaused)
	}
}

// Finish removes everything that replicator made on either server: its keys, and a pause that may still hold. Run must have ended,
// or end soon after.
func (p *Pair) Finish(ctx context.Context) error {
	if p.err != nil {
		return p.err
	}
	p.mu.Lock()
	f, o := p.active, p.opposite
	p.finished = true
	p.mu.Unlock()
	for _, x := range []*flow{f, o} {
		if x != nil {
			if err := x.halt(ctx); err != nil {
				return err
			}
		}
	}
	for _, at := range []side{p.source, p.target} {
		if _, err := p.control(ctx, at, command{"CLIENT", "UNPAUSE"}); err != nil && !isReplyError(err) {
			return fmt.Errorf("remove what replicator made on the %s: %w", at.name, err)
		}
		if _, err := p.control(ctx, at, command{"UNLINK", p.o.stateKey(), p.o.originKey(), p.o.elsewhereKey()}); err != nil {
			return fmt.Errorf("remove what replicator made on the %s: %w", at.name, err)
		}
		if err := p.removeTemporary(ctx, at); err != nil {
			return fmt.Errorf("remove what replicator made on the %s: %w", at.name, err)
		}
	}
	return nil
}

// removeTemporary removes what copies of big keys that were cut off have left.
func (p *Pair) removeTemporary(ctx context.Context, at side) error {
	s := &session{endpoint: at.endpoint, name: p.o.connectionName("finish")}
	defer s.close()
	info, err := readInfo(ctx, s, "keyspace")
	if err != nil {
		return err
	}
	for _, db := range mergeDatabases(info.databases) {
		if err := s.enter(ctx, db); err != nil {
			return err
		}
		err := scanAll(ctx, s, db, func(keys []string) error {
			var units []unit
			for _, k := range keys {
				if p.o.isTemporary(k) {
					units = append(units, unit{k, []command{{"UNLINK", k}}})
				}
			}
			if len(units) == 0 {
				return nil
			}
			_, err := s.exec(ctx, db, units)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func sortFindings(fs []preflight.Finding) {
	slices.SortFunc(fs, func(a, b preflight.Finding) int {
		return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Side, b.Side), cmp.Compare(a.Message, b.Message))
	})
}
