// Package preflight holds the words in which every part of replicator tells an operator what it found: a Finding has a stable
// code, a severity, a message and a remedy. The same form serves `replicator check`, the refusals of a cutover's preflight, and
// the problems of the status document.
//
// How to add a check: write a function beside what it probes (replication/probe for Postgres, redissync for Redis) that returns
// Findings, name its code in kebab-case, and say in Hint exactly what to run or change.
package preflight
