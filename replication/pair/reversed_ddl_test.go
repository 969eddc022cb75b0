package pair

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// migratedSchema is what a migration of the application's alters while the target is the primary side.
const migratedSchema = `
CREATE TABLE log (id bigserial PRIMARY KEY, what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.log (what) VALUES (TG_NAME || ' ' || TG_OP); RETURN NULL; END $$;
CREATE TABLE pointed (id int PRIMARY KEY, u int CONSTRAINT pointed_u UNIQUE);
CREATE TABLE doomed (id int PRIMARY KEY, p int CONSTRAINT doomed_p REFERENCES pointed);
CREATE TRIGGER doomed AFTER INSERT ON doomed FOR EACH ROW EXECUTE FUNCTION note();
CREATE RULE doomed AS ON UPDATE TO doomed DO ALSO INSERT INTO log (what) VALUES ('doomed');
CREATE TABLE parts (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2);
CREATE TRIGGER parts AFTER INSERT ON parts FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE moved (id int PRIMARY KEY, p int CONSTRAINT moved_p REFERENCES pointed ON DELETE CASCADE, v text);
CREATE TRIGGER moved AFTER INSERT OR UPDATE ON moved FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER renamed AFTER INSERT ON moved FOR EACH ROW EXECUTE FUNCTION note();
CREATE RULE moved AS ON DELETE TO moved DO ALSO INSERT INTO log (what) VALUES ('rule moved');
ALTER TABLE moved ENABLE ALWAYS TRIGGER moved;
COMMENT ON CONSTRAINT moved_p ON moved IS 'moves along';
CREATE TABLE points (id int PRIMARY KEY, m int CONSTRAINT points_m REFERENCES moved ON DELETE CASCADE, old int CONSTRAINT points_old REFERENCES pointed,
  d int CONSTRAINT points_d REFERENCES doomed, u int CONSTRAINT points_u REFERENCES pointed (u), dropped int CONSTRAINT points_dropped REFERENCES pointed);
INSERT INTO pointed SELECT i, 10 * i FROM generate_series(1, 20) i;
INSERT INTO doomed SELECT i, i FROM generate_series(1, 20) i;
INSERT INTO parts SELECT i, 1 + i % 2 FROM generate_series(1, 20) i;
INSERT INTO moved SELECT i, i, 'v' FROM generate_series(1, 20) i;
INSERT INTO points SELECT i, i, i, i, 10 * i, i FROM generate_series(1, 20) i;
`

// migration is run on both sides, as the pair asks for it.
var migration = []string{
	`DROP TABLE doomed CASCADE`,
	`DROP TABLE parts_1`,
	`ALTER TABLE moved RENAME TO "Moved on"`,
	`ALTER TABLE "Moved on" RENAME p TO pp`,
	`ALTER TRIGGER renamed ON "Moved on" RENAME TO "Now called"`,
	`ALTER TABLE points DROP COLUMN old`,
	`ALTER TABLE points RENAME m TO mm`,
	`ALTER TABLE points DROP CONSTRAINT IF EXISTS points_dropped`,
}

// migrate brings a pair to the target, has it migrated there and then on the source, and goes on writing.
func (f *fixture) migrate() {
	f.t.Helper()
	f.start(false)
	f.streaming()
	f.attempt(false)
	f.caughtUp()
	pgtest.Exec(f.t, f.target, migration...)
	pgtest.Exec(f.t, f.target, `INSERT INTO pointed VALUES (100, 1000)`)
	pgtest.Exec(f.t, f.source, migration...)
	pgtest.Exec(f.t, f.target, `INSERT INTO "Moved on" VALUES (100, 100, 'new'); INSERT INTO points (id, mm) VALUES (100, 100); UPDATE "Moved on" SET v = 'u' WHERE id < 5; INSERT INTO parts VALUES (100, 2)`)
	f.caughtUp()
	f.equal()
}

// onBothCaptures has the way back captured by a slot and by triggers; the source belongs to an ordinary owner.
func onBothCaptures(t *testing.T, test func(t *testing.T, f *fixture)) {
	for _, back := range []string{Logical, Trigger} {
		t.Run(back+" back", func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.capture = Trigger
			s := pgtest.Shared(t)
			f.source = s.HerokuOwner(t, f.source)
			if back == Logical {
				f.target = s.LogicalOwner(t, f.target)
			} else {
				f.target = s.RDSMaster(t, f.target)
			}
			test(t, f)
		})
	}
}

// A migration that is run on both sides while the target is the primary one doesn't stand in the way of a rollback, and what it has left comes back.
func TestRollbackAfterMigrations(t *testing.T) { onBothCaptures(t, rollbackAfterMigrations) }

