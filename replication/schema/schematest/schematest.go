// Package schematest holds a database schema with one of everything that a dump, a copy or a stream may stumble over, for tests of
// every room.
//
// How to add a kind of object: write it into everything.sql, with rows in rows.sql where it is a table; both must run on every
// supported version. What needs a newer one goes into the file of the version that brought it.
package schematest

import _ "embed"

// Everything makes the schema on any supported version. It runs as any role that owns the database, in one simple-protocol message.
//
//go:embed everything.sql
var Everything string

// Rows fills the tables of Everything; it may run once.
//
//go:embed rows.sql
var Rows string

//go:embed since14.sql
var since14 string

//go:embed since15.sql
var since15 string

//go:embed since18.sql
var since18 string

// Since returns what a server of the given major version knows beyond Everything, to be run after it.
func Since(major int) []string {
	var out []string
	for _, v := range []struct {
		major int
		sql   string
	}{{14, since14}, {15, since15}, {18, since18}} {
		if major >= v.major {
			out = append(out, v.sql)
		}
	}
	return out
}
