// Package pgtest runs real PostgreSQL servers for tests and for the demo: any major version that is installed, on a free port of
// 127.0.0.1, from a copied template so that a start takes a fraction of a second.
//
// A server dies with the process that started it, however that ends, and a test's server is removed with its data. PostgreSQL
// refuses to run as root, so root starts it as the user postgres (or nobody); everyone else runs it as themselves.
//
// Start gives a test its own server, which it may kill; Shared gives it a database on a server that the whole test binary uses.
// HerokuOwner, RDSMaster and LogicalOwner make the roles that the product meets in the wild: use them rather than the superuser
// wherever a test is about what replicator may do. Launch does the same without a test.
//
// A missing server is a failure that names the command which installs it; nothing is ever skipped for it.
//
// How to add a version: add its package to the group "versions" of scripts/install-tools, and start it with
// Options{Version: N}. How to add a kind of role: write a method beside HerokuOwner that says in its comment where the role is
// met, what it may and what it may not.
package pgtest
