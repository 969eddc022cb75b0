package trigger

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"replicator/replication"
)

// snapshots draws two snapshots of one history: transactions get ids in order and end in any order.
func snapshots(t *rapid.T) (earlier, later replication.Snapshot) {
	next, running := uint64(100), []uint64{}
	take := func() replication.Snapshot {
		// xmax is the id after the last that has ended; what runs beyond it isn't listed.
		xmax := uint64(100)
		for x := uint64(100); x < next; x++ {
			if !slices.Contains(running, x) {
				xmax = x + 1
			}
		}
		s := replication.Snapshot{Xmin: xmax, Xmax: xmax}
		for _, x := range running {
			if x < xmax {
				s.Xip = append(s.Xip, x)
				s.Xmin = min(s.Xmin, x)
			}
		}
		slices.Sort(s.Xip)
		return s
	}
	play := func(n int) {
		for range n {
			if len(running) > 0 && rapid.Bool().Draw(t, "end") {
				i := rapid.IntRange(0, len(running)-1).Draw(t, "which")
				running = slices.Delete(running, i, i+1)
			} else {
				running = append(running, next)
				next++
			}
		}
	}
	play(rapid.IntRange(0, 30).Draw(t, "before"))
	earlier = take()
	play(rapid.IntRange(0, 30).Draw(t, "between"))
	return earlier, take()
}

// A later snapshot covers an earlier one, and the earlier one the later exactly where both see the same.
func TestCoversOrdersSnapshots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := snapshots(t)
		if !covers(b, a) {
			t.Fatalf("%s doesn't cover the earlier %s", b, a)
		}
		sameView := true
		for x := uint64(90); x < 200; x++ {
			if a.Sees(x) != b.Sees(x) {
				sameView = false
			}
		}
		if covers(a, b) != sameView {
			t.Fatalf("%s covers %s: %v, they see the same: %v", a, b, covers(a, b), sameView)
		}
	})
}

func TestPositionRoundTrip(t *testing.T) {
	p := place{System: "7", Timeline: 3, Beat: 9, seen: replication.Snapshot{Xmin: 5, Xmax: 9, Xip: []uint64{5, 7}}}
	got, err := parsePlace(p.position())
	if err != nil || got.position() != p.position() {
		t.Fatalf("%s became %s: %v", p.position(), got.position(), err)
	}
	for _, bad := range []replication.Position{"", "0/16B3748", "{}", `{"snapshot":"1:"}`, `{"snapshot":"5:4:"}`} {
		if _, err := parsePlace(bad); err == nil {
			t.Errorf("parsePlace(%q): no error", bad)
		}
	}
}

// The description in a function's source is read back whatever the names hold.
func TestDescriptionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := described{Table: rapid.String().Draw(t, "table"), Slot: rapid.IntRange(0, 1).Draw(t, "slot"),
			Key: []column{{Name: rapid.StringN(1, 20, -1).Draw(t, "key"), Type: "integer", Builtin: true, Equals: "pg_catalog"}}}
		comment, err := d.comment()
		if err != nil {
			t.Fatal(err)
		}
		got, ok := parseDescription(comment + "BEGIN")
		if !ok || !got.logsSame(d) || got.Slot != d.Slot {
			t.Fatalf("%+v became %+v", d, got)
		}
	})
}
