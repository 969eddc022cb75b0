package redistest

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestClusterOfEveryVersion(t *testing.T) {
	t.Parallel()
	for _, version := range Versions {
		t.Run("version "+version, func(t *testing.T) {
			t.Parallel()
			started := time.Now()
			c := StartCluster(t, 3, Options{Version: version})
			t.Logf("up after %v", time.Since(started).Round(time.Millisecond))
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if _, err := c.Primaries[0].Do(ctx, "SET", "k{a}", "1"); err == nil || !strings.HasPrefix(err.Error(), "SET k{a} 1: MOVED 15495 ") {
				t.Fatalf("a key of the last primary on the first: %v", err)
			}
			if _, err := c.Primaries[2].Do(ctx, "SET", "k{a}", "1"); err != nil {
				t.Fatal(err)
			}
			if err := c.MoveSlot(ctx, 15495, c.Primaries[2], c.Primaries[0], nil); err != nil {
				t.Fatal(err)
			}
			if v, err := c.Primaries[0].Do(ctx, "GET", "k{a}"); v != "1" || err != nil {
				t.Fatalf("after the move: %q, %v", v, err)
			}
		})
	}
}
