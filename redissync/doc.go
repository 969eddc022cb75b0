// Package redissync keeps the keys of two Redis or Valkey servers equal and moves an application from one to the other.
//
// An event only marks a key as dirty; what is copied is the key's current state, so that order, repetition and coalescing of events
// are harmless. A pair has one active flow: feed (feed.go) → dirty-key queue (queue.go) → workers (worker.go, copy.go). The feed is
// client-side caching's broadcast, which needs no server setting, together with keyspace notifications where those are on. Whatever
// a feed may miss (its own interruptions, SWAPDB, FLUSHALL, a failover, a restart of either side) is a gap: both sides are scanned and
// made equal again (scan.go). A pending gap stands in the queue like a dirty key, so lag, drain and caught-up need to know nothing of it.
//
// A cutover (cutover.go, turn.go) holds the origin's writes by CLIENT PAUSE … WRITE, lets the queue run empty, compares, starts the opposite
// flow's feed on the destination before anybody writes there, and then ends the application's old connections together with the pause. Only one
// flow writes at a time, so nothing goes round in circles.
//
// A side may be a cluster (topology.go): a session then sends each unit of commands to the node that holds its key (route.go), and whatever
// concerns servers rather than keys is done on every primary: feeds, scans, INFO, the pause. Any change of the primaries or of their slots is a
// gap. Where an origin can't be paused, its silence is proved instead (quiet.go).
//
// Durable state is one hash on the target per pair, which says that the target's keys are ours. A restart is a gap like any other.
//
// How to add a source of gaps: read it in watch.go beside the others, compare it with how it was last seen, and call gap with the
// reason. How to add a check: a function in check.go that returns findings with a remedy.
package redissync
