package cutover

import (
	"time"

	"replicator/internal/preflight"
)

// Status is what can be said of the latest attempt. Times are zero where nothing has happened yet.
type Status struct {
	// Attempt is empty before the first.
	Attempt string
	Phase   Phase
	Step    Step
	Reverse bool
	DryRun  bool
	By      string
	// Active is the direction in which changes flow.
	Active  Direction
	Started time.Time
	Ended   time.Time
	// Budget bounds the freeze, Deadline is when this one's ends; FreezeSeconds is how long it lasted, or lasts by now.
	Budget        time.Duration
	Deadline      time.Time
	FreezeSeconds float64
	// Predicted is a dry run's estimate of the freeze in seconds, nil if no pair could tell.
	Predicted *float64
	// WaitingFor says what is being waited for, one text a subject.
	WaitingFor []string
	// Findings are those of the preflight that are not OK, and hooks that failed where that undoes nothing.
	Findings []preflight.Finding
	// Code, Error and Hint say why the attempt was given up.
	Code, Error, Hint string
	// Outcome is empty while the attempt runs.
	Outcome Outcome
	Steps   []StepTime
	// Ready is false until the journal has been read, and after Run has ended.
	Ready bool
}

// Running reports whether an attempt is under way.
func (s Status) Running() bool { return !s.Step.Final() }

// Status returns a copy, safe to keep.
func (c *Coordinator) Status() Status {
	c.mu.Lock()
	r, ready := c.current.clone(), c.loaded
	c.mu.Unlock()
	s := r.Status(time.Now())
	s.Ready, s.WaitingFor = ready, c.waiting.list()
	return s
}

// Status returns what the record alone can say at now.
func (r Record) Status(now time.Time) Status {
	s := Status{Attempt: r.Attempt, Phase: r.Phase, Step: r.Step, Reverse: r.Direction.Reverse(), DryRun: r.DryRun, By: r.By, Active: r.Active,
		Started: r.Started, Ended: r.Ended, Budget: r.Budget, Deadline: r.Deadline, FreezeSeconds: r.FreezeSeconds, Predicted: r.Predicted,
		Findings: r.Findings, Outcome: r.Outcome, Steps: r.Steps}
	if !r.FreezeStart.IsZero() && r.FreezeEnd.IsZero() {
		s.FreezeSeconds = max(0, now.Sub(r.FreezeStart).Seconds())
	}
	if r.Problem != nil {
		s.Code, s.Error, s.Hint = r.Problem.Code, r.Problem.Message, r.Problem.Hint
	}
	return s
}
