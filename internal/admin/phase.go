package admin

import "slices"

// Phase is where a pair stands.
type Phase string

// The phases of a pair. A pair goes from Starting to Finished in this order; Reversed is a pair after its cutover, with changes
// flowing from the target to the source. Stopped is a pair that needs an operator, wherever it was.
const (
	Starting  Phase = "starting"
	Copying   Phase = "copying"
	Indexing  Phase = "indexing"
	Streaming Phase = "streaming"
	Frozen    Phase = "frozen"
	Reversed  Phase = "reversed"
	Finished  Phase = "finished"
	Stopped   Phase = "stopped"
)

// progress is the order of advance. A stopped pair counts as less advanced than any other: whoever waits for the whole migration to
// reach a phase must not be told that it did.
var progress = []Phase{Stopped, Starting, Copying, Indexing, Streaming, Frozen, Reversed, Finished}

// Phases returns every phase, least advanced first.
func Phases() []Phase { return slices.Clone(progress) }

// Valid tells whether p is a phase.
func (p Phase) Valid() bool { return slices.Contains(progress, p) }

// Reached tells whether a pair at p is at goal or later. Only a stopped pair has reached Stopped.
func (p Phase) Reached(goal Phase) bool {
	if goal == Stopped || p == Stopped {
		return p == goal
	}
	return slices.Index(progress, p) >= slices.Index(progress, goal)
}

// LeastAdvanced returns the least advanced of the phases, Starting if there are none.
func LeastAdvanced(phases []Phase) Phase {
	if len(phases) == 0 {
		return Starting
	}
	return slices.MinFunc(phases, func(a, b Phase) int { return slices.Index(progress, a) - slices.Index(progress, b) })
}
