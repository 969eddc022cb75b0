// Command replicator moves the Postgres and Redis of a live application from one side to the other: it copies, keeps both sides
// equal, and cuts over without losing a write.
//
// Exit status of every command: 0 done and good, 1 not, 2 usage (wrong flags or configuration), 3 could not tell (unreachable, timed
// out). With --json one document goes to standard output; words for people go to standard error.
//
// run.go is the only place that wires the rooms together; every other command either probes (check), plays (demo) or is a client of
// the admin API.
//
// How to add a command: a file named for it with a function that returns its *cobra.Command, with an Example; add it to root() in
// cli.go; return notGood, usage errors or couldNotTell so that the exit status is right; describe its JSON in docs/json.md.
package main
