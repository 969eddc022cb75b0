package cutover

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/metrics"
)

// begun boots a coordinator, starts a cutover on w and returns when it has come to s.
func begun(t *testing.T, w *world, s Step, budget time.Duration) *life {
	t.Helper()
	l := w.boot(t, nil)
	l.ended(t)
	if _, err := l.Start(t.Context(), Request{Budget: budget}); err != nil {
		t.Fatal(err)
	}
	until(t, "step "+s.String(), func() bool {
		return slices.ContainsFunc(l.Status().Steps, func(st StepTime) bool { return st.Step == s })
	})
	return l
}

// TestBudgetSpent: whatever phase takes too long, the writes come back when the budget is used up, and the error says what it waited for.
func TestBudgetSpent(t *testing.T) {
	for _, method := range []string{"freeze", "fence", "drain", "sequences", "verify", "arm"} {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("a", "b")
				w.takes["b."+method] = time.Hour
				l := begun(t, w, StepFreeze, 21*time.Second)
				defer l.halt()
				<-time.After(20 * time.Second)
				if w.pairs[0].sides[0].writable() || w.pairs[1].sides[0].writable() {
					t.Error("an origin accepts writes before the budget is used up")
				}
				if s := l.Status(); s.FreezeSeconds < 19 || s.FreezeSeconds > 21 || s.Deadline.IsZero() || !strings.Contains(strings.Join(s.WaitingFor, ";"), "pair b: "+method) {
					t.Errorf("status during the freeze: %.1f s, deadline %s, waiting for %q", s.FreezeSeconds, s.Deadline, s.WaitingFor)
				}
				<-time.After(1500 * time.Millisecond)
				s := l.Status()
				if s.Outcome != OutcomeAborted || s.Code != "cutover-freeze-budget" || !strings.Contains(s.Error, "waiting for pair b: "+method) || s.Hint == "" {
					t.Errorf("outcome %q, %s: %s (%s)", s.Outcome, s.Code, s.Error, s.Hint)
				}
				if s.FreezeSeconds < 20.9 || s.FreezeSeconds > 21.5 {
					t.Errorf("froze %v s, want the budget of 21", s.FreezeSeconds)
				}
				for _, d := range w.pairs {
					if d.latest.After(s.Deadline) {
						t.Errorf("pair %s was frozen until %s, past the deadline %s", d.name, d.latest, s.Deadline)
					}
				}
				w.settled(t, Forward)
			})
		})
	}
}

// TestLongBarrierIsRenewed: a freeze that takes longer than one hold is kept up from its beginning.
func TestLongBarrierIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.takes["a.freeze"], w.takes["drain"] = 4*holdTTL, 2*holdTTL
		l := begun(t, w, StepFreeze, 2*time.Minute)
		defer l.halt()
		l.ended(t)
		if s := l.Status(); s.Outcome != OutcomeDone {
			t.Errorf("outcome %q: %s", s.Outcome, s.Error)
		}
		w.settled(t, Reverse)
	})
}

// TestNoSealWithoutMargin: with less than the margin left, the attempt is taken back rather than sealed.
func TestNoSealWithoutMargin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.takes["drain"] = 20*time.Second - sealMargin/2
		l := begun(t, w, StepFreeze, 20*time.Second)
		defer l.halt()
		l.ended(t)
		if s := l.Status(); s.Outcome != OutcomeAborted || s.Code != "cutover-freeze-budget" {
			t.Errorf("outcome %q, %s: %s", s.Outcome, s.Code, s.Error)
		}
		if story := w.take(); strings.Contains(story, ".seal") {
			t.Errorf("a pair was sealed:\n%s", story)
		}
		w.settled(t, Forward)
	})
}

// TestSlowSealIsTakenBack: a seal that isn't acknowledged before the freeze would lapse leads back.
func TestSlowSealIsTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.takes["b.seal"] = time.Hour
		l := begun(t, w, StepFreeze, 20*time.Second)
		defer l.halt()
		l.ended(t)
		s := l.Status()
		if s.Outcome != OutcomeAborted || s.FreezeSeconds > 20 {
			t.Errorf("outcome %q after %v s: %s", s.Outcome, s.FreezeSeconds, s.Error)
		}
		w.settled(t, Forward)
	})
}

