// Package schematest holds a database schema with one of everything that a dump, a copy or a stream may stumble over, for tests of
// every room.
//
// How to add a kind of object: write it into everything.sql, with rows in rows.sql where it is a table; both must run on every
// supported version. What needs a newer one goes into the version's own constant here.
package schematest

import _ "embed"

// Everything makes the schema. It runs as any role that owns the database, in one simple-protocol message.
//
//go:embed everything.sql
var Everything string

// Rows fills the tables of Everything; it may run once.
//
//go:embed rows.sql
var Rows string
