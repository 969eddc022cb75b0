package pair

import (
	"context"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// The main road: everything that a source may hold moves while it is written to, stays equal, is switched, comes back, and leaves
// no trace.
func TestMoveSwitchAndReturn(t *testing.T) { everyCapture(t, moveSwitchAndReturn) }

func moveSwitchAndReturn(t *testing.T, f *fixture) {
	s := pgtest.Seed(t)
	pgtest.Exec(t, f.source, variedSchema)
	before := pgtest.DumpSchema(t, f.source)
	stop := writers(t, f.source, s, 4)
	f.start(false)
	f.streaming()
	f.equal()
	copies := func() string {
		return ask[string](f, f.target, "SELECT string_agg(table_name || ' ' || state || ' ' || snapshot, ', ' ORDER BY table_name) FROM replicator.copy")
	}
	copied := copies()
	for _, reverse := range []bool{false, true} {
		f.attempt(reverse)
		stop()
		writing := f.target
		if reverse {
			writing = f.source
		}
		stop = writers(t, writing, s+10, 4)
		f.until("lag known", 10*time.Second, func(s Status) bool { return s.LagSeconds != nil })
		f.equal()
	}
	if n := stop(); n == 0 {
		t.Error("the writers committed nothing after the return")
	}
	if now := copies(); now != copied {
		t.Errorf("tables were copied again after the return: %s, before %s", now, copied)
	}
	f.equal()
	if err := f.pair.Finish(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if after := pgtest.DumpSchema(t, f.source); after != before {
		t.Errorf("the source's schema is not what it was:\n%s", after)
	}
}

// attempt goes through the phases as the coordinator does.
func (f *fixture) attempt(reverse bool) {
	f.t.Helper()
	ctx := f.ctx()
	deadline := time.Now().Add(20 * time.Second)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"prepare", func() error { return f.pair.Prepare(ctx, reverse) }},
		{"freeze", func() error { return f.pair.Freeze(ctx, reverse, deadline) }},
		{"renew", func() error { return f.pair.Renew(ctx, reverse, deadline) }},
		{"fence", func() error { return f.pair.Fence(ctx, reverse) }},
		{"drain", func() error { return f.pair.Drain(ctx, reverse) }},
		{"sequences", func() error { return f.pair.Sequences(ctx, reverse) }},
		{"verify", func() error {
			n, err := f.pair.Verify(ctx, reverse)
			if n != 0 {
				f.t.Errorf("%d mismatches at the freeze", n)
			}
			return err
		}},
		{"arm", func() error { return f.pair.Arm(ctx, reverse) }},
		{"seal", func() error { return f.pair.Seal(ctx, reverse) }},
		{"open", func() error { return f.pair.Open(ctx, reverse) }},
		{"retire", func() error { return f.pair.Retire(ctx, reverse) }},
	} {
		began := time.Now()
		if err := step.do(); err != nil {
			f.t.Fatalf("%s (reverse %v): %v", step.name, reverse, err)
		}
		f.t.Logf("%s took %v", step.name, time.Since(began).Round(time.Millisecond))
	}
}

// What was compared before the freeze is compared again in it if the stream has touched it since, and only then.
func TestFreezeComparesWhatChanged(t *testing.T) { everyCapture(t, freezeComparesWhatChanged) }

func freezeComparesWhatChanged(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	ctx := f.ctx()
	if err := f.pair.Prepare(ctx, false); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.source, "UPDATE t SET v = 'changed' WHERE id = 1")
	f.caughtUp()
	known, err := f.pair.knownEqual(ctx, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(known) != 1 || !known[replication.TableName{Schema: "public", Name: "other"}] {
		t.Fatalf("known to be equal: %v, want public.other alone", known)
	}
	pgtest.Exec(t, f.target, "SET session_replication_role = replica; UPDATE t SET v = 'stray' WHERE id = 2")
	if err := f.pair.Freeze(ctx, false, time.Now().Add(20*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func(context.Context, bool) error{f.pair.Fence, f.pair.Drain} {
		if err := step(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := f.pair.Verify(ctx, false); err != nil || n != 1 {
		t.Errorf("%d mismatches (%v), want the stray row", n, err)
	}
	if err := f.pair.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.source, "INSERT INTO t VALUES (500, 'thawed')")
	f.caughtUp()
}

// A pair whose daemon is gone for good leaves no trace on the source either, whatever direction it ended in.
func TestUninstallLeavesNoTrace(t *testing.T) { everyCapture(t, uninstallLeavesNoTrace) }

func uninstallLeavesNoTrace(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, variedSchema)
	before := pgtest.DumpSchema(t, f.source)
	f.start(false)
	f.streaming()
	f.attempt(false)
	f.stop()
	orphan := New(Options{Migration: f.migration, Name: "main", SourceURL: f.source, TargetURL: f.target, Epoch: f.epoch + 1})
	if err := orphan.Uninstall(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if after := pgtest.DumpSchema(t, f.source); after != before {
		t.Errorf("the source's schema is not what it was:\n%s", after)
	}
	if after := pgtest.DumpSchema(t, f.target); strings.Contains(after, "replicator") {
		t.Errorf("something of ours is left on the target:\n%s", after)
	}
}

// A source that may still open by itself keeps its triggers and foreign keys, whatever its role: when the daemon dies before the switch, the
// application must find everything as it was.
func TestUnsealedSideKeepsItsTriggers(t *testing.T) {
	f := newFixture(t)
	f.capture = Trigger
	srv := pgtest.Shared(t)
	f.source, f.target = srv.HerokuOwner(t, f.source), srv.RDSMaster(t, f.target)
	pgtest.Exec(t, f.source, variedSchema)
	f.start(false)
	f.streaming()
	ctx := f.ctx()
	if err := f.pair.Prepare(ctx, false); err != nil {
		t.Fatal(err)
	}
	if err := f.pair.Freeze(ctx, false, time.Now().Add(20*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, step := range []func(context.Context, bool) error{f.pair.Fence, f.pair.Drain, f.pair.Sequences, f.pair.Arm} {
		if err := step(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	acting := func() (n int) {
		t.Helper()
		const sql = `SELECT (SELECT count(*) FROM pg_trigger WHERE tgname = 'touch' AND tgenabled = 'O') + (SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conname LIKE 'child%')`
		if err := pgtest.Connect(t, f.source).QueryRow(ctx, sql).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := acting(); n != 2 {
		t.Errorf("armed, but not sealed: %d of the trigger and the foreign key act, want both", n)
	}
	if err := f.pair.Seal(ctx, false); err != nil {
		t.Fatal(err)
	}
	if n := acting(); n != 0 {
		t.Errorf("sealed: %d of the trigger and the foreign key act, want none", n)
	}
	if err := f.pair.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
	if n := acting(); n != 2 {
		t.Errorf("thawed: %d of the trigger and the foreign key act, want both", n)
	}
}
