package cutover

import (
	"context"
	"time"

	"replicator/internal/preflight"
)

// Pair is one source and target that are cut over together with the others. `reverse` is the direction of the attempt: origin is
// the side that accepts writes now (the source, or the target if reverse), destination the other.
//
// Every method is idempotent, may be called by a fresh process after a crash, names itself only by the error it returns (the
// coordinator adds the pair's name), and returns soon after ctx ends. An error that repeating can't mend is marked by retry.Stop or
// is (or wraps) a *preflight.Hinted.
type Pair interface {
	Name() string
	Preparer
	Freezer
	Mover
	Switcher
}

// Preparer is what happens while the application still writes.
type Preparer interface {
	// Check probes and changes nothing. Any finding with severity Error stops the attempt.
	Check(ctx context.Context, reverse bool) []preflight.Finding
	// Prepare does the slow things: the opposite slot or feed, gates installed, a calm verification.
	Prepare(ctx context.Context, reverse bool) error
}

// Freezer holds the origin's writes back, as a dead man's switch: whoever stops renewing thaws. Deadlines are instants of this
// process's clock; an implementation turns them into durations for its server.
type Freezer interface {
	// Freeze makes the origin refuse writes until deadline at the latest, and returns when every write that was under way has
	// ended. It fails, rather than freeze anew, if deadline has passed.
	Freeze(ctx context.Context, reverse bool, deadline time.Time) error
	// Renew moves the deadline. It is called from when Freeze was called, concurrently with Freeze and the methods of Mover. It must
	// fail, changing nothing, if the pair is not frozen or its freeze has lapsed (a write may have come in), and must not take
	// the permanence from a sealed freeze.
	Renew(ctx context.Context, reverse bool, deadline time.Time) error
	// Seal makes the freeze permanent. It must fail, changing nothing, if the freeze has lapsed; after the point of no return it is called
	// again by a process that resumes, and is then a no-op on a sealed pair.
	Seal(ctx context.Context, reverse bool) error
	// Thaw is the compensation of all that Prepare, Freeze, Mover's methods and Seal did: the origin is writable and streams as before.
	// It is called only while the destination was not opened.
	Thaw(ctx context.Context, reverse bool) error
}

// Mover brings the destination level with the frozen origin.
type Mover interface {
	// Fence notes the position that covers every write made before the freeze.
	Fence(ctx context.Context, reverse bool) error
	// Drain returns when the destination has, durably, everything up to the fence and nothing more will be applied to it.
	Drain(ctx context.Context, reverse bool) error
	// Sequences sets the destination's sequences.
	Sequences(ctx context.Context, reverse bool) error
	// Verify compares; mismatches above zero stop the attempt.
	Verify(ctx context.Context, reverse bool) (mismatches int, err error)
	// Arm starts the opposite stream and proves it by a round trip.
	Arm(ctx context.Context, reverse bool) error
}

// Switcher acts after the point of no return; its methods are repeated until they succeed.
type Switcher interface {
	// Open makes the destination accept writes.
	Open(ctx context.Context, reverse bool) error
	// Retire removes what served the old direction.
	Retire(ctx context.Context, reverse bool) error
}

// Predictor is implemented by a Pair that can tell, while streaming, how long its freeze would last. A dry run shows the
// longest prediction.
type Predictor interface {
	PredictFreeze(ctx context.Context, reverse bool) (time.Duration, error)
}

// Waiter is implemented by a Pair that can tell what the step under way waits for; empty if there is nothing to add. It never blocks.
type Waiter interface {
	Waiting() string
}

// Journal keeps the latest Record of a migration. Records are JSON objects with a top-level integer "revision" that
// grows with every save.
type Journal interface {
	// Load returns the latest record, nil if there is none.
	Load(ctx context.Context) (record []byte, err error)
	// Save stores the record durably before it returns nil; after an error it may or may not be stored. It must refuse a
	// writer that is no longer the leader, with an error marked by retry.Stop, and should refuse a revision lower
	// than the stored one: a save whose connection died may reach the server late.
	Save(ctx context.Context, record []byte) error
}
