package cutover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"replicator/internal/preflight"
)

// sealMargin is how much of every hold must remain when sealing begins.
const sealMargin = time.Second

// perform does the step that is due and says what happened. ctx is the process's life; try ends earlier if the attempt is given up.
// An error means that ctx has ended.
func (a *attempt) perform(ctx, try context.Context, r Record) (event, error) {
	reverse := r.Direction.Reverse()
	switch s := r.Step; s {
	case StepCheck:
		return a.check(ctx, try, r)
	case StepRehearse:
		return a.rehearse(ctx, try, r)
	case StepPrepare:
		return a.outcome(ctx, try, s, a.each(try, s, fewTimes, func(ctx context.Context, p Pair) error { return p.Prepare(ctx, reverse) }))
	case StepBefore:
		e, err := a.deliver(try, r, AtBefore)
		return a.hooked(ctx, try, s, e, err)
	case StepFreeze:
		return a.freeze(ctx, try, r)
	case StepFence:
		return a.outcome(ctx, try, s, a.each(try, s, fewTimes, func(ctx context.Context, p Pair) error { return p.Fence(ctx, reverse) }))
	case StepDrain:
		return a.outcome(ctx, try, s, a.each(try, s, fewTimes, func(ctx context.Context, p Pair) error { return p.Drain(ctx, reverse) }))
	case StepSequences:
		return a.outcome(ctx, try, s, a.each(try, s, fewTimes, func(ctx context.Context, p Pair) error { return p.Sequences(ctx, reverse) }))
	case StepVerify:
		return a.outcome(ctx, try, s, a.each(try, s, fewTimes, func(ctx context.Context, p Pair) error { return verify(ctx, p, reverse) }))
	case StepArm:
		return a.outcome(ctx, try, s, a.each(try, s, fewTimes, func(ctx context.Context, p Pair) error { return p.Arm(ctx, reverse) }))
	case StepSeal:
		return a.seal(ctx, try, r)
	case StepOpen:
		return a.open(ctx, reverse)
	case StepNotify:
		return a.notify(ctx, r)
	case StepRetire:
		return event{kind: succeeded}, a.each(ctx, s, persistent, func(ctx context.Context, p Pair) error { return p.Retire(ctx, reverse) })
	case StepAfter:
		return a.deliver(ctx, r, AtAfter)
	case StepThaw:
		return event{kind: succeeded}, a.each(ctx, s, persistent, func(ctx context.Context, p Pair) error { return p.Thaw(ctx, reverse) })
	case StepCompensate:
		return a.deliver(ctx, r, AtAbort)
	}
	return event{}, fmt.Errorf("cutover: nothing to perform in step %s", r.Step)
}

// outcome turns the result of a revocable step into an event. Why the attempt was given up says more than what that made of the call.
func (a *attempt) outcome(ctx, try context.Context, s Step, err error) (event, error) {
	switch {
	case err == nil:
		return event{kind: succeeded}, nil
	case ctx.Err() != nil:
		return event{}, ctx.Err()
	case try.Err() != nil:
		err = context.Cause(try)
	}
	return event{kind: failed, problem: asProblem(err, "cutover-"+s.String()+"-failed", "nothing was switched: mend the cause and start again")}, nil
}

// hooked is outcome for hooks, whose failures are events already.
func (a *attempt) hooked(ctx, try context.Context, s Step, e event, err error) (event, error) {
	if err != nil {
		return a.outcome(ctx, try, s, err)
	}
	return e, nil
}

func (a *attempt) check(ctx, try context.Context, r Record) (event, error) {
	reverse := r.Direction.Reverse()
	findings := a.checkAll(try, reverse)
	if try.Err() != nil {
		e, err := a.outcome(ctx, try, r.Step, try.Err())
		e.findings = findings
		return e, err
	}
	var bad []preflight.Finding
	for _, f := range findings {
		if f.Severity == preflight.Error {
			bad = append(bad, f)
		}
	}
	if len(bad) > 0 {
		p := &Problem{Code: "cutover-preflight", Message: fmt.Sprintf("pair %s: %s", bad[0].Pair, bad[0].Message), Hint: bad[0].Hint}
		if more := len(bad) - 1; more > 0 {
			p.Message += fmt.Sprintf(" (and %d more)", more)
		}
		return event{kind: failed, problem: p, findings: findings}, nil
	}
	e := event{kind: succeeded, findings: findings}
	if r.DryRun {
		e.predict, e.findings = a.predict(try, reverse, e.findings)
	}
	return e, nil
}

