// Package postgres opens every Postgres session that replicator uses, so that all of them look alike: a name that tells whose they
// are and carries the epoch, pinned settings under which values read on one side mean the same on the other, bounded waits, and
// errors that never show a password.
//
// How to add a setting: put it into pinned with the reason; it then holds on both sides and in every room.
package postgres
