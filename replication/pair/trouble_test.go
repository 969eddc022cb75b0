package pair

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/state"
)

const smallSchema = `
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE other (id int PRIMARY KEY, v text);
INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
INSERT INTO other SELECT i, 'v' FROM generate_series(1, 100) i;
`

func (f *fixture) problem(code string) {
	f.t.Helper()
	f.until("problem "+code, 20*time.Second, func(s Status) bool {
		for _, p := range s.Problems {
			if p.Code == code && p.Hint != "" {
				return true
			}
		}
		return false
	})
}

func (f *fixture) caughtUp() {
	f.t.Helper()
	if err := f.pair.CaughtUp(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
}

// A change of the source's schema halts the pair before anything is applied wrongly, names the statement, and goes on when it was run.
func TestSchemaDriftHaltsAndGoesOn(t *testing.T) { everyCapture(t, schemaDriftHaltsAndGoesOn) }

func schemaDriftHaltsAndGoesOn(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	pgtest.Exec(t, f.source, "ALTER TABLE t ADD COLUMN added int NOT NULL DEFAULT 7", "INSERT INTO t VALUES (101, 'w', 8); UPDATE other SET v = 'after' WHERE id = 1")
	f.problem("schema-drift")
	if hint := f.hints(); !strings.Contains(hint, "ADD COLUMN") || !strings.Contains(hint, "DEFAULT 7") || !strings.Contains(hint, "NOT NULL") {
		t.Fatalf("the hint doesn't hold the statement: %s", hint)
	}
	pgtest.Exec(t, f.target, "ALTER TABLE t ADD COLUMN added int NOT NULL DEFAULT 7")
	f.caughtUp()
	f.equal()
	f.until("no problem", 10*time.Second, func(s Status) bool { return len(s.Problems) == 0 })
}

// An UPDATE that finds no row stops the pair, names the row, and a resync of the table heals it.
func TestMissingRowStopsAndResyncHeals(t *testing.T) { everyCapture(t, missingRowStopsAndResyncHeals) }

func missingRowStopsAndResyncHeals(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	pgtest.Exec(t, f.target, "SET session_replication_role = replica; DELETE FROM t WHERE id = 5")
	pgtest.Exec(t, f.source, "UPDATE t SET v = 'x' WHERE id BETWEEN 1 AND 10")
	f.problem("row-mismatch")
	message := ""
	for _, p := range f.pair.Status().Problems {
		message += p.Message
	}
	if !strings.Contains(message, "public.t where id = '5'") {
		t.Errorf("the problem doesn't name the row: %s", message)
	}
	if err := f.pair.Resync(f.ctx(), []replication.TableName{{Schema: "public", Name: "t"}}); err != nil {
		t.Fatal(err)
	}
	f.caughtUp()
	f.equal()
}

// A change on the target that nobody has streamed is found, row by row.
func TestVerifyFindsStrayChanges(t *testing.T) { everyCapture(t, verifyFindsStrayChanges) }

func verifyFindsStrayChanges(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	pgtest.Exec(t, f.target, "SET session_replication_role = replica; DELETE FROM t WHERE id = 5; UPDATE other SET v = 'stray' WHERE id = 6; INSERT INTO other VALUES (999, 'extra')")
	report, err := f.pair.VerifyNow(f.ctx(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if report.Mismatches != 3 {
		t.Errorf("%d mismatches, want 3: %+v", report.Mismatches, report)
	}
}

// Between the first copy and the switch the target refuses the application's writes.
func TestTargetRefusesTheApplication(t *testing.T) { everyCapture(t, targetRefusesTheApplication) }

func targetRefusesTheApplication(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	_, err := pgtest.Connect(t, f.target).Exec(f.ctx(), "INSERT INTO t VALUES (1000, 'stray')")
	if err == nil || !strings.Contains(err.Error(), "25006") {
		t.Errorf("the target took a write: %v", err)
	}
}

// A table that is made while the pair runs is named, joins once the target has it, and misses nothing.
func TestLateTableJoins(t *testing.T) { everyCapture(t, lateTableJoins) }

func lateTableJoins(t *testing.T, f *fixture) {
	s := pgtest.Seed(t)
	pgtest.Exec(t, f.source, variedSchema)
	f.start(false)
	f.streaming()
	total := f.pair.Status().TablesTotal
	stop := writers(t, f.source, s, 2)
	const late = "CREATE TABLE late (id bigserial PRIMARY KEY, v text)"
	pgtest.Exec(t, f.source, late, "INSERT INTO late (v) SELECT 'l' FROM generate_series(1, 1000)")
	f.problem("table-missing")
	pgtest.Exec(t, f.target, late)
	f.until("the late table", 40*time.Second, func(s Status) bool {
		return s.TablesTotal == total+1 && s.TablesCopied == total+1 && s.Phase == Streaming
	})
	pgtest.Exec(t, f.source, "UPDATE late SET v = 'm' WHERE id < 10")
	stop()
	f.caughtUp()
	f.equal()
}

// A process that dies at any point of the set-up is followed by one that goes on, whose sessions are the only ones left.
func TestSuccessorGoesOn(t *testing.T) { everyCapture(t, successorGoesOn) }

func successorGoesOn(t *testing.T, f *fixture) {
	s := pgtest.Seed(t)
	pgtest.Exec(t, f.source, variedSchema)
	stop := writers(t, f.source, s, 2)
	for _, stage := range []Phase{Starting, Copying, Indexing, Streaming} {
		f.start(false)
		f.until("phase "+string(stage), time.Minute, func(s Status) bool { return s.Phase == stage || s.Phase == Streaming })
		f.stop()
	}
	f.start(false)
	f.streaming()
	stop()
	f.caughtUp()
	f.equal()
}

// depose claims the pair for a successor that doesn't exist.
func (f *fixture) depose() {
	f.t.Helper()
	pool, err := postgres.Pool(f.ctx(), f.target, postgres.Identity{Migration: f.migration}, "test", 1)
	if err != nil {
		f.t.Fatal(err)
	}
	defer pool.Close()
	if err := state.Claim(f.ctx(), pool, postgres.Identity{Migration: f.migration, Pair: "main", Epoch: f.epoch + 1}); err != nil {
		f.t.Fatal(err)
	}
}

// A deposed process commits nothing more, even if it doesn't know: its Run ends by itself.
func TestDeposedProcessEnds(t *testing.T) { everyCapture(t, deposedProcessEnds) }

func deposedProcessEnds(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	f.depose()
	pgtest.Exec(t, f.source, "INSERT INTO t VALUES (2000, 'after the claim')")
	select {
	case err := <-f.done:
		if !errors.Is(err, replication.ErrDeposed) {
			t.Fatalf("Run returned %v", err)
		}
		f.done <- context.Canceled // for the fixture's own end
	case <-time.After(20 * time.Second):
		t.Fatal("the deposed process goes on")
	}
	if n := ask[int](f, f.target, "SELECT count(*) FROM public.t WHERE id = 2000"); n != 0 {
		t.Errorf("%d rows were applied after the claim", n)
	}
}

// A deposed process can't open a gate that its successor relies on.
func TestDeposedProcessMovesNoGate(t *testing.T) { everyCapture(t, deposedProcessMovesNoGate) }

func deposedProcessMovesNoGate(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	f.depose()
	if err := f.pair.Open(f.ctx(), false); !errors.Is(err, replication.ErrDeposed) {
		t.Errorf("Open returned %v", err)
	}
	if _, err := pgtest.Connect(t, f.target).Exec(f.ctx(), "INSERT INTO public.t VALUES (1000, 'stray')"); err == nil {
		t.Error("a deposed process opened the target")
	}
	f.done <- <-f.done // it ends by itself, deposed
	f.deposed = true
}

// A pair that begins paused knows how far behind it is, though not since when.
func TestPausedFromTheStart(t *testing.T) {
	f := newFixture(t)
	f.capture = Logical
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	f.stop()
	pgtest.Exec(t, f.source, "UPDATE t SET v = 'meanwhile'")
	f.paused = true
	f.start(false)
	f.until("its distance", 20*time.Second, func(s Status) bool { return s.Phase == Stopped && s.LagBytes != nil && *s.LagBytes > 0 })
	if s := f.pair.Status(); s.LagSeconds != nil {
		t.Errorf("it says that it is %v s behind, which it can't know", *s.LagSeconds)
	}
	if err := f.pair.Resume(f.ctx()); err != nil {
		t.Fatal(err)
	}
	f.streaming()
	f.caughtUp()
	f.until("its lag", 20*time.Second, func(s Status) bool { return s.LagSeconds != nil })
	f.equal()
}
