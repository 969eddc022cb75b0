package cutover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"replicator/internal/preflight"
)

// fault is what befalls one operation.
type fault int

const (
	none        fault = iota
	crashBefore       // the process dies, the operation has no effect
	crashAfter        // the process dies, the operation had its effect
	refused           // an error, no effect
	lost              // an error, though it had its effect
	hangBefore        // no answer until the caller gives up, no effect
	hangAfter         // no answer until the caller gives up, though it had its effect
)

var faults = []fault{crashBefore, crashAfter, refused, lost, hangBefore, hangAfter}

func (f fault) String() string {
	return [...]string{"none", "crash-before", "crash-after", "refused", "lost", "hang-before", "hang-after"}[f]
}

var (
	errDead    = errors.New("this process is dead")
	errNetwork = errors.New("connection reset")
)

// world is two databases per pair, the journal, and the application, which writes to whatever side lets it. It outlives the
// coordinators' processes.
type world struct {
	mu       sync.Mutex
	pairs    []*database
	journal  []byte
	hooks    []string // ids of deliveries that arrived, in order
	log      []string
	ops      int
	fault    func(n int, op string) fault // nil: none
	takes    map[string]time.Duration     // by "pair.method" or "method"
	fails    map[string]error             // an error for every call, by the same names
	findings map[string][]preflight.Finding
	mismatch map[string]int
	wrong    []string // violations of the invariants
}

// database is one pair's two sides.
type database struct {
	name  string
	sides [2]side
	fence int
	// given: the process that froze it has thawed it, or sealed it, and must not renew any more.
	given string
	// latest is the furthest deadline that was asked for.
	latest time.Time
}

// side is one server: how it is shut, and how many of the application's writes it holds.
type side struct {
	sealed bool
	until  time.Time // frozen until
	rows   int
}

func (s *side) writable() bool { return !s.sealed && !time.Now().Before(s.until) }

func newWorld(names ...string) *world {
	w := &world{takes: map[string]time.Duration{}, fails: map[string]error{}, findings: map[string][]preflight.Finding{}}
	for _, n := range names {
		d := &database{name: n}
		d.sides[1].sealed = true // the target's gate is shut from the first copy on
		w.pairs = append(w.pairs, d)
	}
	return w
}

// observe lets the application write, and checks what must hold at every instant. w.mu is held.
func (w *world) observe(op string) {
	for _, d := range w.pairs {
		if d.sides[0].writable() && d.sides[1].writable() {
			w.wrong = append(w.wrong, fmt.Sprintf("after %s both sides of %s accept writes", op, d.name))
		}
		for i := range d.sides {
			if d.sides[i].writable() {
				d.sides[i].rows++
			}
		}
	}
}

// process is one life of a coordinator.
type process struct {
	*world
	kill context.CancelFunc
	dead bool // under world.mu
}

// do is every operation on the world: it may take time, be spoilt, or end the process.
func (p *process) do(ctx context.Context, op, method string, effect func() error) error {
	w := p.world
	w.mu.Lock()
	w.ops++
	f := none
	if w.fault != nil && !p.dead {
		f = w.fault(w.ops, op)
	}
	wait := w.takes[method] + w.takes[op]
	w.mu.Unlock()
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	hang := func() error { // until the caller, or at last TCP, gives up
		timer := time.NewTimer(10 * time.Minute)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return errNetwork
		}
	}
	err := func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.observe("before " + op)
		switch {
		case p.dead:
			return errDead
		case f == crashBefore:
			p.dead = true
			p.kill()
			return errDead
		case f == refused:
			return errNetwork
		case f == hangBefore:
			return nil
		}
		err := w.fails[op]
		if err == nil {
			err = w.fails[method]
		}
		if err == nil {
			err = effect()
		}
		if method != "renew" && method != "load" {
			w.log = append(w.log, op)
		}
		w.observe(op)
		if f == crashAfter {
			p.dead = true
			p.kill()
			return errDead
		}
		return err
	}()
	switch {
	case err != nil:
		return err
	case f == hangBefore || f == hangAfter:
		return hang()
	case f == lost:
		return errNetwork
	}
	return nil
}

// fakePair is one process's handle on a database.
type fakePair struct {
	p *process
	d *database
}

func (f *fakePair) Name() string { return f.d.name }

func (f *fakePair) do(ctx context.Context, method string, effect func() error) error {
	return f.p.do(ctx, f.d.name+"."+method, method, effect)
}