func rollbackAfterMigrations(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, migratedSchema)
	f.migrate()
	want := ask[string](f, f.target, actingNow)
	f.attempt(true)
	if now := ask[string](f, f.source, actingNow); now != want {
		t.Errorf("the source has\n%s\nthe target had\n%s", now, want)
	}
	for _, p := range f.pair.Status().Problems {
		if p.Code == "foreign-key-missing" {
			t.Errorf("what the migration has dropped is missed: %s", p.Message)
		}
	}
	f.until("the renamed table follows", 40*time.Second, func(s Status) bool {
		return s.Phase == Streaming && ask[bool](f, f.target, `SELECT EXISTS (SELECT FROM replicator.copy WHERE table_name = 'Moved on' AND state = 'copied')`)
	})
	pgtest.Exec(t, f.source, `INSERT INTO "Moved on" VALUES (200, 100, 'back'); DELETE FROM pointed WHERE id = 100; INSERT INTO parts VALUES (200, 2)`)
	f.caughtUp()
	f.equal()
	if err := f.pair.Finish(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if now := ask[string](f, f.source, actingNow); now != want {
		t.Errorf("after finish the source has\n%s\nwant\n%s", now, want)
	}
}

// Nor does it in that of finish, be it the daemon's or the one for a pair whose daemon is gone.
func TestFinishAfterMigrations(t *testing.T) {
	for _, orphaned := range []bool{false, true} {
		t.Run(fmt.Sprintf("orphaned %v", orphaned), func(t *testing.T) {
			t.Parallel()
			f := newOrdinaryFixture(t)
			pgtest.Exec(t, f.source, migratedSchema)
			f.migrate()
			want := ask[string](f, f.target, actingNow)
			finish := f.pair.Finish
			if orphaned {
				f.stop()
				finish = New(Options{Migration: f.migration, Name: "main", SourceURL: f.source, TargetURL: f.target, Epoch: f.epoch + 1}).Uninstall
			}
			if err := finish(f.ctx()); err != nil {
				t.Fatal(err)
			}
			if now := ask[string](f, f.source, actingNow); now != want {
				t.Errorf("the source has\n%s\nthe target has\n%s", now, want)
			}
			if after := pgtest.DumpSchema(t, f.source); strings.Contains(after, "replicator") {
				t.Errorf("something of ours is left on the source:\n%s", after)
			}
		})
	}
}

// A foreign key that can't come back, since what it rests on is gone from the source alone, is named with its statement until it is there again.
func TestForeignKeyThatCannotComeBack(t *testing.T) {
	f := newOrdinaryFixture(t)
	pgtest.Exec(t, f.source, migratedSchema)
	f.start(false)
	f.streaming()
	f.attempt(false)
	f.caughtUp()
	pgtest.Exec(t, f.source, `ALTER TABLE pointed DROP CONSTRAINT pointed_u`)
	ctx := f.ctx()
	// The check before a rollback would ask for the unique constraint: here, it goes at the last moment.
	deadline := time.Now().Add(25 * time.Second)
	for _, phase := range f.phases(ctx, true, deadline) {
		if err := phase(); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []func() error{
		func() error { return f.pair.Seal(ctx, true) }, func() error { return f.pair.Open(ctx, true) }, func() error { return f.pair.Retire(ctx, true) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	const statement = `ALTER TABLE "public"."points" ADD CONSTRAINT "points_u" FOREIGN KEY (u) REFERENCES public.pointed(u)`
	named := func(s Status) bool {
		for _, p := range s.Problems {
			if p.Code == "foreign-key-missing" && p.Side == "source" && strings.Contains(p.Message, "points_u") && strings.HasSuffix(p.Hint, statement) {
				return true
			}
		}
		return false
	}
	f.until("the foreign key is named with its statement", 10*time.Second, named)
	// A successor names it too.
	f.stop()
	f.start(false)
	f.streaming()
	f.until("the successor names it", 20*time.Second, named)
	if n := ask[int](f, f.source, `SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'points'::regclass`); n != 4 {
		t.Errorf("%d foreign keys of the table are there, want the other 4", n)
	}
	pgtest.Exec(t, f.source, `ALTER TABLE pointed ADD CONSTRAINT pointed_u UNIQUE (u)`, statement)
	f.until("it is back", 20*time.Second, func(s Status) bool { return len(s.Problems) == 0 })
	if n := ask[int](f, f.target, `SELECT count(*) FROM replicator.undo WHERE what = 'foreign key'`); n != 0 {
		t.Errorf("%d notes are left", n)
	}
}

// What an earlier version of the program has put aside, and noted by names alone, comes back too.
func TestNotesOfAnEarlierVersion(t *testing.T) {
	f := newOrdinaryFixture(t)
	pgtest.Exec(t, f.source, variedSchema)
	before := pgtest.DumpSchema(t, f.source)
	f.start(false)
	f.streaming()
	f.attempt(false)
	f.stop()
	pgtest.Exec(t, f.target, `UPDATE replicator.undo SET name = regexp_replace(name, '#[0-9]+$', ''), previous = (previous::jsonb - '{oid,references,columns,referenced,tail,comment,elsewhere}'::text[])::text
		WHERE what IN ('trigger', 'foreign key')`)
	f.start(true)
	f.until("reversed", 20*time.Second, func(s Status) bool { return s.Phase == Reversed && s.LagSeconds != nil })
	f.attempt(true)
	if n := ask[int](f, f.target, `SELECT count(*) FROM replicator.undo WHERE side = 'source' AND what <> 'replica identity'`); n != 0 {
		t.Errorf("%d notes are left", n)
	}
	if err := f.pair.Finish(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if after := pgtest.DumpSchema(t, f.source); after != before {
		t.Errorf("the source's schema is not what it was: %s", firstDifference(before, after))
	}
}
