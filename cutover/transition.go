package cutover

import (
	"fmt"
	"time"

	"replicator/internal/preflight"
)

// eventKind is what happened to the step that was due.
type eventKind int

const (
	// succeeded: the step's effect is complete.
	succeeded eventKind = iota
	// failed: the effect was given up; the event carries why (a failure, an abort, an expired budget).
	failed
	// delivered: one hook of the step is done with; the event carries its moment. At after and abort a hook that failed is done with
	// too: its problem stands among the findings and undoes nothing.
	delivered
	// givenUp: the hooks at switch were abandoned because the operator wants to go back.
	givenUp
	// restarted: a fresh process has loaded the record.
	restarted
)

var eventNames = [...]string{"succeeded", "failed", "delivered", "given up", "restarted"}

// String returns the event kind's name.
func (k eventKind) String() string { return eventNames[k] }

// event is the input of transition.
type event struct {
	kind     eventKind
	problem  *Problem            // failed
	moment   Moment              // delivered
	findings []preflight.Finding // replaces (check) or adds to the record's
	predict  *float64            // a dry run's predicted freeze, seconds
}

// forward is the way of an attempt whose every step succeeds.
var forward = map[Step]Step{
	StepCheck: StepPrepare, StepPrepare: StepBefore, StepBefore: StepFreeze, StepFreeze: StepFence, StepFence: StepDrain,
	StepDrain: StepSequences, StepSequences: StepVerify, StepVerify: StepArm, StepArm: StepSeal, StepSeal: StepOpen,
	StepOpen: StepNotify, StepNotify: StepRetire, StepRetire: StepAfter, StepAfter: StepComplete,
	StepThaw: StepCompensate, StepCompensate: StepAborted,
}

// rehearsal is the way of a dry run whose every step succeeds.
var rehearsal = map[Step]Step{StepCheck: StepRehearse, StepRehearse: StepComplete, StepCompensate: StepAborted}

// begin returns the record of a new attempt after previous.
func begin(previous Record, attempt string, q Request, migration string, now time.Time) Record {
	r := Record{Version: recordVersion, Revision: previous.Revision, Migration: migration, Active: previous.Active,
		Attempt: attempt, Direction: direction(q.Reverse), DryRun: q.DryRun, By: q.By, Budget: q.Budget, Started: now}
	return r.enter(StepCheck, now)
}

// transition is the whole state machine: what comes after r when e happened to its step. It does no I/O and leaves r alone. An error
// means that e can't happen there, which is a mistake in the caller.
func transition(r Record, e event, now time.Time) (Record, error) {
	from := r.Step
	if from.Final() && e.kind != restarted {
		return r, fmt.Errorf("cutover: %s in final step %s", e.kind, from)
	}
	n := r.clone()
	if from == StepCheck {
		n.Findings = e.findings
	} else {
		n.Findings = append(n.Findings, e.findings...)
	}
	if e.predict != nil {
		n.Predicted = e.predict
	}
	switch e.kind {
	case succeeded:
		return n.advance(now)
	case delivered:
		if n.Deliveries == nil {
			n.Deliveries = map[Moment]int{}
		}
		n.Deliveries[e.moment]++
		return n, nil
	case failed:
		if from.Revocable() {
			return n.revoke(e.problem, now), nil
		}
	case givenUp:
		if from == StepNotify {
			n.GivenUp = true
			return n.enter(StepRetire, now), nil
		}
	case restarted:
		switch {
		case from.Revocable():
			return n.revoke(&Problem{Code: "cutover-interrupted", Message: fmt.Sprintf("replicator was stopped during %s", from),
				Hint: "nothing was switched and writes go where they went before: start again"}, now), nil
		case from == StepNotify:
			return n.enter(StepOpen, now), nil
		default:
			return n, nil
		}
	}
	return r, fmt.Errorf("cutover: %s can't happen in step %s", e.kind, from)
}

// advance enters the step that follows success.
func (r Record) advance(now time.Time) (Record, error) {
	way := forward
	if r.DryRun {
		way = rehearsal
	}
	next, ok := way[r.Step]
	if !ok {
		return r, fmt.Errorf("cutover: nothing follows step %s (dry run %t)", r.Step, r.DryRun)
	}
	switch r.Step {
	case StepOpen, StepThaw:
		if !r.FreezeStart.IsZero() && r.FreezeEnd.IsZero() {
			r.FreezeEnd = now
			r.FreezeSeconds = now.Sub(r.FreezeStart).Seconds()
		}
	case StepRetire:
		if r.GivenUp {
			// The application was not told of the switch; telling it what comes after would mislead it.
			r.Outcome = r.success()
			next = StepComplete
		}
	}
	return r.enter(next, now), nil
}

// revoke enters the way back.
func (r Record) revoke(p *Problem, now time.Time) Record {
	r.Problem = p
	if r.Touched {
		return r.enter(StepThaw, now)
	}
	return r.enter(StepCompensate, now)
}

// enter makes s the step that is due.
func (r Record) enter(s Step, now time.Time) Record {
	r = r.clone()
	if i := len(r.Steps) - 1; i >= 0 && r.Steps[i].Ended.IsZero() {
		r.Steps[i].Ended = now
	}
	r.Step, r.Phase = s, s.Phase()
	switch s {
	case StepPrepare:
		r.Touched = true
	case StepFreeze:
		r.FreezeStart, r.Deadline = now, now.Add(r.Budget)
	case StepOpen:
		// From here on changes flow from the destination back to the origin.
		r.Active = direction(!r.Direction.Reverse())
	case StepAfter:
		r.Outcome = r.success()
	case StepComplete:
		r.Ended = now
		if r.Outcome == "" {
			r.Outcome = r.success()
		}
	case StepAborted:
		r.Ended, r.Outcome = now, OutcomeAborted
	}
	if !s.Final() {
		r.Steps = append(r.Steps, StepTime{Step: s, Started: now})
	}
	return r
}

// success is the outcome of an attempt that went through. A dry run ends as done in either direction: it rolled nothing back.
func (r Record) success() Outcome {
	if r.Direction == Reverse && !r.DryRun {
		return OutcomeRolledBack
	}
	return OutcomeDone
}
