package pair

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// actingSchema has whatever could act on rows that are applied, in every state in which it may be.
const actingSchema = `
CREATE TABLE log (id bigserial PRIMARY KEY, what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.log (what) VALUES (TG_NAME || ' ' || TG_OP); RETURN NULL; END $$;
CREATE TABLE acts (id int PRIMARY KEY, v text);
CREATE TRIGGER ordinary AFTER INSERT OR UPDATE OR DELETE ON acts FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER always AFTER INSERT ON acts FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER replica AFTER INSERT ON acts FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER off AFTER INSERT ON acts FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER statement AFTER INSERT OR DELETE ON acts FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE TRIGGER "An ""odd"" one" AFTER INSERT ON acts FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER replicator_of_theirs AFTER INSERT ON acts FOR EACH ROW EXECUTE FUNCTION note();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON acts DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
ALTER TABLE acts ENABLE ALWAYS TRIGGER always, ENABLE REPLICA TRIGGER replica, DISABLE TRIGGER off;
COMMENT ON TRIGGER always ON acts IS 'fires always';
CREATE TABLE ruled (id int PRIMARY KEY, kept bool, v text);
CREATE RULE also AS ON INSERT TO ruled DO ALSO INSERT INTO log (what) VALUES ('also ' || NEW.id);
CREATE RULE "Always also" AS ON UPDATE TO ruled DO ALSO INSERT INTO log (what) VALUES ('always also ' || NEW.id);
CREATE RULE replica_also AS ON INSERT TO ruled DO ALSO INSERT INTO log (what) VALUES ('replica also ' || NEW.id);
CREATE RULE never AS ON INSERT TO ruled DO ALSO INSERT INTO log (what) VALUES ('never ' || NEW.id);
CREATE RULE keep AS ON DELETE TO ruled WHERE OLD.kept DO INSTEAD NOTHING;
ALTER TABLE ruled ENABLE ALWAYS RULE "Always also";
ALTER TABLE ruled ENABLE REPLICA RULE replica_also;
ALTER TABLE ruled DISABLE RULE never;
CREATE TABLE refd (id int PRIMARY KEY, u int UNIQUE);
CREATE TABLE refs (id int PRIMARY KEY, a int, b int, self int, loose int);
INSERT INTO refs (id, loose) VALUES (1000, 12345);
ALTER TABLE refs ADD CONSTRAINT "An ""odd"" key" FOREIGN KEY (a) REFERENCES refd ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE refs ADD CONSTRAINT deferred FOREIGN KEY (b) REFERENCES refd (u) DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE refs ADD CONSTRAINT itself FOREIGN KEY (self) REFERENCES refs ON DELETE SET NULL;
ALTER TABLE refs ADD CONSTRAINT unchecked FOREIGN KEY (loose) REFERENCES refd NOT VALID;
COMMENT ON CONSTRAINT "An ""odd"" key" ON refs IS 'it''s said';
COMMENT ON CONSTRAINT unchecked ON refs IS 'never checked';
CREATE TABLE proot (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE proot_1 PARTITION OF proot FOR VALUES IN (1);
CREATE TABLE proot_2 PARTITION OF proot FOR VALUES IN (2);
CREATE TABLE croot (id int, k int, pid int, pk int, PRIMARY KEY (id, k), CONSTRAINT above FOREIGN KEY (pid, pk) REFERENCES proot ON DELETE CASCADE) PARTITION BY LIST (k);
CREATE TABLE croot_1 PARTITION OF croot FOR VALUES IN (1);
CREATE TABLE croot_2 PARTITION OF croot FOR VALUES IN (2);
COMMENT ON CONSTRAINT above ON croot IS 'between partitioned tables';
INSERT INTO refd SELECT i, 10 * i FROM generate_series(1, 20) i;
INSERT INTO refs SELECT i, i, 10 * i, i, NULL FROM generate_series(1, 20) i;
INSERT INTO proot SELECT i, 1 + i % 2 FROM generate_series(1, 20) i;
INSERT INTO croot SELECT i, 1 + i % 2, i, 1 + i % 2 FROM generate_series(1, 20) i;
INSERT INTO acts SELECT i, 'v' FROM generate_series(1, 20) i;
INSERT INTO ruled SELECT i, i % 2 = 0, 'v' FROM generate_series(1, 20) i;
`

