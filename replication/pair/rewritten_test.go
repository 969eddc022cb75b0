package pair

import (
	"errors"
	"slices"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
	"replicator/replication"
)

// ALTER TABLE that computes rows anew is carried by no capture. The pair finds it by the catalog, also when nobody ran while it happened, compares the
// tables, and copies those again that differ, and only those; VACUUM FULL and CLUSTER are none of its business.
func TestRewrittenRows(t *testing.T) { everyCapture(t, rewrittenRows) }

func rewrittenRows(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.watch = 100 * time.Millisecond
	f.start(false)
	f.streaming()
	stored := func(table string) string {
		t.Helper()
		return ask[string](f, f.target, `SELECT storage FROM replicator.copy WHERE table_name = $1`, table)
	}
	copied := func(table string) string {
		t.Helper()
		return ask[string](f, f.target, `SELECT snapshot || state FROM replicator.copy WHERE table_name = $1`, table)
	}
	noticed := func(table, before string) {
		t.Helper()
		f.until("note of where "+table+" is stored now", time.Minute, func(Status) bool { return stored(table) != before })
	}
	tBefore, otherBefore, otherStored := copied("t"), copied("other"), stored("other")

	// The rows move, or are computed to what they were.
	pgtest.Exec(t, f.source, `VACUUM FULL other`)
	noticed("other", otherStored)
	otherStored = stored("other")
	pgtest.Exec(t, f.source, `ALTER TABLE other ALTER v TYPE text USING v || ''`)
	noticed("other", otherStored)
	if now := copied("other"); now != otherBefore {
		t.Errorf("a table that stayed equal was copied again: %s, before %s", now, otherBefore)
	}

	// They change, under load, and go on being written to.
	pgtest.Exec(t, f.source, `BEGIN; UPDATE t SET v = 'before' WHERE id < 10; ALTER TABLE t ALTER v TYPE text USING v || '!'; DELETE FROM t WHERE id = 50; COMMIT`,
		`UPDATE t SET v = v || '?' WHERE id = 1`)
	f.until("the table's new copy", time.Minute, func(s Status) bool { return s.Phase == Streaming && copied("t") != tBefore })
	pgtest.Exec(t, f.source, `UPDATE t SET v = 'after' WHERE id = 2`)
	f.caughtUp()
	f.equal()

	// Nobody ran meanwhile.
	tBefore = copied("t")
	f.stop()
	pgtest.Exec(t, f.source, `ALTER TABLE t ALTER v TYPE text USING upper(v)`)
	f.start(false)
	f.until("the table's new copy", time.Minute, func(s Status) bool { return s.Phase == Streaming && copied("t") != tBefore })
	f.caughtUp()
	f.equal()
	f.until("no problem", time.Minute, func(s Status) bool { return len(s.Problems) == 0 })
	if now := copied("other"); now != otherBefore {
		t.Errorf("a table that wasn't rewritten was copied again: %s, before %s", now, otherBefore)
	}
}

// What was found equal before a freeze isn't taken to be so after a rewrite on either side, and a rewrite within a freeze ends it.
func TestRewriteBeforeAndInAFreeze(t *testing.T) { everyCapture(t, rewriteBeforeAndInAFreeze) }

func rewriteBeforeAndInAFreeze(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema, `CREATE TABLE third (id int PRIMARY KEY, v text)`)
	f.watch = time.Hour // it must not depend on the watch
	f.start(false)
	f.streaming()
	ctx := f.ctx()
	if err := f.pair.Prepare(ctx, false); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.source, `ALTER TABLE t ALTER v TYPE text USING v || '!'`, `VACUUM FULL third`)
	pgtest.Exec(t, f.target, `ALTER TABLE other ALTER v TYPE text USING v || '!'`)
	known, err := f.pair.knownEqual(ctx, false)
	if err != nil || len(known) != 1 || !known[replication.TableName{Schema: "public", Name: "third"}] {
		t.Errorf("known to be equal: %v (%v), want public.third alone", known, err)
	}
	var codes []string
	for _, x := range f.pair.Check(ctx, false) {
		codes = append(codes, x.Code)
	}
	if !slices.Contains(codes, "table-rewritten") {
		t.Errorf("the check says %v", codes)
	}
	freeze := func() error { return f.pair.Freeze(ctx, false, time.Now().Add(20*time.Second)) }
	drain := func() error {
		if err := f.pair.Fence(ctx, false); err != nil {
			return err
		}
		return f.pair.Drain(ctx, false)
	}
	if err := errors.Join(freeze(), drain()); err != nil {
		t.Fatal(err)
	}
	if n, err := f.pair.Verify(ctx, false); err != nil || n != 200 {
		t.Errorf("%d mismatches (%v), want all rows of both tables", n, err)
	}
	if err := errors.Join(f.pair.Thaw(ctx, false), freeze()); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.source, `ALTER TABLE third ALTER v TYPE text USING v || '!'`)
	var h *preflight.Hinted
	if err := drain(); !errors.As(err, &h) || h.Code != "ddl-in-freeze" {
		t.Errorf("a rewrite within the freeze: %v", err)
	}
	if err := f.pair.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
}
