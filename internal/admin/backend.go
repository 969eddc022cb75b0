package admin

import (
	"context"
	"time"
)

// Backend is the migration, as far as this package needs it. On a process that leads it acts itself; on one that stands by it
// answers from what the leader has written down and hands actions to the leader. All methods may be called concurrently. An error
// that wraps preflight.Hinted is shown with its code and hint; one of package cutover's refusals gets its own HTTP status.
type Backend interface {
	Reader
	Switcher
	Operations
}

// Reader tells how things stand.
type Reader interface {
	// Status returns at once, from memory: it is called for every scrape of the page, and once a second while anybody listens.
	Status(ctx context.Context) (Status, error)
	// CaughtUp returns nil once everything that was committed on every source when it was called is durable on the targets.
	CaughtUp(ctx context.Context) error
}

// Switcher moves the application from one side to the other.
type Switcher interface {
	// StartCutover begins an attempt and returns its name as soon as it is in the journal.
	StartCutover(ctx context.Context, r CutoverRequest) (attempt string, err error)
	// AbortCutover asks a running attempt to go back; it fails once the attempt has switched.
	AbortCutover(ctx context.Context, attempt string) error
}

// Operations are what else an operator can ask for.
type Operations interface {
	// Finish removes all that replicator made on both sides and returns when it is gone.
	Finish(ctx context.Context) error
	// Verify compares both sides, and with Repair mends the target; it returns when it is done.
	Verify(ctx context.Context, r VerifyRequest) ([]VerifiedPair, error)
	// Resync begins to copy a pair, or some of its tables, anew and returns once that is certain to happen.
	Resync(ctx context.Context, r ResyncRequest) error
	// SetPaused stops or resumes replication without losing anything; it is idempotent.
	SetPaused(ctx context.Context, paused bool) error
}

// CutoverRequest asks for an attempt.
type CutoverRequest struct {
	// Reverse is false for a cutover, true for a rollback.
	Reverse bool
	// DryRun goes through everything that changes nothing, and calls hooks marked as a dry run.
	DryRun bool
	// FreezeBudget bounds the freeze; zero means as configured.
	FreezeBudget time.Duration
	// By says who asks, for the journal: a role and where from.
	By string
}

// VerifyRequest says what to compare; zero means everything.
type VerifyRequest struct {
	Pair   string   `json:"pair,omitempty"`
	Tables []string `json:"tables,omitempty"`
	Repair bool     `json:"repair,omitempty"`
}

// ResyncRequest says what to copy anew; no tables means all of the pair's.
type ResyncRequest struct {
	Pair   string   `json:"pair"`
	Tables []string `json:"tables,omitempty"`
}

// Verification is the document of GET /api/v1/verify: the latest verification that this process ran.
type Verification struct {
	// ID is null before the first.
	ID *string `json:"id"`
	// State is none, running, done or failed.
	State     string        `json:"state"`
	Request   VerifyRequest `json:"request"`
	StartedAt *time.Time    `json:"started_at"`
	EndedAt   *time.Time    `json:"ended_at"`
	// Mismatches is the sum over all pairs; null until done.
	Mismatches *int           `json:"mismatches"`
	Pairs      []VerifiedPair `json:"pairs"`
	// Problem is why it failed; null if it didn't.
	Problem *Problem `json:"problem"`
}

// VerifiedPair is the result for one pair.
type VerifiedPair struct {
	Pair string `json:"pair"`
	// Compared counts rows or keys.
	Compared   int64           `json:"compared"`
	Mismatches int             `json:"mismatches"`
	Repaired   int             `json:"repaired"`
	Tables     []VerifiedTable `json:"tables"`
}

// VerifiedTable is the result for one table, or one Redis database.
type VerifiedTable struct {
	Table      string `json:"table"`
	SourceRows int64  `json:"source_rows"`
	TargetRows int64  `json:"target_rows"`
	Equal      bool   `json:"equal"`
	// Differences names at most a few of the rows or keys that differ.
	Differences []Difference `json:"differences"`
}

// Difference is one row or key that differs.
type Difference struct {
	// Kind is missing (on the target), extra (on the target) or different.
	Kind string `json:"kind"`
	Key  string `json:"key"`
}