// ends returns origin and destination.
func (f *fakePair) ends(reverse bool) (*side, *side) {
	if reverse {
		return &f.d.sides[1], &f.d.sides[0]
	}
	return &f.d.sides[0], &f.d.sides[1]
}

func (f *fakePair) Check(ctx context.Context, _ bool) (all []preflight.Finding) {
	all = []preflight.Finding{{Code: "fine", Severity: preflight.OK}}
	if err := f.do(ctx, "check", func() error { all = append(all, f.p.findings[f.d.name]...); return nil }); err != nil {
		return []preflight.Finding{{Code: "unreachable", Severity: preflight.Error, Message: err.Error(), Hint: "see that the server answers"}}
	}
	return all
}

func (f *fakePair) Prepare(ctx context.Context, _ bool) error {
	return f.do(ctx, "prepare", func() error { return nil })
}

func (f *fakePair) Freeze(ctx context.Context, reverse bool, deadline time.Time) error {
	// The gate is armed first; then the barrier takes its time, during which the freeze must be renewed.
	f.p.mu.Lock()
	dead := f.p.dead
	origin, _ := f.ends(reverse)
	f.d.given, f.d.latest = "", deadline
	if !dead && !origin.sealed && time.Now().Before(deadline) {
		origin.until = deadline
	}
	f.p.mu.Unlock()
	return f.do(ctx, "freeze", func() error {
		if origin.writable() {
			return errors.New("the freeze has lapsed")
		}
		return nil
	})
}

func (f *fakePair) Renew(ctx context.Context, reverse bool, deadline time.Time) error {
	return f.do(ctx, "renew", func() error {
		if f.d.given != "" {
			f.p.wrong = append(f.p.wrong, f.d.name+" was renewed after it was "+f.d.given)
		}
		if deadline.After(f.d.latest) {
			f.d.latest = deadline
		}
		origin, _ := f.ends(reverse)
		if origin.writable() {
			return errors.New("the freeze has lapsed")
		}
		if !origin.sealed {
			origin.until = deadline
		}
		return nil
	})
}

func (f *fakePair) Seal(ctx context.Context, reverse bool) error {
	return f.do(ctx, "seal", func() error {
		origin, _ := f.ends(reverse)
		if origin.writable() {
			return errors.New("the freeze has lapsed")
		}
		origin.sealed, f.d.given = true, "sealed"
		return nil
	})
}

func (f *fakePair) Thaw(ctx context.Context, reverse bool) error {
	return f.do(ctx, "thaw", func() error {
		origin, destination := f.ends(reverse)
		if !destination.sealed {
			f.p.wrong = append(f.p.wrong, f.d.name+" was thawed though its destination is open")
		}
		origin.sealed, origin.until, f.d.given = false, time.Time{}, "thawed"
		return nil
	})
}

func (f *fakePair) Fence(ctx context.Context, reverse bool) error {
	return f.do(ctx, "fence", func() error { origin, _ := f.ends(reverse); f.d.fence = origin.rows; return nil })
}

func (f *fakePair) Drain(ctx context.Context, reverse bool) error {
	return f.do(ctx, "drain", func() error { _, destination := f.ends(reverse); destination.rows = f.d.fence; return nil })
}

func (f *fakePair) Sequences(ctx context.Context, _ bool) error {
	return f.do(ctx, "sequences", func() error { return nil })
}

func (f *fakePair) Verify(ctx context.Context, _ bool) (n int, err error) {
	err = f.do(ctx, "verify", func() error { n = f.p.mismatch[f.d.name]; return nil })
	return n, err
}

func (f *fakePair) Arm(ctx context.Context, _ bool) error {
	return f.do(ctx, "arm", func() error { return nil })
}

func (f *fakePair) Open(ctx context.Context, reverse bool) error {
	return f.do(ctx, "open", func() error {
		origin, destination := f.ends(reverse)
		if destination.sealed && destination.rows != origin.rows {
			f.p.wrong = append(f.p.wrong, fmt.Sprintf("%s opens with %d of %d writes", f.d.name, destination.rows, origin.rows))
		}
		destination.sealed, destination.until = false, time.Time{}
		return nil
	})
}

func (f *fakePair) Retire(ctx context.Context, _ bool) error {
	return f.do(ctx, "retire", func() error { return nil })
}

// fakeJournal is one process's handle on the journal.
type fakeJournal struct{ p *process }

