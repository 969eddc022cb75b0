package replication

import "errors"

// ErrDeposed means that another process has taken the lead of the migration; this one must stop touching anything.
var ErrDeposed = errors.New("another replicator process leads this migration now")

// Directions of a pair's stream, as they are stored.
const (
	Forward = "forward" // source to target
	Reverse = "reverse" // target to source
)

// Direction names the direction of a stream or a cutover attempt.
func Direction(reverse bool) string {
	if reverse {
		return Reverse
	}
	return Forward
}
