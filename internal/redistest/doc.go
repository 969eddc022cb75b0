// Package redistest starts real Redis and Valkey servers on free ports of 127.0.0.1, for tests and for the demo. A server lives in a
// directory of its own, can be stopped, killed and started again on the same port, and dies with the process that started it.
//
// How to add a kind of server: give Options a field, turn it into directives in Start, and say in the field's comment what a test
// may rely on.
package redistest
