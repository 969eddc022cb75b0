package replication

import (
	"testing"

	"pgregory.net/rapid"
)

func TestSnapshotSees(t *testing.T) {
	s, err := ParseSnapshot("100:110:103,101")
	if err != nil {
		t.Fatal(err)
	}
	for xid, want := range map[uint64]bool{99: true, 100: true, 101: false, 102: true, 103: false, 109: true, 110: false, 111: false} {
		if got := s.Sees(xid); got != want {
			t.Errorf("Sees(%d) = %v, want %v", xid, got, want)
		}
	}
}

func TestSnapshotRejects(t *testing.T) {
	for _, s := range []string{"", "1:2", "1:2:x", "5:4:", "-1:2:", "0:0:", "1:2:3:4"} {
		if _, err := ParseSnapshot(s); err == nil {
			t.Errorf("ParseSnapshot(%q): no error", s)
		}
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		xmin := rapid.Uint64Range(3, 1<<40).Draw(t, "xmin")
		xmax := xmin + rapid.Uint64Range(0, 1000).Draw(t, "span")
		s := Snapshot{Xmin: xmin, Xmax: xmax}
		got, err := ParseSnapshot(s.String())
		if err != nil || got.String() != s.String() {
			t.Fatalf("%s became %s: %v", s, got, err)
		}
	})
}

// Whatever the epoch, a 32-bit id within 2^31 of the snapshot gets its own 64-bit id back.
func TestWidenCrossesEpochs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		xmax := rapid.Uint64Range(1<<31, 1<<45).Draw(t, "xmax")
		d := rapid.Int64Range(-(1<<31)+1, (1<<31)-1).Draw(t, "distance")
		want := uint64(int64(xmax) + d)
		if got := (Snapshot{Xmin: xmax, Xmax: xmax}).Widen(uint32(want)); got != want {
			t.Fatalf("Widen gave %d, want %d (xmax %d)", got, want, xmax)
		}
	})
}
