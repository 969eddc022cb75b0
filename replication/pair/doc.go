// Package pair is the Postgres half put together: one source and one target database, moved by the rooms beside this one. It is the
// only package below replication that knows its siblings.
//
// States. A pair's set-up goes through stored steps (state.Step), each of which is idempotent, so that a process that dies at any point is
// followed by one that goes on: schema dumped, tables made, capture in place, tables copied, indexes built, stream past every
// seam and constraints in place. From then on one supervisor goroutine runs the stream of the wanted direction; the coordinator
// of a cutover changes what is wanted. Streams that break are started again from the position stored on the destination.
//
// Authority. A pair works for one epoch. An error that wraps replication.ErrDeposed ends Run: somebody else leads.
//
// Failure handling. Errors that waiting can mend are retried with growing waits; all others too, slowly, with a problem in Status that
// says what to do, since most of them end when the operator has done it. Nothing is ever skipped.
//
// Acting. What would act on applied changes on the side that only follows (triggers, rules, foreign keys) is put aside there while it follows, and noted:
// replica.go puts aside, restore.go and foreignkey.go put back, missing.go names what could not be.
//
// How to add a phase of a cutover: a method in cutover.go that is idempotent and can be called by a fresh process.
package pair