func (j fakeJournal) Load(ctx context.Context) (b []byte, err error) {
	err = j.p.do(ctx, "load", "load", func() error { b = slices.Clone(j.p.journal); return nil })
	return b, err
}

func (j fakeJournal) Save(ctx context.Context, b []byte) error {
	r, err := decode(b)
	if err != nil {
		return err
	}
	return j.p.do(ctx, "save "+r.Step.String(), "save", func() error {
		if held, _ := decode(j.p.journal); held.Revision >= r.Revision && held.Writer != "" {
			return errors.New("a later revision is stored")
		}
		j.p.journal = slices.Clone(b)
		return nil
	})
}

// fakeHook is a receiver that counts.
type fakeHook struct {
	p    *process
	name string
}

func (h fakeHook) String() string { return "fake " + h.name }

func (h fakeHook) Call(ctx context.Context, d Delivery) error {
	op := fmt.Sprintf("hook %s/%d", d.Event, d.N)
	if d.DryRun {
		op += " dry run"
	}
	return h.p.do(ctx, op, "hook", func() error {
		h.p.hooks = append(h.p.hooks, d.ID())
		for _, pair := range h.p.pairs {
			if d.Event == AtSwitch && !d.DryRun && pair.sides[1-int(d.Direction)].sealed {
				h.p.wrong = append(h.p.wrong, "the switch hook was called before "+pair.name+" was open")
			}
		}
		return nil
	})
}

// life is a coordinator that runs on a world.
type life struct {
	*Coordinator
	p    *process
	done chan struct{} // closed when Run has returned
	err  error
}

// boot starts a process on w; it must be called inside a synctest bubble, and ended by halt or a crash.
func (w *world) boot(t *testing.T, change func(*Options)) *life {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &process{world: w, kill: cancel}
	o := Options{Migration: "shop", Journal: fakeJournal{p}}
	for _, d := range w.pairs {
		o.Pairs = append(o.Pairs, &fakePair{p, d})
	}
	for _, m := range []Moment{AtBefore, AtSwitch, AtSwitch, AtAfter, AtAbort} {
		o.Hooks = append(o.Hooks, Hook{At: m, Means: fakeHook{p, string(m)}})
	}
	if change != nil {
		change(&o)
	}
	l := &life{Coordinator: New(o), p: p, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		l.err = l.Run(ctx)
	}()
	return l
}

// halt ends the process as a signal would, and waits for it.
func (l *life) halt() {
	l.p.kill()
	<-l.done
}

// until waits for a condition in the bubble's time.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	pause := 50 * time.Millisecond
	for end := time.Now().Add(6 * time.Hour); !cond(); pause = min(pause+pause/4, time.Second) {
		if time.Now().After(end) {
			t.Fatalf("waited 6 hours of the bubble's time for %s", what)
		}
		<-time.After(pause)
	}
}

// ended waits until the life's attempt, or the life itself, has ended.
func (l *life) ended(t *testing.T) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("status: %+v", l.Status())
		}
	}()
	until(t, "the attempt's end", func() bool {
		select {
		case <-l.done:
			return true
		default:
			s := l.Status()
			return s.Ready && !s.Running()
		}
	})
}

// record decodes what the journal holds.
func (w *world) record(t *testing.T) Record {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	r, err := decode(w.journal)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// settled checks that nothing is left undecided: on every pair exactly the active direction's origin accepts writes.
func (w *world) settled(t *testing.T, active Direction) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.observe("the end")
	for _, d := range w.pairs {
		for i := range d.sides {
			if got, want := d.sides[i].writable(), i == int(active); got != want {
				t.Errorf("pair %s, side %d: writable %t, want %t (active %s)", d.name, i, got, want, active)
			}
		}
	}
	for _, v := range w.wrong {
		t.Error("invariant: " + v)
	}
}

// take returns and forgets the log, with what happened at once sorted into one line.
func (w *world) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var b strings.Builder
	var group []string
	flush := func() {
		slices.Sort(group)
		if len(group) > 0 {
			fmt.Fprintln(&b, "  "+strings.Join(group, " "))
		}
		group = nil
	}
	for _, line := range w.log {
		if strings.HasPrefix(line, "save") || strings.HasPrefix(line, "hook") {
			flush()
			fmt.Fprintln(&b, line)
			continue
		}
		method := line[strings.LastIndex(line, "."):]
		if len(group) > 0 && !strings.HasSuffix(group[0], method) {
			flush()
		}
		group = append(group, line)
	}
	flush()
	w.log = nil
	return b.String()
}
