package admin

import (
	"time"

	"replicator/internal/preflight"
)

// Status is the document of GET /api/v1/status. Pointers are null where a value is unknown.
type Status struct {
	Migration string `json:"migration"`
	// Phase is that of the least advanced pair.
	Phase Phase `json:"phase"`
	// Leader tells whether the answering process leads the migration; a standby answers from what the leader has written down.
	Leader  bool      `json:"leader"`
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	// Paused tells that an operator has asked for a pause.
	Paused   bool             `json:"paused"`
	Postgres []PostgresStatus `json:"postgres"`
	Redis    []RedisStatus    `json:"redis"`
	Cutover  CutoverStatus    `json:"cutover"`
	Problems []Problem        `json:"problems"`
}

// PostgresStatus is one Postgres pair.
type PostgresStatus struct {
	Name string `json:"name"`
	// Capture is logical or trigger, as chosen; CaptureReason says why.
	Capture       string `json:"capture"`
	CaptureReason string `json:"capture_reason"`
	Phase         Phase  `json:"phase"`
	// LagBytes is the log that the source has written and the target has not made durable.
	LagBytes *int64 `json:"lag_bytes"`
	// LagSeconds is the age of the oldest source commit that is not durable on the target, 0 if there is none.
	LagSeconds *float64 `json:"lag_seconds"`
	// RetainedBytes is what the source keeps on disk for this pair.
	RetainedBytes *int64 `json:"retained_bytes"`
	Tables        Tables `json:"tables"`
	Copy          Copy   `json:"copy"`
	// AppliedTransactions counts those that this process has applied.
	AppliedTransactions int64 `json:"applied_transactions"`
	// SourcePosition and AppliedPosition are positions of the stream in the capture's own words; empty where unknown.
	SourcePosition  string `json:"source_position"`
	AppliedPosition string `json:"applied_position"`
	// WaitingFor says what the pair waits for; empty if it doesn't.
	WaitingFor string `json:"waiting_for"`
}

// Tables counts the tables of a pair.
type Tables struct {
	Total  int `json:"total"`
	Copied int `json:"copied"`
}

// Copy is the progress of copying whole tables.
type Copy struct {
	Rows  int64 `json:"rows"`
	Bytes int64 `json:"bytes"`
	// TotalBytes is the estimated size of what is to be copied.
	TotalBytes     *int64   `json:"total_bytes"`
	BytesPerSecond *float64 `json:"bytes_per_second"`
	// ETASeconds is null when nothing is being copied or nothing can be said yet.
	ETASeconds *float64 `json:"eta_seconds"`
}

// RedisStatus is one Redis pair.
type RedisStatus struct {
	Name string `json:"name"`
	// Feed names how changes are learned, as chosen.
	Feed       string   `json:"feed"`
	Phase      Phase    `json:"phase"`
	LagSeconds *float64 `json:"lag_seconds"`
	DirtyKeys  *int64   `json:"dirty_keys"`
	Keys       Keys     `json:"keys"`
	// Gaps counts the interruptions of the feed since this process started.
	Gaps       int64  `json:"gaps"`
	WaitingFor string `json:"waiting_for"`
}

// Keys is the progress of copying keys.
type Keys struct {
	Copied int64  `json:"copied"`
	Total  *int64 `json:"total"`
}

// CutoverStatus is the document of GET /api/v1/cutover: the latest attempt, or phase idle before the first.
type CutoverStatus struct {
	// Attempt is null before the first.
	Attempt *string `json:"attempt"`
	// Phase is idle, preflight, hooks, freeze, fence, drain, sequences, verify, arm, switch, done, aborting or aborted; after an attempt
	// it stays done or aborted until the next.
	Phase string `json:"phase"`
	// Direction is forward (a cutover) or reverse (a rollback).
	Direction string `json:"direction"`
	DryRun    bool   `json:"dry_run"`
	// FreezeSeconds is how long writes were, or so far are, held back; null before the freeze.
	FreezeSeconds *float64 `json:"freeze_seconds"`
	// FreezeBudgetSeconds bounds the freeze; PredictedFreezeSeconds is a dry run's estimate.
	FreezeBudgetSeconds    float64    `json:"freeze_budget_seconds"`
	PredictedFreezeSeconds *float64   `json:"predicted_freeze_seconds"`
	StartedAt              *time.Time `json:"started_at"`
	EndedAt                *time.Time `json:"ended_at"`
	// Outcome is done, aborted or rolled_back; empty while the attempt runs.
	Outcome string `json:"outcome"`
	// WaitingFor says what the present step waits for.
	WaitingFor string        `json:"waiting_for"`
	Steps      []CutoverStep `json:"steps"`
	// Findings are those of the attempt's preflight.
	Findings []preflight.Finding `json:"findings"`
	// Problem is why the attempt was given up, or what it can't get past; null if nothing.
	Problem *Problem `json:"problem"`
}

// CutoverStep is one step of an attempt, finished or under way.
type CutoverStep struct {
	Name    string   `json:"name"`
	Seconds *float64 `json:"seconds"`
}

// Running tells whether an attempt is under way.
func (c CutoverStatus) Running() bool {
	switch c.Phase {
	case "", "idle", "done", "aborted":
		return false
	}
	return true
}

// Problem is something that an operator should know of, with what to do about it.
type Problem struct {
	Code     string             `json:"code"`
	Severity preflight.Severity `json:"severity"`
	Pair     string             `json:"pair,omitempty"`
	Side     string             `json:"side,omitempty"`
	Message  string             `json:"message"`
	Hint     string             `json:"hint"`
	// Since is when it was first seen; null where that isn't known.
	Since *time.Time `json:"since"`
}

// ProblemOf returns the status document's form of a finding.
func ProblemOf(f preflight.Finding, since time.Time) Problem {
	p := Problem{Code: f.Code, Severity: f.Severity, Pair: f.Pair, Side: f.Side, Message: f.Message, Hint: f.Hint}
	if !since.IsZero() {
		p.Since = &since
	}
	return p
}

// normalize fills in what every answer promises: lists are never null, and the top-level phase is derived from the pairs.
func (s Status) normalize() Status {
	if s.Postgres == nil {
		s.Postgres = []PostgresStatus{}
	}
	if s.Redis == nil {
		s.Redis = []RedisStatus{}
	}
	if s.Problems == nil {
		s.Problems = []Problem{}
	}
	s.Cutover = s.Cutover.normalize()
	if s.Phase == "" {
		s.Phase = LeastAdvanced(s.phases())
	}
	return s
}

func (c CutoverStatus) normalize() CutoverStatus {
	if c.Phase == "" {
		c.Phase = "idle"
	}
	if c.Direction == "" {
		c.Direction = "forward"
	}
	if c.Steps == nil {
		c.Steps = []CutoverStep{}
	}
	if c.Findings == nil {
		c.Findings = []preflight.Finding{}
	}
	return c
}

func (s Status) phases() []Phase {
	var all []Phase
	for _, p := range s.Postgres {
		all = append(all, p.Phase)
	}
	for _, p := range s.Redis {
		all = append(all, p.Phase)
	}
	return all
}
