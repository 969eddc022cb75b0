// Package ledger is the application's own book of its writes, kept outside every database, from which it is proven afterwards that
// each acknowledged write exists exactly once.
//
// A writer begins a write, tries it as often as it likes under the same id, and ends it: acknowledged (the database said so),
// failed (it gave up), or abandoned (it was told to stop). Every attempt that broke off without an answer is noted as unknown:
// such a write may or may not have happened, so its presence proves nothing and its absence is no loss, unless a later attempt
// was acknowledged.
//
// The ledger knows neither Postgres nor Redis: the caller collects which ids it found how many times, and Check compares.
//
// How to add a kind of write: give it a Kind of its own in Worker, begin its writes with that worker, and pass what the database
// holds of that kind to Check (ids) or CheckCount (a plain counter without ids).
package ledger
