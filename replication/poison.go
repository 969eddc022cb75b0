//go:build !race

package replication

// poison tells whether memory that was given back is overwritten at once, so that whoever still uses it is found out.
const poison = false