// predict returns the longest of the pairs' predicted freezes, in seconds; a pair that can't tell adds a finding.
func (a *attempt) predict(ctx context.Context, reverse bool, findings []preflight.Finding) (*float64, []preflight.Finding) {
	var longest *float64
	for _, p := range a.options.Pairs {
		predictor, ok := p.(Predictor)
		if !ok {
			continue
		}
		d, err := predictor.PredictFreeze(ctx, reverse)
		if err != nil {
			findings = append(findings, preflight.Finding{Code: "cutover-no-prediction", Severity: preflight.Info, Pair: p.Name(),
				Message: fmt.Sprintf("how long the freeze would last can't be told: %v", err), Hint: "run the dry run again once the pair has caught up"})
			continue
		}
		if s := d.Seconds(); longest == nil || s > *longest {
			longest = &s
		}
	}
	return longest, findings
}

// rehearse calls the hooks of a whole cutover, marked as a dry run.
func (a *attempt) rehearse(ctx, try context.Context, r Record) (event, error) {
	for _, m := range []Moment{AtBefore, AtSwitch, AtAfter} {
		e, err := a.deliver(try, r, m)
		if err != nil || e.kind != succeeded {
			return a.hooked(ctx, try, r.Step, e, err)
		}
	}
	return event{kind: succeeded}, nil
}

// freeze asks every pair to freeze and keeps renewing from then on: a barrier may well outlast one hold.
func (a *attempt) freeze(ctx, try context.Context, r Record) (event, error) {
	reverse := r.Direction.Reverse()
	a.hold = newHold(a.options.Pairs, reverse, holdTTL, r.Deadline, a.revoke)
	a.hold.spent = func() error { return errBudgetSpent(r.Budget, a.record().Step, a.waiting.list()) }
	a.hold.start(try)
	return a.outcome(ctx, try, r.Step, a.each(try, r.Step, once, func(ctx context.Context, p Pair) error {
		return p.Freeze(ctx, reverse, a.hold.held(p))
	}))
}

func verify(ctx context.Context, p Pair, reverse bool) error {
	n, err := p.Verify(ctx, reverse)
	if err == nil && n > 0 {
		err = errMismatches(p.Name(), n)
	}
	return err
}

// seal ends the renewals, renews once more, and makes every freeze permanent while the margin remains. Whatever fails here is
// taken back: the journal does not say switch yet.
func (a *attempt) seal(ctx, try context.Context, r Record) (event, error) {
	reverse := r.Direction.Reverse()
	a.hold.stop()
	if err := a.each(try, r.Step, once, a.hold.renew); err != nil {
		return a.outcome(ctx, try, r.Step, err)
	}
	left := a.hold.left(time.Now())
	if left < min(sealMargin, r.Budget/5) {
		return a.outcome(ctx, try, r.Step, errBudgetSpent(r.Budget, r.Step, []string{fmt.Sprintf("nothing: only %s was left to seal the freeze", left.Round(time.Millisecond))}))
	}
	bounded, cancel := context.WithTimeoutCause(try, left, errBudgetSpent(r.Budget, r.Step, a.waiting.list()))
	defer cancel()
	err := a.each(bounded, r.Step, once, func(ctx context.Context, p Pair) error { return p.Seal(ctx, reverse) })
	a.sealed = err == nil
	return a.outcome(ctx, bounded, r.Step, err)
}

// open makes the destinations accept writes. A process that has only read of the seals repeats them first.
func (a *attempt) open(ctx context.Context, reverse bool) (event, error) {
	if !a.sealed {
		if err := a.each(ctx, StepSeal, persistent, func(ctx context.Context, p Pair) error { return p.Seal(ctx, reverse) }); err != nil {
			return event{}, err
		}
		a.sealed = true
	}
	return event{kind: succeeded}, a.each(ctx, StepOpen, persistent, func(ctx context.Context, p Pair) error { return p.Open(ctx, reverse) })
}

// notify calls the hooks at switch until they succeed or a way back was asked for.
func (a *attempt) notify(ctx context.Context, r Record) (event, error) {
	patient, abandon := context.WithCancel(ctx)
	defer abandon()
	a.setAbandon(abandon)
	defer a.setAbandon(nil)
	e, err := a.deliver(patient, r, AtSwitch)
	if err != nil && ctx.Err() == nil {
		return event{kind: givenUp, findings: []preflight.Finding{{Code: "cutover-hook-given-up", Severity: preflight.Warning,
			Message: fmt.Sprintf("given up for the way back: %v", err), Hint: "see that the application uses the side that accepts its writes"}}}, nil
	}
	return e, err
}

func isHinted(err error) bool {
	var hinted *preflight.Hinted
	return errors.As(err, &hinted)
}