// TestRenewalsFail: one pair's freeze can't be renewed, the other's can. One hold later it is over.
func TestRenewalsFail(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"refused": func(w *world) { w.fails["b.renew"] = errNetwork },
		"hangs":   func(w *world) { w.takes["b.renew"] = time.Hour },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("a", "b")
				w.takes["a.drain"] = time.Hour
				spoil(w)
				l := begun(t, w, StepFreeze, 2*time.Minute)
				defer l.halt()
				l.ended(t)
				s := l.Status()
				if s.Outcome != OutcomeAborted || s.Code != "cutover-freeze-lapsed" || !strings.Contains(s.Error, "pair b") || s.FreezeSeconds > holdTTL.Seconds()+0.5 {
					t.Errorf("outcome %q after %v s, %s: %s", s.Outcome, s.FreezeSeconds, s.Code, s.Error)
				}
				w.settled(t, Forward)
			})
		})
	}
}

// TestRenewalRecovers: a failure that is over before the hold is harms nothing.
func TestRenewalRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		w.takes["drain"] = 20 * time.Second
		w.fails["a.renew"] = errNetwork
		l := begun(t, w, StepFreeze, time.Minute)
		defer l.halt()
		<-time.After(holdTTL - time.Second)
		w.set(func() { delete(w.fails, "a.renew") })
		l.ended(t)
		if s := l.Status(); s.Outcome != OutcomeDone {
			t.Errorf("outcome %q: %s", s.Outcome, s.Error)
		}
		w.settled(t, Reverse)
	})
}

// TestDeathThaws: with nobody left to renew, the origin accepts writes again within one hold, before any other process comes.
func TestDeathThaws(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.takes["drain"] = time.Hour
		l := begun(t, w, StepDrain, 10*time.Minute)
		<-time.After(3 * time.Minute)
		l.halt()
		<-time.After(holdTTL)
		w.settled(t, Forward)
		next := w.boot(t, nil)
		defer next.halt()
		next.ended(t)
		if s := next.Status(); s.Outcome != OutcomeAborted || s.Code != "cutover-interrupted" || !strings.Contains(s.Error, "drain") {
			t.Errorf("outcome %q, %s: %s", s.Outcome, s.Code, s.Error)
		}
		w.settled(t, Forward)
	})
}

// TestAbort is prompt before the switch, in whatever step, and refused after it.
func TestAbort(t *testing.T) {
	for s := StepCheck; s <= StepRetire; s++ {
		if s == StepRehearse {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("a", "b")
				slow := s.String()
				switch s {
				case StepBefore, StepNotify:
					slow = "hook"
				}
				w.takes[slow] = time.Hour
				// Renewals go on, so that only the abort can end it.
				l := begun(t, w, StepCheck, 10*time.Minute)
				defer l.halt()
				until(t, "the step", func() bool { return l.Status().Step == s || (s == StepNotify && l.Status().Step == StepBefore) })
				if s == StepNotify {
					return // a hook that is slow at switch is slow at before; TestSwitchHookIsGivenUpForTheWayBack covers it
				}
				<-time.After(time.Millisecond) // the call has begun
				w.set(func() { delete(w.takes, slow) })
				err := l.Abort(t.Context(), l.Status().Attempt)
				if s >= StepOpen {
					if !errors.Is(err, ErrTooLate) || !strings.Contains(err.Error(), "rollback") {
						t.Errorf("abort: %v, want ErrTooLate with a hint", err)
					}
					l.ended(t)
					w.settled(t, Reverse)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if got := l.Status(); got.Outcome != OutcomeAborted || got.Code != "cutover-aborted" {
					t.Errorf("at once after the abort: phase %s, outcome %q, %s: %s", got.Phase, got.Outcome, got.Code, got.Error)
				}
				w.settled(t, Forward)
			})
		})
	}
}

