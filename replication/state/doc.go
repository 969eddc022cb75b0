// Package state keeps what must survive a restart in schema `replicator`: on the target everything, on the source only what the reverse
// stream and the gate need there.
//
// Authority. One process leads a migration: it holds a session advisory lock on the target of the first Postgres pair. The lock alone
// fences nothing, since a process may not know that it lost it; taking the lead increments an epoch on every database, and every
// transaction that applies changes moves its position `WHERE epoch = mine AND position = previous`. Zero rows means somebody else leads:
// the process ends.
//
// Durability. Journal, epoch, phases and finished copies are committed synchronously. Positions are committed with the rows they belong
// to, asynchronously: after a crash of the destination both are gone or both are there.
//
// The schema carries a version. Opening it upgrades it step by step; a version that is newer than the program is refused.
//
// How to add a table: append a statement to upgrades, never change an old one.
package state
