package cutover

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -rewrite and read the difference):\n%s", path, got)
	}
}

// TestScenarios runs whole attempts against the fake world and compares the order of saves, calls and hooks with golden files.
func TestScenarios(t *testing.T) {
	final := retry.Stop(errors.New("the bouncer is gone"))
	for name, play := range map[string]func(t *testing.T, w *world, l *life, say func(string)){
		"cutover-and-rollback": func(t *testing.T, w *world, l *life, say func(string)) {
			say(l.attempt(t, Request{By: "ann"}))
			say(l.attempt(t, Request{Reverse: true}))
			w.settled(t, Forward)
		},
		"dry-run": func(t *testing.T, w *world, l *life, say func(string)) {
			say(l.attempt(t, Request{DryRun: true}))
			w.settled(t, Forward)
		},
		"dry-run-hook-fails": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() { w.fails["hook switch/2 dry run"] = final })
			say(l.attempt(t, Request{DryRun: true}))
			w.settled(t, Forward)
		},
		"preflight-finding": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() {
				w.findings["b"] = []preflight.Finding{{Code: "slot-missing", Severity: preflight.Error, Message: "the slot is gone", Hint: "run resync"},
					{Code: "slow", Severity: preflight.Warning, Message: "slow disk"}}
			})
			say(l.attempt(t, Request{}))
			w.settled(t, Forward)
		},
		"before-hook-fails": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() { w.fails["hook before/1"] = final })
			say(l.attempt(t, Request{}))
			w.settled(t, Forward)
		},
		"verify-finds-differences": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() { w.mismatch = map[string]int{"b": 3} })
			say(l.attempt(t, Request{}))
			w.settled(t, Forward)
		},
		"drain-needs-an-operator": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() {
				w.fails["a.drain"] = &preflight.Hinted{Code: "schema-drift", Err: errors.New("public.users has a new column"), Hint: "run ALTER TABLE"}
			})
			say(l.attempt(t, Request{}))
			w.settled(t, Forward)
		},
		"seal-fails-on-one-pair": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() { w.fails["b.seal"] = errNetwork })
			say(l.attempt(t, Request{}))
			w.settled(t, Forward)
		},
		"after-hook-fails": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() { w.fails["hook after/1"] = final })
			say(l.attempt(t, Request{}))
			w.settled(t, Reverse)
		},
		"death-before-a-pair-opens": func(t *testing.T, w *world, l *life, say func(string)) {
			say(w.deadly(t, l, "b.open", crashBefore))
			w.settled(t, Reverse)
		},
		"death-between-switch-hooks": func(t *testing.T, w *world, l *life, say func(string)) {
			say(w.deadly(t, l, "hook switch/2", crashBefore))
			w.settled(t, Reverse)
		},
		"death-after-the-seals": func(t *testing.T, w *world, l *life, say func(string)) {
			say(w.deadly(t, l, "save open", crashBefore))
			w.settled(t, Forward)
		},
		"abort-hook-fails": func(t *testing.T, w *world, l *life, say func(string)) {
			w.set(func() { w.mismatch, w.fails["hook abort/1"] = map[string]int{"a": 1}, final })
			say(l.attempt(t, Request{}))
			w.settled(t, Forward)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("a", "b")
				l := w.boot(t, nil)
				defer l.halt()
				l.ended(t)
				var b strings.Builder
				play(t, w, l, func(s string) { b.WriteString(s) })
				golden(t, name+".golden", b.String())
			})
		})
	}
}

// set changes the world's behaviour.
func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// attempt starts one, waits for its end and tells its story.
func (l *life) attempt(t *testing.T, q Request) string {
	t.Helper()
	if _, err := l.Start(t.Context(), q); err != nil {
		t.Fatal(err)
	}
	l.ended(t)
	s := l.Status()
	story := fmt.Sprintf("# %+v\n%s= phase %s, outcome %s, active %s\n", q, l.p.take(), s.Phase, s.Outcome, s.Active)
	if s.Error != "" {
		story += fmt.Sprintf("= %s: %s\n= hint: %s\n", s.Code, s.Error, s.Hint)
	}
	for _, f := range s.Findings {
		story += fmt.Sprintf("= %s %s %s: %s (%s)\n", f.Severity, f.Pair, f.Code, f.Message, f.Hint)
	}
	return story
}

// deadly starts a cutover in l, which dies at op, and tells what its successor does.
func (w *world) deadly(t *testing.T, l *life, op string, f fault) string {
	t.Helper()
	w.set(func() {
		w.fault = func(_ int, o string) fault {
			if o == op {
				return f
			}
			return none
		}
	})
	if _, err := l.Start(t.Context(), Request{}); err != nil {
		t.Fatal(err)
	}
	<-l.done
	w.take()
	w.set(func() { w.fault = nil })
	next := w.boot(t, nil)
	defer next.halt()
	next.ended(t)
	return fmt.Sprintf("# after the death at %s\n%s= %s\n", op, w.take(), next.Status().Outcome)
}

func TestStartRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		w.takes["drain"] = 5 * time.Second
		idle := New(Options{})
		if _, err := idle.Start(t.Context(), Request{}); !errors.Is(err, ErrNotReady) {
			t.Errorf("before Run: %v, want ErrNotReady", err)
		}
		l := w.boot(t, nil)
		l.ended(t)
		wantHint := func(err, want error) {
			t.Helper()
			var h *preflight.Hinted
			if !errors.Is(err, want) || !errors.As(err, &h) || h.Hint == "" || h.Code == "" {
				t.Errorf("%v, want %v with code and hint", err, want)
			}
		}
		_, err := l.Start(t.Context(), Request{Reverse: true})
		wantHint(err, ErrNotSwitched)
		_, err = l.Start(t.Context(), Request{Budget: 1})
		wantHint(err, ErrBudget)
		wantHint(l.Abort(t.Context(), "nothing"), ErrNoAttempt)

		id, err := l.Start(t.Context(), Request{})
		if err != nil {
			t.Fatal(err)
		}
		var running *RunningError
		if _, err = l.Start(t.Context(), Request{}); !errors.As(err, &running) || running.Attempt != id {
			t.Errorf("second start: %v, want a RunningError of %s", err, id)
		}
		wantHint(err, ErrRunning)
		l.ended(t)
		_, err = l.Start(t.Context(), Request{})
		wantHint(err, ErrAlreadySwitched)
		wantHint(l.Abort(t.Context(), id), ErrNoAttempt)
		second, err := l.Start(t.Context(), Request{Reverse: true})
		if err != nil || second <= id {
			t.Errorf("rollback %q after %q: %v, want a later id", second, id, err)
		}
		l.ended(t)
		l.halt()
		if _, err := l.Start(t.Context(), Request{}); !errors.Is(err, ErrNotReady) {
			t.Errorf("after Run: %v, want ErrNotReady", err)
		}
	})
}

// TestAttemptIDsSort also with a clock that stands still or goes back.
func TestAttemptIDsSort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAttemptID(t0(), "")
		b := newAttemptID(t0(), a)
		c := newAttemptID(t0().Add(-5e12), b)
		if a >= b || b >= c {
			t.Errorf("ids %q %q %q do not sort", a, b, c)
		}
	})
}

// TestConcurrentStartsGiveOneAttempt: whoever loses hears of the winner.
func TestConcurrentStartsGiveOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.takes["drain"] = time.Second
		l := w.boot(t, nil)
		defer l.halt()
		l.ended(t)
		type answer struct {
			id  string
			err error
		}
		answers := make(chan answer)
		for range 8 {
			go func() { id, err := l.Start(t.Context(), Request{}); answers <- answer{id, err} }()
		}
		var winner string
		var losers []string
		for range 8 {
			a := <-answers
			var running *RunningError
			switch {
			case a.err == nil && winner == "":
				winner = a.id
			case errors.As(a.err, &running):
				losers = append(losers, running.Attempt)
			default:
				t.Errorf("id %q, err %v", a.id, a.err)
			}
		}
		for _, id := range losers {
			if id != winner {
				t.Errorf("a loser was told %q runs, want %q", id, winner)
			}
		}
		l.ended(t)
		w.settled(t, Reverse)
	})
}

// TestSwitchHookIsGivenUpForTheWayBack: it is repeated for as long as it takes, status says so, and only the way back ends it.
func TestSwitchHookIsGivenUpForTheWayBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		l := w.boot(t, nil)
		defer l.halt()
		l.ended(t)
		w.fails["hook switch/1"] = retry.Stop(errors.New("answered 404"))
		id, err := l.Start(t.Context(), Request{})
		if err != nil {
			t.Fatal(err)
		}
		until(t, "the hook to fail often", func() bool {
			s := strings.Join(l.Status().WaitingFor, " ")
			return strings.Contains(s, "hook switch/1 (fake switch), after 20 tries: answered 404")
		})
		if err := l.Abort(t.Context(), id); !errors.Is(err, ErrTooLate) || !strings.Contains(err.Error(), "rollback") {
			t.Errorf("abort: %v, want ErrTooLate with the way back", err)
		}
		if _, err := l.Start(t.Context(), Request{}); !errors.Is(err, ErrRunning) {
			t.Errorf("another cutover: %v, want ErrRunning", err)
		}
		if _, err := l.Start(t.Context(), Request{Reverse: true, DryRun: true}); !errors.Is(err, ErrRunning) {
			t.Errorf("a dry run of the way back: %v, want ErrRunning", err)
		}
		w.take()
		back, err := l.Start(t.Context(), Request{Reverse: true})
		if err != nil {
			t.Fatal(err)
		}
		w.set(func() { delete(w.fails, "hook switch/1") })
		until(t, "the rollback", func() bool { s := l.Status(); return s.Attempt == back && !s.Running() })
		if s := l.Status(); s.Outcome != OutcomeRolledBack || s.Active != Forward {
			t.Errorf("outcome %q active %s, want rolled_back and forward", s.Outcome, s.Active)
		}
		w.settled(t, Forward)
	})
}

// TestSwitchHookRecovers: once the receiver answers, the attempt goes on by itself.
func TestSwitchHookRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		l := w.boot(t, nil)
		defer l.halt()
		l.ended(t)
		w.fails["hook switch/2"] = errNetwork
		if _, err := l.Start(t.Context(), Request{}); err != nil {
			t.Fatal(err)
		}
		until(t, "tries", func() bool { return strings.Contains(strings.Join(l.Status().WaitingFor, " "), "after 10 tries") })
		if f := l.Status().FreezeSeconds; f > 1 {
			t.Errorf("freeze lasted %v s: it ends when the destination opens, not with the hooks", f)
		}
		w.set(func() { delete(w.fails, "hook switch/2") })
		l.ended(t)
		if s := l.Status(); s.Outcome != OutcomeDone {
			t.Errorf("outcome %q, want done", s.Outcome)
		}
		w.settled(t, Reverse)
	})
}
