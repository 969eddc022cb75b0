package pair

import (
	"slices"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
)

// silentFixture is a pair with trigger capture that looks often.
func silentFixture(t *testing.T) *fixture {
	f := newFixture(t)
	f.capture, f.watch = Trigger, 200*time.Millisecond
	s := pgtest.Shared(t)
	f.source, f.target = s.HerokuOwner(t, f.source), s.RDSMaster(t, f.target)
	pgtest.Exec(t, f.source, smallSchema)
	return f
}

const (
	renamed     = `ALTER TABLE t RENAME id TO ident`
	writesAsNew = `INSERT INTO t (ident, v) VALUES (1000, 'renamed'); UPDATE t SET v = 'renamed' WHERE ident = 2; DELETE FROM t WHERE ident = 3`
	few         = 10 * time.Second // looks, on a busy machine
)

// In the reversed phase nothing can be copied again: the application's writes go on all the same, and the way back is lost.
func TestWritesGoOnInTheReversedPhase(t *testing.T) {
	t.Parallel()
	f := silentFixture(t)
	f.start(false)
	f.streaming()
	f.attempt(false)
	f.until("the way back", 20*time.Second, func(s Status) bool { return s.Phase == Reversed && len(s.Problems) == 0 })
	pgtest.Exec(t, f.target, renamed)
	f.writes(f.target, writesAsNew, few)
	f.problem("way-back-lost")
	if hint := f.hints(); !strings.Contains(hint, "finish") {
		t.Errorf("the hint doesn't say what is left to do: %s", hint)
	}
	refused := func() bool {
		return slices.ContainsFunc(f.pair.Check(f.ctx(), true), func(x preflight.Finding) bool {
			return x.Code == "way-back-lost" && x.Severity == preflight.Error && strings.Contains(x.Message, "public.t")
		})
	}
	if !refused() {
		t.Error("the check lets a rollback begin")
	}
	// Not even the former name brings back what wasn't logged, nor does another process.
	pgtest.Exec(t, f.target, `ALTER TABLE t RENAME ident TO id; UPDATE t SET v = 'former name' WHERE id = 4`)
	f.stop()
	f.start(true)
	f.problem("way-back-lost")
	if !refused() {
		t.Error("the check lets a rollback begin after the column has its former name")
	}
	if err := f.pair.Finish(f.ctx()); err != nil {
		t.Error(err)
	}
}

// A pause keeps nobody from writing.
func TestWritesGoOnInAPause(t *testing.T) {
	t.Parallel()
	f := silentFixture(t)
	f.start(false)
	f.streaming()
	if err := f.pair.Pause(f.ctx()); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.source, renamed)
	f.writes(f.source, writesAsNew, few)
	if err := f.pair.Resume(f.ctx()); err != nil {
		t.Fatal(err)
	}
	f.problem("schema-drift")
	pgtest.Exec(t, f.target, renamed)
	f.settled()
}

// Nor does a target that can't be reached.
func TestWritesGoOnWithoutTheTarget(t *testing.T) {
	t.Parallel()
	f := silentFixture(t)
	there := pgtest.Start(t, pgtest.Options{})
	f.target = there.RDSMaster(t, there.Database(t))
	f.start(false)
	f.streaming()
	if err := there.Stop(f.ctx()); err != nil {
		t.Fatal(err)
	}
	f.until("a problem", 20*time.Second, func(s Status) bool { return len(s.Problems) > 0 })
	pgtest.Exec(t, f.source, renamed)
	f.writes(f.source, writesAsNew, few)
	if err := there.Start(f.ctx()); err != nil {
		t.Fatal(err)
	}
	f.problem("schema-drift")
	pgtest.Exec(t, f.target, renamed)
	f.settled()
}

// During the first copy, which may take hours, the same; and a column that gets its former name back doesn't hide what wasn't logged.
func TestWritesGoOnDuringTheCopy(t *testing.T) {
	t.Parallel()
	f := silentFixture(t)
	old := pgtest.Connect(t, f.source)
	if _, err := old.Exec(f.ctx(), `BEGIN; SELECT pg_current_xact_id()`); err != nil {
		t.Fatal(err)
	}
	f.start(false)
	f.until("the copy waits", 40*time.Second, func(s Status) bool { return strings.Contains(s.Waiting, "began before the capture") })
	pgtest.Exec(t, f.source, renamed)
	f.writes(f.source, writesAsNew, few)
	pgtest.Exec(t, f.source, `ALTER TABLE t RENAME ident TO id; INSERT INTO t VALUES (2000, 'former name')`)
	if _, err := old.Exec(f.ctx(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	f.streaming()
	pgtest.Exec(t, f.source, `UPDATE t SET v = 'later' WHERE id > 90`)
	f.settled()
}
