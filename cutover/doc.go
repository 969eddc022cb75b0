// Package cutover moves an application's writes from one side to the other, all pairs at once, and back again (rollback is the
// same machine with the direction reversed). It knows the databases only through the small interfaces in pair.go.
//
// # Authority
//
// The journal decides. A Record is saved, durably, before each side effect; the effect follows only when the save is acknowledged.
// A fresh process that loads a record before Open gives the writes back (Thaw) and ends the attempt as aborted; from Open on it
// goes forward, whatever it takes. There is no state in between: entering Open is the point of no return, and the record that
// enters it also carries the new active direction. Where the outcome of that save is unknown the coordinator neither thaws nor
// opens; it asks the journal again until it knows.
//
// # States
//
// Step is the state and transition is the only function that changes it; both are free of I/O. Phase is the coarser public face
// of a Step.
//
//	check → prepare → before → freeze → fence → drain → sequences → verify → arm → seal ┃ open → notify → retire → after → complete
//	                 any failure, an abort, an expired budget, a restart                ┃ restart: goes on
//	                                  → thaw → compensate → aborted
//	dry run: check → rehearse → complete, or → compensate → aborted
//
// # The freeze
//
// A freeze is a dead man's switch: every pair holds it for a few seconds, renewed at a third of that by a goroutine that ends
// before the freeze is sealed or given back, and never past one deadline, the freeze budget. If a renewal is not acknowledged before the hold in
// force runs out, or if the budget is used up, the attempt is given up. Sealing begins only while a margin of every hold remains.
// While the journal can't be reached no step is taken: renewals go on until the budget is used up, and then the origin thaws by itself.
//
// # Failure handling
//
// A call on a pair that fails is repeated a few times where repeating can help (an error marked by retry.Stop or carrying a
// preflight.Hinted is final), never beyond the deadline. Thaw, Open and Retire are repeated until they succeed; Status says
// what they wait for. Hooks at `switch` are repeated until they succeed or the operator starts the way back.
//
// # How to add a phase
//
// Add a Step in phase.go with its name and Phase, place it in transition.go's forward table, perform it in perform.go,
// add its method to an interface in pair.go, and extend the fake in world_test.go; then run the tests with -rewrite and read
// the golden files' difference.
//
// # How to add a kind of hook
//
// Implement Means (see exec.go; a Heroku or PgBouncer hook is one such type), add its configuration as a pointer field to
// HookConfig, and build it in HookConfig.means, where all its problems are collected.
package cutover
