package pgtest

import (
	"math/rand/v2"
	"os"
	"strconv"
)

// Seed returns the seed of a random test, a new one each time, and prints it; REPLICATOR_SEED sets it, to repeat a run.
func Seed(t TB) uint64 {
	t.Helper()
	s := rand.Uint64() % 1e9
	if v := os.Getenv("REPLICATOR_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("REPLICATOR_SEED: %v", err)
		}
		s = n
	}
	t.Logf("seed %d (repeat with REPLICATOR_SEED=%d)", s, s)
	return s
}
