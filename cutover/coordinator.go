package cutover

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"replicator/metrics"
)

// DefaultBudget is how long a freeze may last where nothing else is said.
const DefaultBudget = 30 * time.Second

// The bounds of a freeze budget.
const (
	MinBudget = time.Second
	MaxBudget = 10 * time.Minute
)

// holdTTL is how long a pair stays frozen without a renewal, at most; a renewal is asked for at a third of it.
const holdTTL = 6 * time.Second

// Options is what a Coordinator is built from.
type Options struct {
	Migration string
	// Pairs are pointers. Their names should differ, for people's sake: a Postgres and a Redis pair of one name are told apart nowhere
	// else.
	Pairs   []Pair
	Journal Journal
	Hooks   []Hook
	// Budget bounds the freeze where a Request gives none; zero means DefaultBudget.
	Budget  time.Duration
	Log     *slog.Logger     // nil discards
	Metrics *metrics.Cutover // nil measures nothing
	// OnEvent hears of every change of phase, one at a time and in order. It must not block.
	OnEvent func(Event)
}

// Request asks for an attempt.
type Request struct {
	// Reverse asks for a rollback.
	Reverse bool
	// DryRun checks and rehearses the hooks; nothing is frozen or changed.
	DryRun bool
	// Budget bounds the freeze; zero means Options.Budget.
	Budget time.Duration
	// By says who asks, for the journal.
	By string
}

// Event tells that an attempt has entered a phase or ended.
type Event struct {
	At      time.Time `json:"at"`
	Attempt string    `json:"attempt"`
	Phase   Phase     `json:"phase"`
	Reverse bool      `json:"reverse"`
	DryRun  bool      `json:"dry_run"`
	Outcome Outcome   `json:"outcome,omitempty"`
	Problem *Problem  `json:"problem,omitempty"`
}

// Coordinator drives all pairs of a migration through a cutover or rollback. At most one may run per migration: the leader's.
type Coordinator struct {
	options Options
	log     *slog.Logger
	writer  string
	waiting waitlist
	kick    chan struct{}

	// revision is the highest that was tried, inherited the record that was loaded; they belong to Run's goroutine.
	revision  int64
	inherited Record

	mu      sync.Mutex
	loaded  bool
	current Record // as the journal has acknowledged it
	queued  *queued
	// give up the attempt, while that is possible
	revoke context.CancelCauseFunc
	// give up the hooks at switch, while they are being called
	abandon     context.CancelFunc
	hookFailing bool
}

// queued is an attempt that was accepted and waits for its place in the journal.
type queued struct {
	attempt string
	request Request
	aborted bool
	done    chan error // buffered; nil once the attempt is in the journal
}

// New only builds; Run does the work.
func New(o Options) *Coordinator {
	if o.Budget == 0 {
		o.Budget = DefaultBudget
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Coordinator{options: o, log: log, writer: fmt.Sprintf("%016x", rand.Uint64()), kick: make(chan struct{}, 1)}
}

// Run loads the journal, takes back or brings to its end what it holds unfinished, and then serves Start until ctx ends, which is
// no error. Stopping it in the middle of a freeze is safe: renewals stop, the origin thaws by itself, and the next Run takes the attempt back.
// It returns ErrSuperseded, or the journal's refusal, when this process leads no more, and touches no pair after that.
func (c *Coordinator) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer c.close()
	wg.Go(func() { c.measure(ctx) })
	err := c.run(ctx)
	if ctx.Err() != nil {
		return nil // whatever err says is what the end made of a call
	}
	return err
}

func (c *Coordinator) run(ctx context.Context) error {
	if err := c.load(ctx); err != nil {
		return err
	}
	r := c.record()
	c.options.Metrics.SetPhase(r.Phase.String())
	if !r.Step.Final() {
		c.log.Warn("unfinished cutover attempt found in the journal", "attempt", r.Attempt, "step", r.Step.String())
		next, err := transition(r, event{kind: restarted}, time.Now())
		if err != nil {
			return err
		}
		if err := c.save(ctx, next); err != nil {
			return err
		}
		a, try := c.newAttempt(ctx)
		if err := a.drive(ctx, try); err != nil {
			return err
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.kick:
		}
		if err := c.serve(ctx); err != nil {
			return err
		}
	}
}

// serve runs the queued attempt from its first record to its end.
func (c *Coordinator) serve(ctx context.Context) error {
	c.mu.Lock()
	q, previous := c.queued, c.current
	c.mu.Unlock()
	if q == nil {
		return nil
	}
	a, try := c.newAttempt(ctx)
	c.setRevoke(a.revoke) // before anyone can read of the attempt, and ask for its abort
	defer c.setRevoke(nil)
	if err := c.save(ctx, begin(previous, q.attempt, q.request, c.options.Migration, time.Now())); err != nil {
		a.release()
		return err
	}
	q.done <- nil
	return a.drive(ctx, try)
}

// close refuses what was accepted but not begun, and all that comes.
func (c *Coordinator) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loaded = false
	if c.queued != nil {
		c.queued.done <- errStopped
		c.queued = nil
	}
}

