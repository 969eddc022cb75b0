package redissync

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

// newQuietRig has a source whose user may not pause clients, or one that is too old to hold writes alone.
func newQuietRig(t *testing.T, version string) *rig {
	r := newRig(t, redistest.Options{Version: version}, redistest.Options{})
	r.o.QuietFor = 500 * time.Millisecond
	if version == "" {
		r.a.do("ACL", "SETUSER", "owner", "on", ">pw", "allkeys", "allchannels", "+@all", "-client|pause", "-client|unpause")
		r.o.SourceURL = strings.Replace(r.o.SourceURL, "redis://", "redis://owner:pw@", 1)
	}
	return r
}

// TestCutoverOfASourceThatCantBeHeld goes there, and back, where the source allows no CLIENT PAUSE … WRITE, with keys that expire all the while.
func TestCutoverOfASourceThatCantBeHeld(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"", "redis-6.0"} {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			r := newQuietRig(t, version)
			everyType(r.a, "0")
			p := r.run(false)
			ctx := r.ctx()
			r.caughtUp()
			if fs := codes(Check(ctx, r.o), preflight.Warning); !strings.Contains(fmt.Sprint(fs), "redis-pause/source") || strings.Contains(fmt.Sprint(fs), "redis-permission") {
				t.Errorf("check says %v", fs)
			}
			app := runCounters(t, r.source, 4)
			for _, reverse := range []bool{false, true, false} {
				at, to, from := r.a, r.target, r.source
				if reverse {
					at, to, from = r.b, r.source, r.target
				}
				for i := range 400 { // some expire in each step
					at.do("SET", fmt.Sprintf("short%d", i), "v", "PX", fmt.Sprint(500+i*20))
				}
				eventually(t, "the application writes", func() bool { return app.acked[0].Load() > 0 })
				if fs := p.Check(ctx, reverse); preflight.Worst(fs) > preflight.Warning {
					t.Fatalf("check: %+v", fs)
				}
				if err := p.Prepare(ctx, reverse); err != nil {
					t.Fatal(err)
				}
				frozen := make(chan error, 1)
				go func() { frozen <- p.Freeze(ctx, reverse, time.Now().Add(20*time.Second)) }()
				if !reverse { // as the hook does: it has no effect on us until they have stopped
					eventually(t, "the wait names the writers", func() bool {
						return strings.Contains(p.Waiting(), "incr (") && hasProblem(p.Status(), "redis-writers")
					})
					if err := p.Renew(ctx, reverse, time.Now().Add(20*time.Second)); err != nil {
						t.Fatalf("renew while waiting: %v", err)
					}
					app.side.Store(nil)
				}
				if err := <-frozen; err != nil {
					t.Fatal(err)
				}
				for _, step := range []func() error{
					func() error { return p.Renew(ctx, reverse, time.Now().Add(20*time.Second)) },
					func() error { return p.Fence(ctx, reverse) },
					func() error { return p.Drain(ctx, reverse) },
					func() error {
						n, err := p.Verify(ctx, reverse)
						if n > 0 {
							return fmt.Errorf("%d keys differ", n)
						}
						return err
					},
					func() error { return p.Arm(ctx, reverse) },
					func() error { return p.Seal(ctx, reverse) },
				} {
					if err := step(); err != nil {
						t.Fatalf("from %s: %v", from.Address(), err)
					}
				}
				switchOver(t, ctx, p, reverse)
				app.side.Store(to)
				before := app.acked[0].Load()
				retire(t, ctx, p, reverse)
				r.a.s.close()
				r.b.s.close()
				eventually(t, "the application writes on the other side", func() bool { return app.acked[0].Load() > before })
				r.caughtUp()
			}
			app.end()
			r.caughtUp()
			app.check(t, r.a, "source")
			app.check(t, r.b, "target")
			r.equal()
			if s := p.Status(); len(s.Problems) > 0 {
				t.Errorf("status %+v", s)
			}
		})
	}
}

// TestAWriterThatGoesOnEndsTheAttempt: before the freeze it never comes to a freeze; after it, nothing is sealed.
func TestAWriterThatGoesOnEndsTheAttempt(t *testing.T) {
	t.Parallel()
	r := newQuietRig(t, "")
	p := r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	app := runCounters(t, r.source, 2)
	eventually(t, "the application writes", func() bool { return app.acked[0].Load() > 0 })
	brief, cancel := context.WithTimeout(ctx, r.o.quietFor()+time.Second)
	defer cancel()
	err := p.Freeze(brief, false, time.Now().Add(time.Minute))
	var h *preflight.Hinted
	if !errors.As(err, &h) || h.Code != "redis-writers" || !strings.Contains(err.Error(), "incr (") || !strings.Contains(err.Error(), " by app 127.0.0.1:") {
		t.Fatalf("frozen under a writer: %v", err)
	}
	if err := p.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
	app.end()
	for _, write := range []command{{"SET", "late", "1"}, {"PSETEX", "late", "100000", "2"}, {"UNLINK", "late"}} {
		if err := p.Freeze(ctx, false, time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for _, step := range []func(context.Context, bool) error{p.Fence, p.Drain, p.Arm} {
			if err := step(ctx, false); err != nil {
				t.Fatal(err)
			}
		}
		r.a.do(write...)
		if err := p.Seal(ctx, false); err == nil {
			t.Fatalf("sealed although %s came after the fence", write[0])
		}
		if err := p.Thaw(ctx, false); err != nil {
			t.Fatal(err)
		}
		if s := p.Status(); s.Phase != Streaming {
			t.Errorf("phase %s", s.Phase)
		}
		r.caughtUp()
		r.equal()
		app.check(t, r.b, "target")
	}
}

// TestExpiriesAreNoWrites counts again and again while keys expire all the time, also between the readings that make up one count.
func TestExpiriesAreNoWrites(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{Version: "redis-6.0", Settings: map[string]string{"hz": "500"}}, redistest.Options{})
	p := r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	f, err := p.current(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s := f.quietSession()
	defer s.close()
	var units []unit
	for i := range 4000 {
		units = append(units, unit{"", []command{{"SET", fmt.Sprintf("short%d", i), "v", "PX", fmt.Sprint(300 + i/4)}}})
	}
	if _, err := r.a.s.exec(ctx, 0, units); err != nil {
		t.Fatal(err)
	}
	was, err := f.tally(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	first := was
	for was.removed-first.removed < 3000 {
		now, err := f.tally(ctx, s)
		if err != nil {
			t.Fatal(err)
		}
		for _, earlier := range []tally{first, was} {
			if what := now.since(earlier, true); len(what) > 0 {
				t.Fatalf("after %d keys had expired: %v", now.removed-first.removed, what)
			}
		}
		was = now
	}
	r.a.do("PSETEX", "a stranger's", "100000", "v") // no count tells of it
	eventually(t, "all keys have expired", func() bool { return r.a.do("DBSIZE").num == 1 })
	if was, err = f.tally(ctx, s); err != nil {
		t.Fatal(err)
	}
	r.a.do("PSETEX", "a stranger's", "100000", "w")
	now, err := f.tally(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if what := now.since(was, true); len(what) != 1 {
		t.Errorf("a write that no command's count tells of: %v", what)
	}
}
