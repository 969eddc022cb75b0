package redissync

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

// upToArm takes an attempt to where the switch would be decided.
func upToArm(t *testing.T, ctx context.Context, p *Pair, reverse bool) {
	t.Helper()
	upToArmTimes(t, ctx, p, reverse, 2) // every step may be repeated
}

func upToArmTimes(t *testing.T, ctx context.Context, p *Pair, reverse bool, times int) {
	t.Helper()
	fs := slices.DeleteFunc(p.Check(ctx, reverse), func(f preflight.Finding) bool { return f.Code == "redis-pause" }) // whoever calls has seen to it
	if preflight.Worst(fs) > preflight.Info {
		t.Fatalf("check: %+v", fs)
	}
	// Nobody renews the freeze beside the steps, as the coordinator does: it holds for as long as they may take.
	until, ok := ctx.Deadline()
	if !ok {
		t.Fatal("the steps need a deadline")
	}
	steps := []struct {
		name string
		f    func() error
	}{
		{"prepare", func() error { return p.Prepare(ctx, reverse) }},
		{"freeze", func() error { return p.Freeze(ctx, reverse, until) }},
		{"renew", func() error { return p.Renew(ctx, reverse, until.Add(time.Second)) }},
		{"fence", func() error { return p.Fence(ctx, reverse) }},
		{"drain", func() error { return p.Drain(ctx, reverse) }},
		{"verify", func() error {
			n, err := p.Verify(ctx, reverse)
			if n > 0 {
				return fmt.Errorf("%d keys differ", n)
			}
			return err
		}},
		{"arm", func() error { return p.Arm(ctx, reverse) }},
	}
	for _, s := range steps {
		for range times {
			if err := s.f(); err != nil {
				t.Fatalf("%s (reverse %v): %v", s.name, reverse, err)
			}
		}
	}
}

func switchOver(t *testing.T, ctx context.Context, p *Pair, reverse bool) {
	t.Helper()
	for range 2 {
		if err := p.Seal(ctx, reverse); err != nil {
			t.Fatalf("seal: %v", err)
		}
	}
	if err := p.Open(ctx, reverse); err != nil {
		t.Fatalf("open: %v", err)
	}
}

func retire(t *testing.T, ctx context.Context, p *Pair, reverse bool) {
	t.Helper()
	for range 2 {
		if err := p.Retire(ctx, reverse); err != nil {
			t.Fatalf("retire: %v", err)
		}
	}
}

// counters is an application that increments counters on whichever side it is told, and remembers what was acknowledged.
type counters struct {
	side  atomic.Pointer[redistest.Server]
	acked []atomic.Int64
	stop  chan struct{}
	wg    sync.WaitGroup
}

func runCounters(t *testing.T, srv *redistest.Server, n int) *counters {
	c := &counters{acked: make([]atomic.Int64, n), stop: make(chan struct{})}
	c.side.Store(srv)
	for i := range n {
		c.wg.Go(func() {
			for {
				srv := c.side.Load()
				if srv == nil { // stopped for a while
					select {
					case <-c.stop:
						return
					case <-time.After(5 * time.Millisecond):
						continue
					}
				}
				e, _ := parseEndpoint(srv.URL(), TLS{})
				s := &session{endpoint: e, name: "app"}
				for c.side.Load() == srv {
					select {
					case <-c.stop:
						s.close()
						return
					default:
					}
					ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
					v, err := s.do(ctx, "INCR", fmt.Sprintf("counter:%d", i))
					cancel()
					if err != nil {
						break
					}
					c.acked[i].Store(v.num)
				}
				s.close()
			}
		})
	}
	t.Cleanup(c.end)
	return c
}

func (c *counters) end() {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	c.wg.Wait()
}

