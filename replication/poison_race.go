//go:build race

package replication

// poison tells whether memory that was given back is overwritten at once, so that whoever still uses it is found out. The tests run with
// the race detector, which by itself sees such a use only from another goroutine.
const poison = true
