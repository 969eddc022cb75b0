package trigger

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// What a snapshot can't have seen of its own time isn't known: a frozen row may bear the id of a transaction that is still to come.
func TestSettleKnowsNoFrozenRows(t *testing.T) {
	const epoch = 1 << 32
	for _, c := range []struct {
		snapshot replication.Snapshot
		found    []uint32
		want     []uint32
	}{
		{replication.Snapshot{Xmin: 1000, Xmax: 1010, Xip: []uint64{1000, 1004}}, []uint32{1000, 1001, 1004, 1009, 1010, 5000, 1<<31 + 5, 999}, []uint32{1001, 1009}},
		{replication.Snapshot{Xmin: epoch + 1000, Xmax: epoch + 1010, Xip: []uint64{epoch + 1000}}, []uint32{1000, 1002, 1010, 1 << 30}, []uint32{1002}},
		{replication.Snapshot{Xmin: epoch - 2, Xmax: epoch + 10}, []uint32{1<<32 - 1, 3, 9, 10, 1<<32 - 3}, []uint32{3, 9, 1<<32 - 1}},
	} {
		table := &captured{scan: scan{found: c.found}}
		w := &window{reader: &reader{order: []*captured{table}}, state: state{snapshot: c.snapshot}}
		w.settle()
		if got := slices.Sorted(maps.Keys(table.scan.known)); !slices.Equal(got, c.want) {
			t.Errorf("%v of %v: knows %v, want %v", c.snapshot, c.found, got, c.want)
		}
		table.scan.found = nil
		w.settle()
		if len(table.scan.known) != 0 {
			t.Errorf("still knows %v", table.scan.known)
		}
	}
}

// An id beyond what has been given out is none of a recent transaction.
func TestRecentIsBoundedOnBothSides(t *testing.T) {
	s := pgtest.Shared(t)
	conn := pgtest.Connect(t, s.HerokuOwner(t, s.Database(t)))
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	var xmax int64
	if err := tx.QueryRow(t.Context(), "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").Scan(&xmax); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		since, xmin int64
		want        bool
	}{
		{xmax - 10, xmax - 10, true}, {xmax - 10, xmax - 1, true}, {xmax - 10, xmax, false}, {xmax - 10, xmax - 11, false}, {xmax - 10, xmax + 1<<30, false},
		{xmax - 1<<33, xmax + 5, true}, // beyond their range everything is
	} {
		var got bool
		sql := fmt.Sprintf("SELECT %s FROM (VALUES ('%d'::xid, '(0,1)'::tid)) t(xmin, ctid)", recent("$1"), c.xmin)
		if err := tx.QueryRow(t.Context(), sql, c.since).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != c.want {
			t.Errorf("%d since %d, xmax %d: %v", c.xmin, c.since, xmax, got)
		}
	}
}
