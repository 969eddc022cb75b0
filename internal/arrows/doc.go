// Package arrows holds no code of its own: its test keeps the directions in which this module's packages may import each other.
// The table in the test is the architecture (docs/architecture.md draws it); depguard in .golangci.yml says the main part of it once
// more, for the editor.
//
// The rule behind the table: a change of how Postgres is read can't reach Redis, nothing that moves data knows of the cutover, and
// only cmd/replicator puts them together. So replication, redissync and cutover never import each other, and neither do the
// packages side by side below replication.
//
// How to add a package: give it a row in the table. A package that no row covers fails the test, so that its place is chosen and
// not fallen into.
package arrows