// act makes everything in the acting schema act; each round touches rows of its own.
func act(round int) []string {
	n := func(sql string) string { return strings.ReplaceAll(sql, "$n", fmt.Sprint(round)) }
	return []string{
		n(`INSERT INTO acts VALUES (100 + $n, 'new'); UPDATE acts SET v = 'u$n' WHERE id <= 3; DELETE FROM acts WHERE id = 10 + $n`),
		n(`INSERT INTO ruled VALUES (100 + $n, true, 'new'); UPDATE ruled SET v = 'u$n' WHERE id <= 4; DELETE FROM ruled WHERE id = 6`),
		n(`BEGIN; UPDATE ruled SET kept = false WHERE id = 10 + 2 * $n; DELETE FROM ruled WHERE id = 10 + 2 * $n; COMMIT`),
		n(`DELETE FROM refd WHERE id = $n; UPDATE refd SET id = 500 + id WHERE id = 10 + $n`),
		n(`BEGIN; INSERT INTO refs VALUES (200 + $n, NULL, 7000 + $n, 200 + $n); INSERT INTO refd VALUES (7000 + $n, 7000 + $n); COMMIT; DELETE FROM refs WHERE id = 15 + $n`),
		n(`DELETE FROM proot WHERE id = $n`),
	}
}

// actingNow describes what acts on a side, and in what state it is.
const actingNow = `
SELECT string_agg(x, E'\n' ORDER BY x COLLATE "C") FROM (
  SELECT format('trigger %s %I %s', t.tgrelid::regclass, t.tgname, t.tgenabled) AS x FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
  WHERE p.pronamespace = 'public'::regnamespace
  UNION ALL SELECT format('rule %s %I %s', ev_class::regclass, rulename, ev_enabled) FROM pg_rewrite WHERE ev_class >= 16384 AND ev_type <> '1'
  UNION ALL SELECT format('foreign key %s %I %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated, obj_description(oid, 'pg_constraint'))
  FROM pg_constraint WHERE contype = 'f' AND conparentid = 0) s`

// like Heroku's: its source belongs to an ordinary owner.
func newOrdinaryFixture(t *testing.T) *fixture {
	f := newFixture(t)
	f.capture = Trigger
	s := pgtest.Shared(t)
	f.source, f.target = s.HerokuOwner(t, f.source), s.RDSMaster(t, f.target)
	return f
}

// Nothing acts twice, on either side, whatever acts on the application's writes; and all of it is afterwards as it was, to the byte.
func TestWhatActsIsPutAsideAndBack(t *testing.T) {
	f := newOrdinaryFixture(t)
	pgtest.Exec(t, f.source, actingSchema)
	before := pgtest.DumpSchema(t, f.source)
	was := ask[string](f, f.source, actingNow)
	f.start(false)
	f.streaming()
	round := 0
	write := func(url string) {
		t.Helper()
		round++
		pgtest.Exec(t, url, act(round)...)
		f.caughtUp()
		f.equal()
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
	write(f.source)
	for range 2 {
		f.attempt(false)
		write(f.target)
		if now := ask[string](f, f.target, actingNow); now != was {
			t.Errorf("the target, which is written to, has\n%s\nthe source had\n%s", now, was)
		}
		f.attempt(true)
		write(f.source)
		if now := ask[string](f, f.source, actingNow); now != was {
			t.Errorf("the source, which is written to again, has\n%s\nbefore\n%s", now, was)
		}
	}
	f.attempt(false)
	write(f.target)
	if err := f.pair.Finish(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if after := pgtest.DumpSchema(t, f.source); after != before {
		t.Errorf("the source's schema is not what it was: %s", firstDifference(before, after))
	}
	if now := ask[string](f, f.target, actingNow); now != was {
		t.Errorf("the target has\n%s\nthe source had\n%s", now, was)
	}
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d: %q became %q", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d lines became %d", len(x), len(y))
}

const clonedSchema = `
CREATE TABLE audit (id bigserial PRIMARY KEY, what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.audit (what) VALUES (TG_NAME || ' ' || TG_OP || ' ' || TG_TABLE_NAME); RETURN NULL; END $$;
CREATE TABLE root (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE leaf_1 PARTITION OF root FOR VALUES IN (1);
CREATE TABLE leaf_2 PARTITION OF root FOR VALUES IN (2);
CREATE TABLE mid PARTITION OF root FOR VALUES IN (3, 4) PARTITION BY LIST (k);
CREATE TABLE leaf_3 PARTITION OF mid FOR VALUES IN (3);
CREATE TRIGGER cloned AFTER INSERT OR UPDATE ON root FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER always AFTER INSERT ON root FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER whole AFTER INSERT ON root FOR EACH STATEMENT EXECUTE FUNCTION note();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON root DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION note();
ALTER TABLE root ENABLE ALWAYS TRIGGER always;
ALTER TABLE ONLY leaf_2 DISABLE TRIGGER cloned;
CREATE TRIGGER own AFTER INSERT ON leaf_2 FOR EACH ROW EXECUTE FUNCTION note();
INSERT INTO root SELECT i, 1 + i % 3, 'v' FROM generate_series(1, 30) i;
`

// A partitioned table's row triggers stand on its leaves as clones, which before PostgreSQL 15 count as internal.
func TestClonedTriggersArePutAside(t *testing.T) {
	for _, version := range []int{13, pgtest.DefaultVersion} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			f := newOrdinaryFixture(t)
			if version != pgtest.DefaultVersion {
				s := pgtest.Start(t, pgtest.Options{Version: version})
				f.source = s.HerokuOwner(t, s.Database(t))
			}
			pgtest.Exec(t, f.source, clonedSchema)
			was := ask[string](f, f.source, actingNow)
			f.start(false)
			f.streaming()
			write := func(url string, id int) {
				t.Helper()
				pgtest.Exec(t, url, fmt.Sprintf(`INSERT INTO root SELECT %d + i, 1 + i %% 3, 'new' FROM generate_series(1, 6) i; UPDATE root SET v = 'u%d' WHERE id < 10`, id, id))
				f.caughtUp()
				f.equal()
				if t.Failed() {
					t.FailNow()
				}
			}
			write(f.source, 100)
			f.attempt(false)
			write(f.target, 200)
			f.attempt(true)
			if now := ask[string](f, f.source, actingNow); now != was {
				t.Errorf("after the return the source has\n%s\nbefore\n%s", now, was)
			}
			write(f.source, 300)
			f.attempt(false)
			write(f.target, 400)
			if err := f.pair.Finish(f.ctx()); err != nil {
				t.Fatal(err)
			}
			if now := ask[string](f, f.source, actingNow); now != was {
				t.Errorf("after finish the source has\n%s\nbefore\n%s", now, was)
			}
		})
	}
}

