// Package e2e holds the tests of the whole: the built binary as a child process, real servers, and package shop writing all the
// while. They see replicator as an operator does, by its commands, its API and the databases.
//
// Every test runs in a world: two sides, a shop that follows the switch, a daemon. TestCrashes kills the daemon with SIGKILL at
// seeded random moments of every phase; its seed is printed, REPLICATOR_SEED sets it, and REPLICATOR_SOAK=1 makes it kill fifty
// times instead of four.
//
// How to add a case: start a world with newWorld, drive it with its methods, and end with rest and prove, which compare both
// sides' full contents and the application's ledger.
package e2e
