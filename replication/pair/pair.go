package pair

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/metrics"
	"replicator/replication"
	"replicator/replication/gate"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// Options say what a pair is made of.
type Options struct {
	Migration, Name      string
	SourceURL, TargetURL string
	// Epoch is the lead under which the pair works.
	Epoch int64
	// Filter chooses the tables.
	Filter schema.Filter
	// PgDump is the path of pg_dump; empty: found.
	PgDump string
	// CopyWorkers is how many tables are copied at once; 4 if zero.
	CopyWorkers int
	// SequenceMargin is added to sequences at a switch, in values; 1000 if zero.
	SequenceMargin int64
	// RetainedWarning is what the origin may retain, in bytes (write-ahead log for the slot, or the change log), before a problem is shown; 0: never.
	RetainedWarning int64
	// RetainedLimit is where that is given up, so that the origin's disk doesn't fill: the pair then has to be copied anew. 0: never.
	RetainedLimit int64
	// NoCopy: the target was loaded by other means up to the position of the slot Adopt, which is taken over with a publication of the
	// name that ObjectName gives, made before that slot.
	NoCopy bool
	Adopt  string
	// Capture is Logical, Trigger or "auto": what the source allows.
	Capture string
	// Paused makes Run open both sides and wait for Resume, as after Pause.
	Paused bool
	// WatchEvery is how often the source's catalog is looked at for tables that were made, altered or dropped; 10 s if zero.
	WatchEvery time.Duration
	// HorizonWarning is how long a transaction may keep the change log from being emptied before a problem is shown; a minute if zero.
	HorizonWarning time.Duration
	// NoCalmVerify leaves out the comparison before a freeze, after which the freeze compares only what has changed meanwhile.
	NoCalmVerify bool

	Log     *slog.Logger
	Metrics func(read func() metrics.PostgresReading) *metrics.Postgres
}

// side is one database of the pair.
type side struct {
	name string // "source" or "target"
	url  string
	// ordinary: the role may not set session_replication_role. token is that of the gate's last arming, by which our own writes pass then.
	ordinary bool
	token    string
	pool     *pgxpool.Pool
	gate     *gate.Gate
}

// Pair moves one database. New only builds it; Run does the work, and the coordinator's methods may be called while Run runs.
type Pair struct {
	o       Options
	id      postgres.Identity
	log     *slog.Logger
	metrics *metrics.Postgres

	source, target *side
	stored         *state.Pairs
	ready          chan struct{} // closed when Run has opened both sides

	mu sync.Mutex
	// want is the direction whose stream is to run; active the direction in which the application's writes flow.
	want    wanted
	active  bool
	changed chan struct{} // closed and replaced when want changes
	link    *link         // the running stream, nil if none
	stopped chan struct{} // closed while no stream runs, replaced when one starts
	freeze  *freeze
	status  Status
	lag     lagSamples
	// relieving: what the origin retained was given up and isn't freed yet. Only sample touches it.
	relieving bool
	// verified are the tables that were compared and found equal, and that the stream hasn't changed since; origin is the source.
	verified map[replication.TableName]knownStorage
	// comparing, while a comparison runs, are the tables that the stream has changed since its snapshots.
	comparing map[replication.TableName]bool
	verifying chan struct{} // holds a token while a comparison runs
	captures  map[bool]string
	applied   atomic.Int64 // source transactions, since the process started
}

type wanted int

const (
	wantNone wanted = iota
	wantForward
	wantReverse
)

func want(reverse bool) wanted {
	if reverse {
		return wantReverse
	}
	return wantForward
}

