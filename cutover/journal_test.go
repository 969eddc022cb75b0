package cutover

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replicator/internal/preflight"
)

// TestSwitchSaveUnknown: the save that carries the point of no return gets no answer, and the journal can't be read either. Until
// it answers nothing is thawed and nothing opened; then it goes forward, whether that save had been stored or not.
func TestSwitchSaveUnknown(t *testing.T) {
	for _, f := range []fault{refused, lost, hangBefore, hangAfter} {
		t.Run(f.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld("a", "b")
				down := false
				w.fault = func(_ int, op string) fault {
					switch {
					case op == "save open" && !down:
						down = true
						return f
					case down && (op == "load" || strings.HasPrefix(op, "save")):
						return refused
					}
					return none
				}
				l := begun(t, w, StepSeal, 0)
				defer l.halt()
				<-time.After(10 * time.Minute)
				if story := w.take(); strings.Contains(story, "thaw") || strings.Contains(story, ".open") {
					t.Fatalf("something was done without knowing the journal:\n%s", story)
				}
				s := l.Status()
				if !strings.Contains(strings.Join(s.WaitingFor, ";"), "the journal, after") {
					t.Errorf("waiting for %q, want the journal", s.WaitingFor)
				}
				if err := l.Abort(t.Context(), s.Attempt); !errors.Is(err, ErrTooLate) {
					t.Errorf("abort while the journal might say switch: %v, want ErrTooLate", err)
				}
				w.set(func() { w.fault = nil })
				l.ended(t)
				if s := l.Status(); s.Outcome != OutcomeDone {
					t.Errorf("outcome %q: %s", s.Outcome, s.Error)
				}
				w.settled(t, Reverse)
			})
		})
	}
}

// TestJournalDownDuringFreeze: before the switch nothing is done to a pair without the journal: the origin thaws by itself.
func TestJournalDownDuringFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a", "b")
		w.takes["drain"] = 3 * time.Second
		l := begun(t, w, StepDrain, 20*time.Second)
		defer l.halt()
		w.set(func() { w.fails["load"], w.fails["save"] = errNetwork, errNetwork })
		<-time.After(30 * time.Second)
		w.settled(t, Forward)
		w.set(func() { delete(w.fails, "load"); delete(w.fails, "save") })
		l.ended(t)
		if s := l.Status(); s.Outcome != OutcomeAborted || s.Code != "cutover-freeze-budget" || !strings.Contains(s.Error, "the journal") {
			t.Errorf("outcome %q, %s: %s", s.Outcome, s.Code, s.Error)
		}
		w.settled(t, Forward)
	})
}

// TestAbortBeforeTheJournalAnswers: an accepted attempt that waits for its place in the journal can be aborted, and freezes nothing.
func TestAbortBeforeTheJournalAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		l := w.boot(t, nil)
		defer l.halt()
		l.ended(t)
		w.set(func() { w.fails["save"], w.fails["load"] = errNetwork, errNetwork })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		id, err := l.Start(ctx, Request{})
		if id == "" || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("start without a journal: %q, %v, want the id and the context's error", id, err)
		}
		if _, err := l.Start(t.Context(), Request{}); !errors.Is(err, ErrRunning) {
			t.Errorf("another start: %v, want ErrRunning", err)
		}
		if err := l.Abort(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.fails = map[string]error{} })
		until(t, "the attempt", func() bool { return l.Status().Attempt == id && !l.Status().Running() })
		if s := l.Status(); s.Outcome != OutcomeAborted || s.Code != "cutover-aborted" {
			t.Errorf("outcome %q, %s: %s", s.Outcome, s.Code, s.Error)
		}
		if story := w.take(); strings.Contains(story, "a.") {
			t.Errorf("the pair was touched:\n%s", story)
		}
	})
}

// TestAnotherWriterEndsRun: a process that is no longer the leader touches nothing.
func TestAnotherWriterEndsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		old := w.boot(t, nil)
		old.ended(t)
		// A successor writes the journal behind its back, and the old one's saves fail.
		successor := w.boot(t, nil)
		successor.ended(t)
		successor.attempt(t, Request{})
		successor.halt()
		before := w.record(t)
		if _, err := old.Start(context.WithoutCancel(t.Context()), Request{}); err == nil {
			t.Error("the old leader's start was accepted")
		}
		<-old.done
		if !errors.Is(old.err, ErrSuperseded) {
			t.Errorf("Run: %v, want ErrSuperseded", old.err)
		}
		if after := w.record(t); after.Writer != before.Writer || after.Revision != before.Revision {
			t.Error("the old leader has written the journal")
		}
		if story := w.take(); strings.Contains(story, "a.") {
			t.Errorf("the old leader has touched a pair:\n%s", story)
		}
		w.settled(t, Reverse)
	})
}

func TestUnreadableJournalEndsRun(t *testing.T) {
	for _, journal := range []string{`{"version":9}`, `{`, `{"version":1,"step":"open","phase":"idle"}`, `{"version":1,"step":"??"}`} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld("a")
			w.journal = []byte(journal)
			l := w.boot(t, nil)
			<-l.done
			var h *preflight.Hinted
			if !errors.As(l.err, &h) || h.Hint == "" {
				t.Errorf("Run with journal %s: %v, want an error with a hint", journal, l.err)
			}
			if _, err := Active([]byte(journal)); err == nil {
				t.Errorf("Active(%s) gave no error", journal)
			}
		})
	}
}
