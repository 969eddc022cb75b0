package redissync

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"replicator/internal/redistest"
)

// holdless tells whether a side is of a version that can't hold writes alone (6.2 can), so that check refuses a cutover.
func (r *rig) holdless() bool { return slices.Contains(r.versions[:], "redis-6.0") }

// TestVersionPairs runs the storm of random commands between servers of different versions, each way: a diagonal in short, every pair
// with either feed in a soak.
func TestVersionPairs(t *testing.T) {
	t.Parallel()
	type pair struct{ source, target string }
	pairs := []pair{{"redis-6.0", "redis-8.0"}, {"", "valkey-9.1"}, {"redis-8.0", "valkey-8.0"}, {"valkey-8.1", "redis-6.0"}}
	feeds := []string{""}
	if soak() {
		pairs, feeds = nil, []string{"", "KEA"}
		for _, source := range redistest.Versions {
			for _, target := range redistest.Versions {
				pairs = append(pairs, pair{source, target})
			}
		}
	}
	name := func(v string) string {
		if v == "" {
			return "redis-7.0"
		}
		return v
	}
	for _, p := range pairs {
		for _, feed := range feeds {
			t.Run(fmt.Sprintf("%s to %s %s", name(p.source), name(p.target), feed), func(t *testing.T) {
				if !soak() {
					t.Parallel()
				}
				seed := testSeed(t)
				r := rand.New(rand.NewPCG(seed, 7))
				o := redistest.Options{}
				if feed != "" {
					o.Settings = map[string]string{"notify-keyspace-events": feed}
				}
				source, target := o, o
				source.Version, target.Version = p.source, p.target
				rig := newRig(t, source, target)
				rig.short, rig.versions = true, [2]string{p.source, p.target}
				rig.run(false)
				ops := stormAndCompare(t, rig, r, seed, false)
				if rig.holdless() {
					rig.stop()
					rig.o.Epoch++
					rig.run(true)
				}
				ops += stormAndCompare(t, rig, r, seed+1, true)
				t.Logf("%d operations, %d gaps", ops, rig.pair.Status().Gaps)
			})
		}
	}
}
