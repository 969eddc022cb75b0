// Package bench measures replicator against native logical replication on real servers: it is a development tool, run by `make bench`, and
// all of it is test code.
//
// Every workload is written once on the source and drained by each system in turn, each through a slot of its own into a target database
// of its own on the same server, in an order that rotates from round to round. So all see the same write-ahead log, and whatever else the
// machine does meets them alike. After each drain the tables are compared. A row of the table shows medians over the rounds, the ratio
// to the faster of native's text and binary forms, and the CPU seconds of each process that took part.
//
// A drain is timed from the moment the system's slot is active on the source until the last transaction is visible on the target.
// Replicator runs as a child process (this test binary in another role), so that its CPU time and memory are its own.
//
// REPLICATOR_BENCH_SCALE is the size as a fraction of the sizes in docs/performance.md (0.1 by default), REPLICATOR_BENCH_ROUNDS the number
// of rounds (3), REPLICATOR_BENCH_PROFILE a directory for CPU profiles of the child. RUN=Drain/B4 narrows make bench to one row.
//
// How to add a workload: a row of drains in workload_test.go for what is drained, or a Benchmark of its own.
package bench
