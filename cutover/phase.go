package cutover

import "fmt"

// Phase is the public face of where a cutover stands. The names are a contract with scripts and dashboards.
type Phase int

// The phases in their order; Aborting and Aborted are the way back from anything before Switch.
const (
	Idle Phase = iota
	Preflight
	Hooks
	Freeze
	Fence
	Drain
	Sequences
	Verify
	Arm
	Switch
	Done
	Aborting
	Aborted
)

var phaseNames = [...]string{"idle", "preflight", "hooks", "freeze", "fence", "drain", "sequences", "verify", "arm", "switch", "done",
	"aborting", "aborted"}

// Phases returns all phases in order.
func Phases() []Phase {
	all := make([]Phase, len(phaseNames))
	for i := range all {
		all[i] = Phase(i)
	}
	return all
}

// String returns the phase's stable name.
func (p Phase) String() string {
	if p < Idle || int(p) >= len(phaseNames) {
		return fmt.Sprintf("phase(%d)", int(p))
	}
	return phaseNames[p]
}

// MarshalText implements encoding.TextMarshaler.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Phase) UnmarshalText(b []byte) error {
	for i, n := range phaseNames {
		if n == string(b) {
			*p = Phase(i)
			return nil
		}
	}
	return fmt.Errorf("unknown cutover phase %q", b)
}

// Step is the state of an attempt: one side effect that is due, or a final state. Its name stands in the journal.
type Step int

// The steps. The order matters: those before StepOpen are taken back after a crash, those from StepOpen to StepAfter go forward.
const (
	StepIdle     Step = iota
	StepCheck         // probe all pairs; changes nothing
	StepRehearse      // dry run only: the hooks, marked as such
	StepPrepare       // slow things, before anything is frozen
	StepBefore        // hooks at before
	StepFreeze        // origins refuse writes
	StepFence         // the position that covers every write is noted
	StepDrain         // destinations have everything up to it
	StepSequences
	StepVerify
	StepArm        // the way back runs and is proven
	StepSeal       // the freeze becomes permanent
	StepOpen       // point of no return passed; destinations accept writes
	StepNotify     // hooks at switch
	StepRetire     // what served the old direction goes
	StepAfter      // hooks at after
	StepComplete   // final
	StepThaw       // origins accept writes again
	StepCompensate // hooks at abort
	StepAborted    // final
)

var steps = [...]struct {
	name  string
	phase Phase
}{
	StepIdle:       {"idle", Idle},
	StepCheck:      {"check", Preflight},
	StepRehearse:   {"rehearse", Hooks},
	StepPrepare:    {"prepare", Preflight},
	StepBefore:     {"before", Hooks},
	StepFreeze:     {"freeze", Freeze},
	StepFence:      {"fence", Fence},
	StepDrain:      {"drain", Drain},
	StepSequences:  {"sequences", Sequences},
	StepVerify:     {"verify", Verify},
	StepArm:        {"arm", Arm},
	StepSeal:       {"seal", Arm},
	StepOpen:       {"open", Switch},
	StepNotify:     {"notify", Switch},
	StepRetire:     {"retire", Switch},
	StepAfter:      {"after", Done},
	StepComplete:   {"complete", Done},
	StepThaw:       {"thaw", Aborting},
	StepCompensate: {"compensate", Aborting},
	StepAborted:    {"aborted", Aborted},
}

// String returns the step's name.
func (s Step) String() string {
	if s < StepIdle || int(s) >= len(steps) {
		return fmt.Sprintf("step(%d)", int(s))
	}
	return steps[s].name
}

// Phase returns the phase that the step belongs to.
func (s Step) Phase() Phase {
	if s < StepIdle || int(s) >= len(steps) {
		return Idle
	}
	return steps[s].phase
}

// Final reports whether nothing is left to do.
func (s Step) Final() bool { return s == StepIdle || s == StepComplete || s == StepAborted }

// Revocable reports whether the attempt can still be taken back: the journal has not passed the point of no return.
func (s Step) Revocable() bool { return s > StepIdle && s < StepOpen }

// MarshalText implements encoding.TextMarshaler.
func (s Step) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Step) UnmarshalText(b []byte) error {
	for i := range steps {
		if steps[i].name == string(b) {
			*s = Step(i)
			return nil
		}
	}
	return fmt.Errorf("unknown cutover step %q", b)
}

// Direction says which way changes flow.
type Direction int

// Forward is from source to target, Reverse from target to source.
const (
	Forward Direction = iota
	Reverse
)

// direction converts the flag of the outside world.
func direction(reverse bool) Direction {
	if reverse {
		return Reverse
	}
	return Forward
}

// String returns "forward" or "reverse".
func (d Direction) String() string {
	if d == Reverse {
		return "reverse"
	}
	return "forward"
}

// Reverse reports whether d is Reverse.
func (d Direction) Reverse() bool { return d == Reverse }

// MarshalText implements encoding.TextMarshaler.
func (d Direction) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Direction) UnmarshalText(b []byte) error {
	switch string(b) {
	case "forward":
		*d = Forward
	case "reverse":
		*d = Reverse
	default:
		return fmt.Errorf("unknown direction %q", b)
	}
	return nil
}

// Outcome is how an attempt ended; empty while it runs.
type Outcome string

// The outcomes. A completed attempt with direction reverse ends as RolledBack.
const (
	OutcomeDone       Outcome = "done"
	OutcomeAborted    Outcome = "aborted"
	OutcomeRolledBack Outcome = "rolled_back"
)
