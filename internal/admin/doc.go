// Package admin is how people and programs look at a running replicator and tell it what to do: the HTTP API with its documents,
// the status page, the event stream, the listeners, and the Go client that the commands use.
//
// It holds no state of the migration. Everything it shows and does goes through Backend, which the process that is wired in
// cmd/replicator implements; the one exception is the latest verification, whose run the server starts and whose report it keeps.
// Every error under /api is an RFC 9457 problem document with a title and a hint. The documents in status.go are read by scripts
// and dashboards (docs/json.md): fields are added freely and never renamed.
//
// Authority: a bearer token has a role, viewer or operator. Without any token configured, everybody may look; without an operator
// token nobody can act. The page signs in for a session cookie that only this site's own pages can use.
//
// How to add an action: a method on one of Backend's parts, a line in routes(), a method on Client, and a line in docs/json.md. How to
// add a field: in status.go, filled by the backend, described in docs/json.md.
package admin