// New returns a pair.
func New(o Options) *Pair {
	if o.CopyWorkers == 0 {
		o.CopyWorkers = 4
	}
	if o.SequenceMargin == 0 {
		o.SequenceMargin = 1000
	}
	if o.WatchEvery == 0 {
		o.WatchEvery = 10 * time.Second
	}
	if o.HorizonWarning == 0 {
		o.HorizonWarning = time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pair{
		o: o, id: postgres.Identity{Migration: o.Migration, Pair: o.Name, Epoch: o.Epoch},
		log: o.Log.With("pair", o.Name), ready: make(chan struct{}),
		verified: map[replication.TableName]knownStorage{}, verifying: make(chan struct{}, 1), captures: map[bool]string{}, changed: make(chan struct{}), stopped: make(chan struct{}),
	}
	close(p.stopped)
	p.status = Status{Name: o.Name, Capture: o.Capture, Phase: Starting}
	p.source = &side{name: "source", url: o.SourceURL}
	p.target = &side{name: "target", url: o.TargetURL}
	if o.Metrics != nil {
		p.metrics = o.Metrics(p.reading)
	}
	return p
}

// Name is the pair's name in the configuration.
func (p *Pair) Name() string { return p.o.Name }

// ends returns the sides of a direction: where the changes come from and where they go.
func (p *Pair) ends(reverse bool) (origin, destination *side) {
	if reverse {
		return p.target, p.source
	}
	return p.source, p.target
}

// Run opens both sides and keeps the pair moving in the given direction until ctx ends. It returns earlier only where another process
// has taken the lead.
func (p *Pair) Run(ctx context.Context, reverse bool) error {
	defer p.disconnect()
	if err := p.connect(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	p.active, p.want = reverse, want(reverse)
	if p.o.Paused {
		p.want = wantNone
	}
	p.mu.Unlock()
	err := p.keepTrying(ctx, "open", func(ctx context.Context) error { return p.open(ctx) })
	if err != nil {
		return err
	}
	if p.o.Paused {
		if err := p.keepTrying(ctx, "open", func(ctx context.Context) error { return p.recallPosition(ctx, reverse) }); err != nil {
			return err
		}
		p.showPaused()
	}
	close(p.ready)
	sampling, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	beside.Go(func() { p.sample(sampling) })
	beside.Go(func() { p.keepWritable(sampling) })
	defer func() { stop(); beside.Wait() }()
	return p.supervise(ctx)
}

// connect makes the pools of both sides; sessions are opened when they are needed.
func (p *Pair) connect(ctx context.Context) error {
	for _, s := range []*side{p.source, p.target} {
		pool, err := postgres.Pool(ctx, s.url, p.id, "control", 6)
		if err != nil {
			return fmt.Errorf("pair %q, %s: %w", p.o.Name, s.name, err)
		}
		s.pool = pool
		s.gate = gate.New(pool, p.log.With("side", s.name)).Fenced(func(ctx context.Context, tx pgx.Tx) error { return state.Fence(ctx, tx, p.id) })
	}
	p.stored = state.NewPairs(p.target.pool, p.id)
	return nil
}

func (p *Pair) disconnect() {
	for _, s := range []*side{p.source, p.target} {
		if s.pool != nil {
			s.pool.Close()
		}
	}
}

// open makes sure of our own schema on both sides and of the epoch, and ends what a predecessor left running.
func (p *Pair) open(ctx context.Context) error {
	for _, s := range []*side{p.target, p.source} {
		if err := state.Ensure(ctx, s.pool); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := state.Claim(ctx, s.pool, p.id); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := state.Terminate(ctx, s.pool, p.id); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		ordinary, err := p.isOrdinary(ctx, s)
		if err != nil {
			return err
		}
		p.mu.Lock()
		s.ordinary = ordinary
		p.mu.Unlock()
	}
	return p.recall(ctx)
}

// keepTrying repeats f until it succeeds, ctx ends or the lead is lost. What goes wrong is shown as a problem meanwhile.
func (p *Pair) keepTrying(ctx context.Context, what string, f func(context.Context) error) error {
	wait := 250 * time.Millisecond
	for {
		began := time.Now()
		err := retry.Do(ctx, retry.Policy{Attempts: 1}, f) // takes the mark of permanence off
		if err == nil {
			p.clearProblem()
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, replication.ErrDeposed) {
			return err
		}
		if errors.Is(err, errJoin) {
			p.log.Info(errJoin.Error())
			continue
		}
		p.setProblem(err)
		if time.Since(began) > time.Minute {
			wait = 250 * time.Millisecond
		}
		limit := 5 * time.Second
		p.log.Warn("trying again", "what", what, "error", err, "wait", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		wait = min(2*wait, limit)
	}
}

// supervise runs the wanted stream, and another one when something else is wanted.
func (p *Pair) supervise(ctx context.Context) error {
	for {
		p.mu.Lock()
		w, changed, stopped := p.want, p.changed, make(chan struct{})
		if w != wantNone {
			p.stopped = stopped
		}
		p.mu.Unlock()
		if w == wantNone {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			}
			continue
		}
		err := p.runUntil(ctx, changed, stopped, w)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, replication.ErrDeposed) {
			return err
		}
	}
}

// runUntil runs one stream, again and again when it breaks, until changed is closed.
func (p *Pair) runUntil(ctx context.Context, changed <-chan struct{}, stopped chan struct{}, w wanted) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(stopped)
	go func() {
		select {
		case <-changed:
			cancel()
		case <-stopped:
		}
	}()
	return p.keepTrying(ctx, replication.Direction(w == wantReverse)+" stream", func(ctx context.Context) error {
		if w == wantForward {
			return p.forward(ctx)
		}
		return p.stream(ctx, true, nil, p.follow)
	})
}

// setWant changes what the supervisor runs and waits until the stream that was running has ended.
func (p *Pair) setWant(ctx context.Context, w wanted) error {
	p.mu.Lock()
	same := p.want == w
	stopped := p.stopped
	if !same {
		p.want = w
		close(p.changed)
		p.changed = make(chan struct{})
	}
	p.mu.Unlock()
	if same {
		return nil
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("wait for the stream to stop: %w", ctx.Err())
	case <-stopped:
		return nil
	}
}

// awaitReady waits until Run has opened both sides.
func (p *Pair) awaitReady(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("pair %q has not reached its databases yet: %w", p.o.Name, ctx.Err())
	case <-p.ready:
		return nil
	}
}

// setProblem shows an error in Status until clearProblem.
func (p *Pair) setProblem(err error) {
	f := preflight.Finding{Code: "pair-retrying", Severity: preflight.Error, Pair: p.o.Name, Message: err.Error(),
		Hint: "replicator keeps trying by itself; if this stays, mend the cause that the message names"}
	var h *preflight.Hinted
	if errors.As(err, &h) {
		f.Code, f.Message, f.Hint = h.Code, err.Error(), h.Hint
		if direct, ok := err.(*preflight.Hinted); ok && direct.Err != nil { //nolint:errorlint // what wraps it says more
			f.Message = direct.Err.Error()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.failure = &f
}

func (p *Pair) clearProblem() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.failure = nil
}

// doing shows what the pair is busy with; empty when it is done.
func (p *Pair) doing(what string) (before string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before = p.status.Waiting
	p.status.Waiting = what
	return before
}

// waiting shows what the pair waits for, in the log too; empty when it goes on.
func (p *Pair) waiting(what string) {
	if before := p.doing(what); what != "" && what != before {
		p.log.Info("waiting", "for", what)
	}
}

func (p *Pair) phase(ph Phase) {
	p.mu.Lock()
	old := p.status.Phase
	p.status.Phase = ph
	p.mu.Unlock()
	if old != ph {
		p.log.Info("phase", "from", string(old), "to", string(ph))
	}
}
