// Package probe looks at both sides of a Postgres pair before anything is changed, and says what it found and what to do about it.
//
// Run never fails and never changes anything: an unreachable host is a finding too. Every probe leaves a finding, also when all is
// well, so that `check` shows what was looked at. An Error stops the migration; a Warning says what will be lacking. The codes are
// stable: scripts and the runbook name them.
//
// Probes come in groups: the session (reachable, direct, encrypted), the server (version, encoding, room), the tables and the rights
// on them, the capture, the target, and what both sides have to agree on. What a capture needs stands in one function a capture
// (capture.go). What stands against logical capture, and so which one auto takes, is judged in grants.go alone, by a beginning pair too.
//
// How to add a probe: write a method of run beside its kin that ends in ok, info, warn or fail with one code, call it from the
// group's function, and add to the test a case in which it is not OK. How to add a capture: a function in
// capture.go, and Choose.
package probe