// While what acts is put aside, nobody queues behind us for a table that somebody holds for long, and who holds it is said.
func TestPuttingAsideIsCalm(t *testing.T) {
	f := newOrdinaryFixture(t)
	pgtest.Exec(t, f.source, variedSchema)
	f.start(false)
	f.streaming()
	ctx := f.ctx()
	for _, phase := range f.phases(ctx, false, time.Now().Add(25*time.Second)) {
		if err := phase(); err != nil {
			t.Fatal(err)
		}
	}
	// The holder reads what a foreign key points to; the key's own table is free.
	reader := pgtest.Connect(t, f.source)
	if _, err := reader.Exec(ctx, "BEGIN; SELECT FROM plain LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	pid := reader.PgConn().PID()
	f.until("the reader's transaction is old", 20*time.Second, func(Status) bool {
		return ask[bool](f, f.source, fmt.Sprintf("SELECT clock_timestamp() - xact_start > '1.2 s' FROM pg_stat_activity WHERE pid = %d", pid))
	})
	sealed := make(chan error, 1)
	go func() { sealed <- f.pair.Seal(ctx, false) }()
	f.until("who holds the table is said", 20*time.Second, func(s Status) bool { return strings.Contains(s.Waiting, fmt.Sprintf("pid %d", pid)) })
	for range 60 {
		queued := ask[int](f, f.source, `SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND mode = 'AccessExclusiveLock'`)
		if queued > 0 {
			t.Fatal("an exclusive lock queues behind a reader that holds the table for long")
		}
		<-time.After(20 * time.Millisecond)
	}
	if _, err := reader.Exec(ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := <-sealed; err != nil {
		t.Fatal(err)
	}
	if s := f.pair.Status(); s.Waiting != "" {
		t.Errorf("nothing holds it up any more, and it says that it waits for %s", s.Waiting)
	}
	if n := ask[int](f, f.source, `SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conname LIKE 'child%'`); n != 0 {
		t.Errorf("%d foreign keys are left", n)
	}
}

// Only a stream of the write-ahead log needs whole old rows: a table that triggers capture keeps its replica identity.
func TestJoiningChangesNoIdentityForNothing(t *testing.T) { everyCapture(t, joiningChangesNoIdentity) }

func joiningChangesNoIdentity(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema+"CREATE TABLE early (a int, v text)")
	f.start(false)
	f.streaming()
	const late = "CREATE TABLE late (a int, v text)"
	pgtest.Exec(t, f.target, late)
	pgtest.Exec(t, f.source, late, "INSERT INTO late VALUES (1, 'l')")
	f.until("the late table", 40*time.Second, func(s Status) bool { return s.TablesTotal == 4 && s.TablesCopied == 4 && s.Phase == Streaming })
	want := "ff"
	if f.capture == Trigger {
		want = "dd"
	}
	const identities = "SELECT string_agg(relreplident, '' ORDER BY relname) FROM pg_class WHERE relname IN ('early', 'late')"
	if got := ask[string](f, f.source, identities); got != want {
		t.Errorf("the replica identities of tables without a key are %s, want %s", got, want)
	}
	pgtest.Exec(t, f.source, "UPDATE late SET v = 'm'; INSERT INTO early VALUES (1, 'e')")
	f.caughtUp()
	f.equal()
}
