package redissync

import (
	"slices"
	"strings"
	"testing"

	"replicator/internal/preflight"
)

// TestCheckOfClusters names what a move into a cluster will meet, and accepts a good one.
func TestCheckOfClusters(t *testing.T) {
	t.Parallel()
	c := threeNodes(t)
	find := func(fs []preflight.Finding, code, part string) bool {
		return slices.ContainsFunc(fs, func(f preflight.Finding) bool {
			return f.Code == code && strings.Contains(f.Message+f.Hint, part)
		})
	}
	good := newClusterRig(t, nil, c)
	good.a.do("SET", "k", "v")
	fs := Check(good.ctx(), good.o)
	if preflight.Worst(fs) > preflight.Info || !find(fs, "redis-cluster", "3 primaries") {
		t.Errorf("a good cluster: %+v", fs)
	}
	bad := newClusterRig(t, nil, c)
	bad.a.do("SELECT", "3")
	bad.a.do("MSET", "a", "1", "b", "2")
	bad.a.do("RPOPLPUSH", "c", "d")
	bad.a.do("EVAL", "return 1", "0")
	fs = Check(bad.ctx(), bad.o)
	for code, part := range map[string]string{"redis-databases": "database 3 with 2 keys", "redis-cross-slot": "rpoplpush (1)"} {
		if !find(fs, code, part) {
			t.Errorf("no %s with %q: %+v", code, part, fs)
		}
	}
	bad.o.Databases = []int{0}
	if fs = Check(bad.ctx(), bad.o); preflight.Worst(fs) != preflight.Warning {
		t.Errorf("with database 0 alone: %+v", fs)
	}
	back := newClusterRig(t, c, nil)
	if fs = Check(back.ctx(), back.o); preflight.Worst(fs) > preflight.Info {
		t.Errorf("from a cluster: %+v", fs)
	}
	same := newClusterRig(t, nil, c)
	same.o.SourceURL = c.Primaries[1].URL()
	if fs = Check(same.ctx(), same.o); !find(fs, "redis-same-server", "") {
		t.Errorf("two nodes of one cluster: %+v", fs)
	}
	if err := c.Primaries[2].Kill(); err != nil {
		t.Fatal(err)
	}
	if fs = Check(good.ctx(), good.o); preflight.Worst(fs) != preflight.Error {
		t.Errorf("with a primary that is down: %+v", fs)
	}
}
