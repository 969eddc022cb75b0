// Package schema carries a database's schema from one side to the other and watches that both stay alike.
//
// Dump reads the source by pg_dump and cuts its text into entries; NewPlan puts them into the order in which a target is built around
// its data; Apply runs one entry and may run it again. Tables lists what is replicated, with keys and sizes. ReadFingerprint
// describes the catalog, Diff names the statement that brings the target back in line. ReadSequences and SetSequences carry the
// sequences over, which no stream does.
//
// It rests on what pg_dump promises ("pg_dump" and "Data Definition" in the PostgreSQL documentation): entries stand in an order that
// respects dependencies, what needs no data before what does. All durable progress is the caller's: it journals which entries are
// done, and a commit whose answer was lost is recognised here.
//
// How to carry a new kind of object: if pg_dump gives it a new entry type, decide in NewPlan where it belongs (Last takes what is
// unknown), in Apply how a second creation is recognised, put one into schematest/everything.sql, and, if rows or the application
// depend on it, describe it in fingerprint.go.
package schema