func (c *counters) check(t *testing.T, at *client, when string) {
	t.Helper()
	for i := range c.acked {
		v, err := at.try("GET", fmt.Sprintf("counter:%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(c.acked[i].Load()); v.str != want {
			t.Errorf("%s: counter %d is %q, acknowledged %s", when, i, v.str, want)
		}
	}
}

func TestCutoverAndRollbackUnderLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	everyType(r.a, "0")
	r.a.do("FUNCTION", "LOAD", "#!lua name=shop\nredis.register_function('price', function() return 7 end)")
	p := r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	app := runCounters(t, r.source, 8)
	for _, reverse := range []bool{false, true, false} {
		to := r.target
		if reverse {
			to = r.source
		}
		eventually(t, "the application writes", func() bool { return app.acked[0].Load() > 0 })
		upToArm(t, ctx, p, reverse)
		if s := p.Status(); s.Phase != Frozen {
			t.Fatalf("phase %s, want frozen", s.Phase)
		}
		r.equal()
		switchOver(t, ctx, p, reverse)
		app.side.Store(to) // the writers are held; their connections end at Retire
		before := app.acked[0].Load()
		retire(t, ctx, p, reverse)
		r.a.s.close() // our own connections were ended as well
		r.b.s.close()
		eventually(t, "the application writes on the other side", func() bool { return app.acked[0].Load() > before+10 })
		want := Reversed
		if reverse {
			want = Streaming
		}
		eventually(t, fmt.Sprintf("phase %s", want), func() bool { return p.Status().Phase == want })
		r.caughtUp()
	}
	app.end()
	r.a.s.close()
	r.b.s.close()
	if v := r.b.do("FCALL", "price", "0"); v.num != 7 {
		t.Errorf("the function wasn't carried over: %+v", v)
	}
	app.check(t, r.b, "on the active side")
	r.caughtUp()
	app.check(t, r.a, "on the side that follows")
	r.equal()
	if s := p.Status(); s.Gaps != 0 || len(s.Problems) > 0 {
		t.Errorf("status %+v", s)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.a.s.close()
	r.a.do("SET", r.o.temporaryKey("x"), "left by a process that was killed")
	if err := p.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*client{r.a, r.b} {
		c.s.close()
		if v := c.do("KEYS", ownPrefix+"*"); len(v.items) != 0 {
			t.Errorf("left behind: %q", v.strings())
		}
	}
}

func TestThawGoesOnAsBefore(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	p := r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	app := runCounters(t, r.source, 4)
	for i, abort := range []func(){
		func() {},
		func() { switchOver(t, ctx, p, false) }, // sealed, but never journalled
	} {
		upToArm(t, ctx, p, false)
		abort()
		before := app.acked[0].Load()
		for range 2 {
			if err := p.Thaw(ctx, false); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "held writes have run", func() bool { return app.acked[0].Load() > before })
		if s := p.Status(); s.Phase != Streaming {
			t.Fatalf("attempt %d: phase %s", i, s.Phase)
		}
	}
	app.end()
	r.caughtUp()
	app.check(t, r.b, "target")
	r.equal()
}

func TestAFreezeEndsByItselfWhenTheProcessDies(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	p := r.run(false)
	r.caughtUp()
	if err := p.Freeze(r.ctx(), false, time.Now().Add(700*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	r.stop() // nobody renews
	r.a.do("SET", "k", "v")
	if took := time.Since(started); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("the write was held for %v", took)
	}
}

func TestSealRefusesAFreezeThatLeaked(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	p := r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	upToArm(t, ctx, p, false)
	r.a.do("CLIENT", "UNPAUSE")
	r.a.do("SET", "leak", "1")
	if err := p.Seal(ctx, false); err == nil {
		t.Fatal("sealed although a write came through")
	}
	if err := p.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
	r.caughtUp()
	r.equal()
	upToArm(t, ctx, p, false)
	r.source.Kill()
	if err := r.source.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Seal(ctx, false); err == nil {
		t.Fatal("sealed although the server was restarted")
	}
	if err := p.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
}

func TestAFreshProcessTakesAnyStepUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	everyType(r.a, "0")
	r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	// Killed before the switch: the next process thaws and goes on.
	upToArm(t, ctx, r.pair, false)
	r.stop()
	r.o.Epoch++
	r.run(false)
	if err := r.pair.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
	r.a.do("SET", "after", "thaw")
	r.caughtUp()
	r.equal()
	// Killed after the switch was journalled: the next process runs in reverse and completes it.
	for _, reverse := range []bool{false, true} {
		upToArm(t, ctx, r.pair, reverse)
		if err := r.pair.Seal(ctx, reverse); err != nil {
			t.Fatal(err)
		}
		r.stop()
		from, to := r.a, r.b
		if reverse {
			from, to = to, from
		}
		held := make(chan error, 1)
		go func() { _, err := from.try("SET", "held", "1"); held <- err }()
		r.o.Epoch++
		r.run(!reverse)
		switchOver(t, ctx, r.pair, reverse)
		to.do("SET", "new", fmt.Sprint(reverse))
		retire(t, ctx, r.pair, reverse)
		if err := <-held; err == nil {
			t.Fatal("a held write ran on the side that was left")
		}
		r.caughtUp()
		r.equal()
	}
}

// A process that takes over after a rollback was decided finds the target held for good. Its own writes there wait for the end of that, and
// don't hold up what ends it.
func TestAFreshProcessEndsThePauseThatHoldsIt(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	everyType(r.a, "0")
	r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	for _, reverse := range []bool{false, true} {
		upToArm(t, ctx, r.pair, reverse)
		switchOver(t, ctx, r.pair, reverse)
		if !reverse {
			retire(t, ctx, r.pair, reverse)
		}
	}
	r.stop()
	r.a = dialServer(t, r.source) // the application's sessions were ended
	r.a.do("SET", "new", "1")
	r.o.Epoch++
	p := r.run(false)
	eventually(t, "the new process's claim is held", func() bool {
		clients, err := listClients(ctx, r.b.s)
		return err == nil && slices.ContainsFunc(clients, func(c clientInfo) bool { return c.cmd == "hsetnx" && strings.Contains(c.flags, "b") })
	})
	began := time.Now()
	retire(t, ctx, p, true)
	if took := time.Since(began); took > ioTimeout/2 {
		t.Errorf("the target was held for another %v", took)
	}
	r.b = dialServer(t, r.target)
	r.caughtUp()
	r.equal()
}
