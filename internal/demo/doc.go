// Package demo shows the whole road on one machine: two Postgres and two Redis servers of its own, a shop (package shop) that is
// written to at a steady rate, and the daemon as a child process that moves it from one side to the other.
//
// Run is the command `replicator demo`. It sees replicator as an operator's script does: by its command line, its configuration
// file and its API, never by its packages. What it says at the end is measured from outside: the lag by looking for
// acknowledged writes on the target, the freeze as the longest time in which the application saw no write acknowledged, lost and
// doubled writes by the application's own ledger.
//
// Servers, Daemon and Client are also what the end-to-end and crash tests are made of.
//
// How to add a measurement: take it in auto.go while the thing happens, give it a field in Result with a json name, add a line to
// its table, and list it in docs/json.md.
package demo