// TestThawInsists: the way back waits for as long as it takes, says for what, and another abort is no error.
func TestThawInsists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.fails["drain"], w.fails["b.thaw"] = errors.New("disk full"), retry.Stop(errNetwork)
		l := begun(t, w, StepThaw, 0)
		defer l.halt()
		<-time.After(time.Hour)
		s := l.Status()
		if got := strings.Join(s.WaitingFor, ";"); s.Phase != Aborting || !strings.Contains(got, "pair b: thaw, after ") || !strings.Contains(got, errNetwork.Error()) {
			t.Errorf("phase %s, waiting for %q", s.Phase, got)
		}
		if err := l.Abort(t.Context(), s.Attempt); err != nil {
			t.Errorf("abort of what is aborting: %v", err)
		}
		w.set(func() { delete(w.fails, "b.thaw") })
		l.ended(t)
		w.settled(t, Forward)
	})
}

// TestStoppingIsNoError: wherever the end of Run's context finds it, Run returns nil, soon.
func TestStoppingIsNoError(t *testing.T) {
	for s := StepCheck; s <= StepAborted; s++ {
		if s == StepRehearse || s.Final() || s == StepNotify || s == StepAfter {
			continue
		}
		t.Run(s.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("a", "b")
				slow := s.String()
				switch s {
				case StepBefore, StepCompensate:
					slow = "hook"
				case StepThaw:
					w.fails["drain"] = retry.Stop(errNetwork)
				}
				if s == StepCompensate {
					w.findings["a"] = []preflight.Finding{{Severity: preflight.Error}}
				}
				w.takes[slow] = time.Hour
				l := begun(t, w, s, 10*time.Minute)
				begin := time.Now()
				l.halt()
				if l.err != nil || time.Since(begin) > 0 {
					t.Errorf("Run: %v after %s, want nil at once", l.err, time.Since(begin))
				}
			})
		})
	}
}

// TestGivenUpFreezeIsNotRenewed: renewals end before the thaw, however long that takes.
func TestGivenUpFreezeIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.takes["b.thaw"], w.fails["a.drain"] = time.Minute-time.Second, retry.Stop(errNetwork)
		l := begun(t, w, StepThaw, 10*time.Minute)
		defer l.halt()
		l.ended(t)
		w.settled(t, Forward)
	})
}

func TestEventsAndMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		w.takes["drain"] = 10 * time.Second
		reg := prometheus.NewPedanticRegistry()
		var phases []string
		l := w.boot(t, func(o *Options) {
			o.Metrics = metrics.NewCutover(reg)
			o.OnEvent = func(e Event) {
				name := e.Phase.String()
				if e.Outcome != "" {
					name += "/" + string(e.Outcome)
				}
				phases = append(phases, name)
			}
		})
		defer l.halt()
		l.ended(t)
		if _, err := l.Start(t.Context(), Request{}); err != nil {
			t.Fatal(err)
		}
		until(t, "drain", func() bool { return l.Status().FreezeSeconds > 5 })
		frozen, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		live := 0.0
		for _, f := range frozen {
			if f.GetName() == "replicator_cutover_freeze_seconds" {
				live = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		if live < 3 || live > 6 {
			t.Errorf("freeze gauge shows %v during a freeze of 5 s", live)
		}
		l.ended(t)
		want := "preflight hooks freeze fence drain sequences verify arm switch done/done"
		if got := strings.Join(phases, " "); got != want {
			t.Errorf("events %q, want %q", got, want)
		}
		if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP replicator_cutover_freeze_seconds How long the last cutover attempt kept the application from writing; absent until one did.
# TYPE replicator_cutover_freeze_seconds gauge
replicator_cutover_freeze_seconds 10
# HELP replicator_cutover_total Cutover attempts that have ended, by outcome (a rollback that went through counts as rolled_back).
# TYPE replicator_cutover_total counter
replicator_cutover_total{outcome="aborted"} 0
replicator_cutover_total{outcome="done"} 1
replicator_cutover_total{outcome="rolled_back"} 0
`), "replicator_cutover_freeze_seconds", "replicator_cutover_total"); err != nil {
			t.Error(err)
		}
	})
}
