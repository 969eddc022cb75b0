package cutover

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// ErrRunning is what errors.Is finds in a RunningError.
var ErrRunning = errors.New("a cutover attempt is running")

// RunningError refuses a second start; Attempt is the one that runs.
type RunningError struct {
	Attempt string
	Phase   Phase
}

// Error implements error.
func (e *RunningError) Error() string {
	return fmt.Sprintf("attempt %s is running (%s): wait for its end, or abort it", e.Attempt, e.Phase)
}

// Is makes errors.Is(err, ErrRunning) true.
func (e *RunningError) Is(target error) bool { return target == ErrRunning }

// Unwrap gives the hint to whoever renders a preflight.Hinted.
func (e *RunningError) Unwrap() error {
	return &preflight.Hinted{Code: "cutover-running", Err: ErrRunning,
		Hint: "wait for the end of attempt " + e.Attempt + ", or abort it before its switch"}
}

// The refusals of Start and Abort, for errors.Is. What is returned wraps them in a preflight.Hinted.
var (
	// ErrAlreadySwitched: a cutover was asked for, but the destination of the forward direction accepts the writes already.
	ErrAlreadySwitched = errors.New("the targets accept the writes already")
	// ErrNotSwitched: a rollback was asked for, but there was no cutover.
	ErrNotSwitched = errors.New("the sources accept the writes already")
	// ErrTooLate: an abort was asked for after the point of no return.
	ErrTooLate = errors.New("the attempt has switched")
	// ErrNoAttempt: an abort was asked for of an attempt that doesn't run.
	ErrNoAttempt = errors.New("no such attempt is running")
	// ErrNotReady: the journal has not been read yet.
	ErrNotReady = errors.New("the journal has not been read yet")
	// ErrBudget: the freeze budget asked for can't be kept.
	ErrBudget = errors.New("freeze budget out of bounds")
	// ErrSuperseded ends Run: another process has written the journal.
	ErrSuperseded = errors.New("another process has written the cutover journal")
)

// errStopped refuses a Start that was under way when Run ended.
var errStopped = &preflight.Hinted{Code: "cutover-not-ready", Err: errors.New("replicator is stopping"), Hint: "look at the status and ask the next leader"}

func refuse(code string, err error, format string, args ...any) error {
	return &preflight.Hinted{Code: code, Err: err, Hint: fmt.Sprintf(format, args...)}
}

// The reasons for which an attempt is given up before its switch.

func errAborted(by string) error {
	if by == "" {
		by = "the operator"
	}
	return refuse("cutover-aborted", fmt.Errorf("aborted by %s", by), "nothing was switched: start again when ready")
}

func errBudgetSpent(budget time.Duration, step Step, waiting []string) error {
	err := fmt.Errorf("the freeze budget of %s was used up in %s", budget, step)
	if len(waiting) > 0 {
		err = fmt.Errorf("%w, waiting for %s", err, strings.Join(waiting, "; "))
	}
	return refuse("cutover-freeze-budget", err, "nothing was switched: mend what it waited for, or give a larger freeze budget")
}

func errLapsed(pair string, last error) error {
	err := fmt.Errorf("pair %s: the freeze could not be renewed in time", pair)
	if last != nil {
		err = fmt.Errorf("%w: %w", err, last)
	}
	return refuse("cutover-freeze-lapsed", err, "nothing was switched: see that the pair's origin answers quickly, then start again")
}

func errMismatches(pair string, n int) error {
	return refuse("cutover-verify-mismatch", fmt.Errorf("found %d differences", n),
		"nothing was switched: run `replicator verify --pair %s` to see them, and --repair to mend them", pair)
}
