package cutover

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seed = flag.Uint64("seed", 0, "the random crash test's seed; 0 takes one from the clock")
	runs = flag.Int("runs", 150, "how many random runs")
)

// TestCrashEverywhere spoils each operation of an attempt in each way, once there and once back: the process dies before it or after it, it is
// refused, its answer is lost, or it hangs. Whatever happens, the end is consistent.
func TestCrashEverywhere(t *testing.T) {
	for _, reverse := range []bool{false, true} {
		total := 0
		synctest.Test(t, func(t *testing.T) {
			w, begun := prepared(t, reverse)
			l := w.boot(t, nil)
			l.ended(t)
			l.attempt(t, Request{Reverse: reverse})
			l.halt()
			total = w.ops - begun
		})
		if total < 40 {
			t.Fatalf("an attempt has %d operations: the fake world does not see them all", total)
		}
		spoil := faults
		if reverse {
			spoil = []fault{crashBefore, crashAfter, lost} // the rest can't tell the directions apart
		}
		for _, f := range spoil {
			for n := 1; n <= total; n++ {
				t.Run(fmt.Sprintf("%s/%s/%d", direction(reverse), f, n), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w, begun := prepared(t, reverse)
						w.fault = func(op int, _ string) fault {
							if op == begun+n {
								return f
							}
							return none
						}
						survive(t, w, reverse, func() time.Duration { return 3 * time.Second }, nil)
					})
				})
			}
		}
	}
}

// TestCrashAtRandom lets several faults meet: processes that die while they take back what a dead one left, hooks that fail, aborts at any
// moment, slow phases.
func TestCrashAtRandom(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with -seed %d", s)
	for i := range *runs {
		r := rand.New(rand.NewPCG(s, uint64(i)))
		reverse := r.IntN(2) == 1
		t.Run(fmt.Sprintf("%d", i), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, begun := prepared(t, reverse)
				left, chance := 1+r.IntN(8), 0.01+0.2*r.Float64()
				w.fault = func(op int, _ string) fault {
					if op <= begun || left == 0 || r.Float64() > chance {
						return none
					}
					left--
					return faults[r.IntN(len(faults))]
				}
				for _, method := range []string{"freeze", "drain", "verify", "seal", "open", "thaw", "save", "renew"} {
					if r.IntN(4) == 0 {
						w.takes[method] = time.Duration(r.Int64N(int64(9 * time.Second)))
					}
				}
				var abort func(*life)
				if r.IntN(3) == 0 {
					after := time.Duration(r.Int64N(int64(20 * time.Second)))
					abort = func(l *life) {
						<-time.After(after)
						_ = l.Abort(context.Background(), l.Status().Attempt)
					}
				}
				survive(t, w, reverse, func() time.Duration { return time.Duration(r.Int64N(int64(40 * time.Second))) }, abort)
			})
			if t.Failed() {
				t.Logf("replay with -seed %d, run %d", s, i)
			}
		})
		if t.Failed() {
			return
		}
	}
}

// prepared is a world before an attempt in the given direction, and how many operations it has seen.
func prepared(t *testing.T, reverse bool) (*world, int) {
	w := newWorld("a", "b")
	if reverse {
		l := w.boot(t, nil)
		l.ended(t)
		l.attempt(t, Request{})
		l.halt()
	}
	w.hooks = nil
	return w, w.ops
}

// survive makes an attempt in a world of faults, starting a new process whenever one dies, and checks the end.
func survive(t *testing.T, w *world, reverse bool, downtime func() time.Duration, abort func(*life)) {
	t.Helper()
	origin := direction(reverse)
	previous := w.record(t).Attempt
	asked := false
	for lives := 1; ; lives++ {
		if lives > 50 {
			t.Fatal("50 processes did not bring the attempt to its end")
		}
		l := w.boot(t, nil)
		watched := make(chan struct{})
		go func() { // status is read all the time
			defer close(watched)
			for {
				select {
				case <-l.done:
					return
				case <-time.After(3 * time.Second):
					l.Status()
				}
			}
		}()
		l.ended(t)
		if !asked {
			asked = true
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err := l.Start(ctx, Request{Reverse: reverse})
			cancel()
			if abort != nil && err == nil {
				go abort(l)
			}
			until(t, "the start", func() bool {
				select {
				case <-l.done:
					return true
				default:
					return l.Status().Attempt != previous
				}
			})
			l.ended(t)
		}
		select {
		case <-l.done:
			if l.err != nil && !l.p.dead {
				t.Fatalf("Run ended by itself: %v", l.err)
			}
			<-watched
			<-time.After(downtime())
			continue
		default:
		}
		l.halt()
		<-watched
		break
	}

	r := w.record(t)
	if r.Attempt == previous {
		// It died before the attempt was in the journal: it never was.
		w.settled(t, origin)
		return
	}
	if !r.Step.Final() {
		t.Fatalf("the journal ends with %s", tell(r))
	}
	switched := r.Outcome == OutcomeDone || r.Outcome == OutcomeRolledBack
	if switched != (r.Active != origin) {
		t.Errorf("outcome %q, active %s after an attempt %s", r.Outcome, r.Active, origin)
	}
	if switched && (r.Outcome == OutcomeRolledBack) != reverse {
		t.Errorf("outcome %q of an attempt %s", r.Outcome, origin)
	}
	<-time.After(time.Hour) // nothing that lapses later may change it
	w.settled(t, r.Active)
	w.delivered(t, r, switched)

	// Whatever happened, the next attempt goes through.
	w.fault, w.takes = nil, map[string]time.Duration{}
	l := w.boot(t, nil)
	l.ended(t)
	l.attempt(t, Request{Reverse: r.Active.Reverse()})
	l.halt()
	if next := w.record(t); next.Active == r.Active || next.Attempt <= r.Attempt {
		t.Errorf("the next attempt: %s", tell(next))
	}
	w.settled(t, w.record(t).Active)
}

// delivered checks the hooks' deliveries: all of the attempt, in order, each at least once.
func (w *world) delivered(t *testing.T, r Record, switched bool) {
	t.Helper()
	var distinct []string
	for _, id := range w.hooks {
		short, ok := strings.CutPrefix(id, r.Attempt+"/")
		if !ok {
			t.Errorf("delivery %s is not of attempt %s", id, r.Attempt)
		}
		if len(distinct) == 0 || distinct[len(distinct)-1] != short {
			distinct = append(distinct, short)
		}
	}
	got, want := strings.Join(distinct, " "), "before/1 switch/1 switch/2 after/1"
	switch {
	case switched && got == strings.TrimSuffix(want, " after/1"):
		// An after hook may fail for good; then a finding says so.
		if len(r.Findings) == 0 {
			t.Errorf("deliveries %q and no finding", got)
		}
	case switched && got != want:
		t.Errorf("deliveries %q, want %q", got, want)
	case !switched && strings.Contains(got, "switch"):
		t.Errorf("deliveries %q of an aborted attempt", got)
	case !switched && !strings.HasSuffix(got, "abort/1") && len(r.Findings) == 0:
		t.Errorf("deliveries %q of an aborted attempt, want abort/1 or a finding", got)
	}
}
