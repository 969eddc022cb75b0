package cutover

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// recordVersion is the form of Record that this code writes. It reads this one only: a newer daemon's record must not be guessed at.
const recordVersion = 1

// Record is what the journal holds of the latest attempt. Values are never changed in place: transition copies.
type Record struct {
	Version   int    `json:"version"`
	Revision  int64  `json:"revision"`
	Writer    string `json:"writer"`
	Migration string `json:"migration"`
	// Attempt is the sortable, unique id; empty before the first.
	Attempt   string    `json:"attempt"`
	Direction Direction `json:"direction"`
	DryRun    bool      `json:"dry_run"`
	// By says who asked.
	By    string `json:"by,omitempty"`
	Phase Phase  `json:"phase"`
	Step  Step   `json:"step"`
	// Active is the direction in which changes flow: Forward until the first switch, Reverse after a cutover, Forward again after a
	// rollback. An attempt's direction is the active one until its switch.
	Active Direction `json:"active"`

	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	// Budget is how long the freeze may last, in nanoseconds; Deadline is when it ends, set when the freeze begins.
	Budget      time.Duration `json:"freeze_budget"`
	Deadline    time.Time     `json:"deadline,omitzero"`
	FreezeStart time.Time     `json:"freeze_start,omitzero"`
	// FreezeEnd is when either side accepted writes again, as far as the coordinator knows.
	FreezeEnd     time.Time `json:"freeze_end,omitzero"`
	FreezeSeconds float64   `json:"freeze_seconds"`
	// Predicted is a dry run's estimate of the freeze, in seconds.
	Predicted *float64 `json:"predicted_freeze_seconds,omitempty"`

	// Touched says that pairs were changed, so that giving up means thawing them.
	Touched bool `json:"touched,omitempty"`
	// Deliveries counts, per moment, the hooks that are done with (they run in order).
	Deliveries map[Moment]int `json:"deliveries,omitempty"`
	// GivenUp says that the switch hooks were abandoned for a way back.
	GivenUp  bool                `json:"given_up,omitempty"`
	Findings []preflight.Finding `json:"findings,omitempty"`
	Problem  *Problem            `json:"problem,omitempty"`
	Outcome  Outcome             `json:"outcome,omitempty"`
	Steps    []StepTime          `json:"steps,omitempty"`
}

// StepTime says when a step began and, once it is over, ended.
type StepTime struct {
	Step    Step      `json:"step"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
}

// Problem is why an attempt was given up.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// clone returns a copy that shares nothing with r.
func (r Record) clone() Record {
	r.Deliveries = maps.Clone(r.Deliveries)
	r.Findings = slices.Clone(r.Findings)
	r.Steps = slices.Clone(r.Steps)
	if r.Problem != nil {
		p := *r.Problem
		r.Problem = &p
	}
	if r.Predicted != nil {
		p := *r.Predicted
		r.Predicted = &p
	}
	return r
}

func (r Record) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode the cutover record: %w", err)
	}
	return b, nil
}

// decode reads a record; nil bytes are the state before the first attempt.
func decode(b []byte) (Record, error) {
	if b == nil {
		return Record{Version: recordVersion}, nil
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return Record{}, unreadable(err)
	}
	if head.Version != recordVersion {
		return Record{}, unreadable(fmt.Errorf("it has version %d, this program reads %d", head.Version, recordVersion))
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, unreadable(err)
	}
	if r.Step.Phase() != r.Phase {
		return Record{}, unreadable(fmt.Errorf("its step %q does not belong to its phase %q", r.Step, r.Phase))
	}
	return r, nil
}

func unreadable(err error) error {
	return &preflight.Hinted{Code: "cutover-journal-unreadable", Err: fmt.Errorf("read the cutover record: %w", err),
		Hint: "run the version of replicator that wrote it; nothing was changed"}
}

// Active returns which direction the pairs must run in, given the journal's latest record (nil if there is none).
func Active(record []byte) (reverse bool, err error) {
	r, err := decode(record)
	if err != nil {
		return false, err
	}
	return r.Active.Reverse(), nil
}

const attemptTime = "20060102T150405.000"

// newAttemptID returns an id that sorts after previous and by time, safe in URLs and headers.
func newAttemptID(now time.Time, previous string) string {
	now = now.UTC().Truncate(time.Millisecond)
	if len(previous) >= len(attemptTime) {
		if last, err := time.Parse(attemptTime, previous[:len(attemptTime)]); err == nil && !now.After(last) {
			now = last.Add(time.Millisecond)
		}
	}
	return fmt.Sprintf("%s-%08x", now.Format(attemptTime), rand.Uint32())
}

// asProblem turns an error into what the operator reads; a Hinted keeps its code and hint.
func asProblem(err error, code, hint string) *Problem {
	var hinted *preflight.Hinted
	if errors.As(err, &hinted) {
		if hinted.Hint != "" {
			hint = hinted.Hint
		}
		if hinted.Code != "" {
			code = hinted.Code
		}
	}
	// A Hinted's text ends in its hint, which stands beside it here.
	return &Problem{Code: code, Message: strings.TrimSuffix(err.Error(), ": "+hint), Hint: hint}
}