// Start accepts an attempt and returns its id once the journal has it. It refuses with a RunningError while another runs, or with a
// *preflight.Hinted around ErrAlreadySwitched, ErrNotSwitched, ErrBudget or ErrNotReady. While a hook at switch keeps failing, the
// opposite direction is accepted: the hook is given up, the attempt completes, and the way back begins. If ctx ends first
// the id comes with an error: the attempt begins as soon as the journal answers.
func (c *Coordinator) Start(ctx context.Context, q Request) (string, error) {
	if q.Budget == 0 {
		q.Budget = c.options.Budget
	}
	c.mu.Lock()
	w, err := c.enqueue(q)
	c.mu.Unlock()
	if err != nil {
		return "", err
	}
	select {
	case err := <-w.done:
		if err != nil {
			return "", err
		}
		return w.attempt, nil
	case <-ctx.Done():
		return w.attempt, refuse("cutover-not-recorded", fmt.Errorf("attempt %s waits for its place in the journal: %w", w.attempt, ctx.Err()),
			"look at the status for what it waits for, or abort it")
	}
}

// enqueue decides on a request; c.mu is held.
func (c *Coordinator) enqueue(q Request) (*queued, error) {
	r := c.current
	switch {
	case !c.loaded:
		return nil, refuse("cutover-not-ready", ErrNotReady, "look at the status for what it waits for, then start again")
	case c.queued != nil:
		return nil, &RunningError{Attempt: c.queued.attempt, Phase: Preflight}
	case r.Step.Final(), r.Step == StepAfter:
	case r.Step == StepNotify && c.hookFailing && !q.DryRun && direction(q.Reverse) != r.Direction:
	default:
		return nil, &RunningError{Attempt: r.Attempt, Phase: r.Phase}
	}
	switch {
	case q.Budget < MinBudget || q.Budget > MaxBudget:
		return nil, refuse("cutover-freeze-budget-bounds", fmt.Errorf("%w: %s", ErrBudget, q.Budget), "give one from %s to %s", MinBudget, MaxBudget)
	case !q.Reverse && r.Active == Reverse:
		return nil, refuse("cutover-already-switched", ErrAlreadySwitched, "use `replicator rollback` to go back to the sources")
	case q.Reverse && r.Active == Forward:
		return nil, refuse("cutover-not-switched", ErrNotSwitched, "use `replicator cutover start` to go to the targets")
	}
	c.queued = &queued{attempt: newAttemptID(time.Now(), r.Attempt), request: q, done: make(chan error, 1)}
	if c.abandon != nil && r.Step == StepNotify {
		c.abandon()
	}
	select {
	case c.kick <- struct{}{}:
	default:
	}
	return c.queued, nil
}

// Abort gives up the named attempt; it returns at once, and Status tells when everything is thawed. Aborting what is being given up
// already is no error. After the point of no return it refuses with ErrTooLate.
func (c *Coordinator) Abort(_ context.Context, attempt string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.current
	switch {
	case c.queued != nil && c.queued.attempt == attempt:
		c.queued.aborted = true
		return nil
	case attempt != r.Attempt || r.Step.Final():
		return refuse("cutover-no-such-attempt", fmt.Errorf("%w: %q", ErrNoAttempt, attempt), "`replicator cutover status` shows the attempt that runs, if any")
	case r.Step.Phase() == Aborting:
		return nil
	case c.revoke == nil:
		return refuse("cutover-too-late", fmt.Errorf("%w: the new side accepts the writes", ErrTooLate), "use `replicator rollback` to go back without losing a write")
	}
	c.revoke(errAborted(""))
	return nil
}

// record returns the current record.
func (c *Coordinator) record() Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// publish makes r, which the journal has acknowledged, the current record.
func (c *Coordinator) publish(r Record) {
	c.mu.Lock()
	old := c.current
	c.current = r
	if c.queued != nil && c.queued.attempt == r.Attempt {
		if c.queued.aborted {
			c.revoke(errAborted(""))
		}
		c.queued = nil
	}
	c.mu.Unlock()
	if old.Attempt == r.Attempt && old.Phase == r.Phase && old.Outcome == r.Outcome {
		return
	}
	args := []any{"attempt", r.Attempt, "phase", r.Phase.String(), "direction", r.Direction.String(), "dry_run", r.DryRun}
	if r.Problem != nil {
		args = append(args, "code", r.Problem.Code, "err", r.Problem.Message, "hint", r.Problem.Hint)
	}
	if r.Outcome != "" {
		args = append(args, "outcome", string(r.Outcome), "freeze_seconds", r.FreezeSeconds)
	}
	c.log.Info("cutover phase", args...)
	c.options.Metrics.SetPhase(r.Phase.String())
	if !r.FreezeEnd.IsZero() {
		c.options.Metrics.SetFreezeSeconds(r.FreezeSeconds)
	}
	if r.Outcome != "" && old.Outcome == "" && !r.DryRun {
		c.options.Metrics.Finished(string(r.Outcome))
	}
	if c.options.OnEvent != nil {
		c.options.OnEvent(Event{At: time.Now(), Attempt: r.Attempt, Phase: r.Phase, Reverse: r.Direction.Reverse(), DryRun: r.DryRun,
			Outcome: r.Outcome, Problem: r.clone().Problem})
	}
}

// measure shows a freeze in the metrics while it lasts.
func (c *Coordinator) measure(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if r := c.record(); !r.FreezeStart.IsZero() && r.FreezeEnd.IsZero() {
				c.options.Metrics.SetFreezeSeconds(now.Sub(r.FreezeStart).Seconds())
			}
		}
	}
}
