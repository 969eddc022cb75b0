package pair

import (
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/replication"
	"replicator/replication/schema"
)

// logSize is what the change log of a table takes, without what is never freed.
func (f *fixture) logSize(oid uint32) int64 {
	f.t.Helper()
	return ask[int64](f, f.source, `SELECT coalesce(sum(pg_relation_size(oid)), 0)::bigint FROM pg_class WHERE relnamespace = 'replicator'::regnamespace AND relname ~ ('^capture_' || $1::oid || '_[01]$')`, oid)
}

// A problem is shown while the source retains more than is wished.
func TestRetainedWarningIsShown(t *testing.T) { everyCapture(t, retainedWarningIsShown) }

func retainedWarningIsShown(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.guard = [2]int64{64 << 10, 0}
	f.start(false)
	f.streaming()
	if err := f.pair.Pause(f.ctx()); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.source, "INSERT INTO t SELECT i, 'v' FROM generate_series(1000, 9000) i")
	f.problem("retained-wal")
	f.until("its size", 10*time.Second, func(s Status) bool { return s.RetainedBytes != nil && *s.RetainedBytes > 64<<10 })
	if err := f.pair.Resume(f.ctx()); err != nil {
		t.Fatal(err)
	}
	f.caughtUp()
	f.equal()
}

// Above the limit the source gets its disk back within seconds, though a table is busy; no write fails; the pair stops and copies nothing by itself, until it
// is told to.
func TestTheGuardFreesTheSourcesDisk(t *testing.T) {
	f := newFixture(t)
	f.capture = Trigger
	s := pgtest.Shared(t)
	f.source, f.target = s.HerokuOwner(t, f.source), s.RDSMaster(t, f.target)
	pgtest.Exec(t, f.source, smallSchema)
	f.guard = [2]int64{0, 1 << 20}
	f.start(false)
	f.streaming()
	f.caughtUp()
	commit := f.openTransaction() // holds t ROW EXCLUSIVE
	if err := f.pair.Pause(f.ctx()); err != nil {
		t.Fatal(err)
	}
	oids := [2]uint32{ask[uint32](f, f.source, "SELECT 'public.t'::regclass::oid"), ask[uint32](f, f.source, "SELECT 'public.other'::regclass::oid")}
	pgtest.Exec(t, f.source, "INSERT INTO other SELECT i, 'v' FROM generate_series(1000, 40000) i")
	began := time.Now()
	f.until("room on the disk", 20*time.Second, func(Status) bool { return f.logSize(oids[1]) == 0 })
	t.Logf("the disk was free after %v", time.Since(began))
	pgtest.Exec(t, f.source, "SET statement_timeout = '3s'; UPDATE other SET v = 'unlogged' WHERE id < 50; UPDATE t SET v = 'unlogged' WHERE id BETWEEN 50 AND 60")
	if n := f.logSize(oids[1]); n != 0 {
		t.Errorf("%d bytes were logged afterwards", n)
	}
	if err := f.pair.Resume(f.ctx()); err != nil {
		t.Fatal(err)
	}
	f.problem("capture-lost")
	if hint := f.hints(); !strings.Contains(hint, "replicator resync") {
		t.Errorf("the remedy isn't named: %s", hint)
	}
	if err := commit(); err != nil {
		t.Errorf("the open transaction fails: %v", err)
	}
	f.until("the rest of the disk", 20*time.Second, func(Status) bool { return f.logSize(oids[0]) == 0 })
	// It stays stopped, over several attempts: nothing is made anew or copied by itself, not even if one table is named.
	if err := f.pair.Resync(f.ctx(), []replication.TableName{{Schema: "public", Name: "t"}}); err != nil {
		t.Fatal(err)
	}
	f.problem("capture-lost")
	f.stop()
	f.start(false)
	f.problem("capture-lost")
	if n := ask[int](f, f.target, "SELECT count(*) FROM public.other WHERE v = 'unlogged'"); n != 0 {
		t.Errorf("%d rows were copied", n)
	}
	if err := f.pair.Resync(f.ctx(), nil); err != nil {
		t.Fatal(err)
	}
	f.until("streaming without a problem", time.Minute, func(s Status) bool { return s.Phase == Streaming && len(s.Problems) == 0 })
	pgtest.Exec(t, f.source, "UPDATE t SET v = 'logged again'")
	f.caughtUp()
	f.equal()
}

// A table that is excluded from now on, or that was dropped on both sides, leaves nothing on the source, and the other tables go on; the way back and its
// capture of the target's tables are left alone.
func TestExcludedTablesAreRetired(t *testing.T) {
	f := newFixture(t)
	f.capture = Trigger
	s := pgtest.Shared(t)
	f.source, f.target = s.HerokuOwner(t, f.source), s.RDSMaster(t, f.target)
	pgtest.Exec(t, f.source, smallSchema+"CREATE TABLE gone (id int PRIMARY KEY)")
	f.start(false)
	f.streaming()
	captured := func(url string) int {
		return ask[int](f, url, `SELECT (SELECT count(*) FROM pg_proc WHERE pronamespace = 'replicator'::regnamespace AND proname ~ '^capture_[0-9]+$') +
			(SELECT count(*) FROM pg_class WHERE relnamespace = 'replicator'::regnamespace AND relkind = 'r' AND relname ~ '^capture_[0-9]+_[01]$') + (SELECT count(*) FROM pg_trigger WHERE tgname ~ '^replicator_capture')`)
	}
	if n := captured(f.source); n != 3*5 {
		t.Fatalf("%d objects of three tables", n)
	}
	pgtest.Exec(t, f.source, "DROP TABLE gone")
	pgtest.Exec(t, f.target, "DROP TABLE gone")
	f.until("end of what the dropped table left", 30*time.Second, func(Status) bool { return captured(f.source) == 2*5 })
	f.stop()
	f.filter = schema.Filter{Exclude: []string{"public.other"}}
	commit := f.openTransaction()
	f.start(false)
	f.streaming()
	f.until("end of the excluded table's log", 30*time.Second, func(Status) bool { return captured(f.source) == 5 })
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.source, "UPDATE other SET v = 'not ours'; UPDATE t SET v = 'ours' WHERE id < 9")
	f.caughtUp()
	f.equal()
	if err := f.pair.Prepare(f.ctx(), false); err != nil {
		t.Fatal(err)
	}
	if n := captured(f.source); n != 5 {
		t.Errorf("%d objects on the source", n)
	}
}

// Who holds a table exclusively keeps changes of no other from arriving, nor a stream from beginning.
func TestALockedTableHoldsUpNoStream(t *testing.T) {
	f := newFixture(t)
	f.capture = Trigger
	s := pgtest.Shared(t)
	f.source, f.target = s.HerokuOwner(t, f.source), s.RDSMaster(t, f.target)
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	f.caughtUp()
	f.stop()
	conn := pgtest.Connect(t, f.source)
	if _, err := conn.Exec(f.ctx(), "BEGIN; LOCK TABLE other IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	f.start(false)
	pgtest.Exec(t, f.source, "UPDATE t SET v = 'arrives'")
	f.until("the change", 20*time.Second, func(Status) bool {
		return ask[int](f, f.target, "SELECT count(*) FROM public.t WHERE v = 'arrives'") == 100
	})
	f.streaming()
	if _, err := conn.Exec(f.ctx(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	f.caughtUp()
	f.equal()
}
