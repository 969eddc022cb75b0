package trigger_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication/trigger"
)

const hotDDL = `
CREATE TABLE hot (id int, part text, n int NOT NULL DEFAULT 0, note text, PRIMARY KEY (id, part));
CREATE TABLE cold (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
INSERT INTO hot SELECT i, 'ä', 0 FROM generate_series(1, 50) i;
INSERT INTO cold SELECT i, 0 FROM generate_series(1, 50) i;
`

// scanned has the pipeline running until table hot is one that is scanned.
func scanned(t *testing.T, f *fixture) *stream {
	t.Helper()
	f.o.UpkeepEvery, f.o.IdleMax = 30*time.Millisecond, 20*time.Millisecond
	f.o.Scanning = trigger.Scanning{Bytes: 64 << 10, Updates: 1, Tables: 1}
	f.begin()
	s := f.start(nil)
	f.heat()
	return s
}

func (f *fixture) trigger(table string) (columns int, described bool) {
	f.t.Helper()
	if err := f.pool.QueryRow(f.ctx(), `SELECT cardinality(t.tgattr::int2[]), p.prosrc ~ '"scanned":true' FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
		WHERE t.tgname = 'replicator_capture' AND t.tgenabled = 'A' AND t.tgrelid = ('public.' || $1::text)::regclass`, table).Scan(&columns, &described); err != nil {
		f.t.Fatal(err)
	}
	return columns, described
}

// heat updates table hot until the stream has seen that it is.
func (f *fixture) heat() {
	f.t.Helper()
	eventually(f.t, "table hot is scanned", func() bool {
		f.exec("UPDATE hot SET n = n + 1 WHERE id < 5")
		columns, described := f.trigger("hot")
		return columns == 2 && described
	})
}

// logged is how many changes the log holds of a table.
func (f *fixture) logged(table string) (n int) {
	f.t.Helper()
	var oid uint32
	if err := f.pool.QueryRow(f.ctx(), `SELECT ('public.' || $1::text)::regclass::oid`, table).Scan(&oid); err != nil {
		f.t.Fatal(err)
	}
	if err := f.pool.QueryRow(f.ctx(), fmt.Sprintf(`SELECT (SELECT count(*) FROM replicator.capture_%d_0) + (SELECT count(*) FROM replicator.capture_%d_1)`, oid, oid)).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

// A small table that is updated much costs its updates nothing, and loses none of them, whoever makes them and however.
func TestHotSmallTablesAreScanned(t *testing.T) {
	f := newFixture(t, hotDDL)
	s := scanned(t, f)
	if columns, _ := f.trigger("cold"); columns != 0 {
		t.Error("a table that nobody writes to is scanned")
	}
	s.caughtUp()
	f.equal()
	before := f.logged("hot")
	f.exec("UPDATE hot SET n = n + 1", "UPDATE hot SET note = 'x' WHERE id = 7")
	if n := f.logged("hot"); n != before {
		t.Errorf("%d updates were logged", n-before)
	}
	s.caughtUp()
	f.equal()
	for _, script := range []string{
		// Subtransactions have ids of their own, of which a snapshot says nothing.
		"BEGIN; UPDATE hot SET n = 100 WHERE id = 1; SAVEPOINT a; UPDATE hot SET n = 101 WHERE id = 2; SAVEPOINT b; UPDATE hot SET n = 102 WHERE id = 3; ROLLBACK TO b; RELEASE a; COMMIT",
		"UPDATE hot SET id = id + 1000 WHERE id < 4",
		"BEGIN; UPDATE hot SET n = n + 1 WHERE id > 1000; UPDATE hot SET id = id - 1000 WHERE id > 1000; UPDATE hot SET n = n + 1 WHERE id < 4; COMMIT",
		"DELETE FROM hot WHERE id = 10",
		"BEGIN; DELETE FROM hot WHERE id = 11; INSERT INTO hot VALUES (11, 'ä', 5); UPDATE hot SET n = 6 WHERE id = 11; COMMIT",
		"BEGIN; INSERT INTO hot VALUES (60, 'ö', 5); UPDATE hot SET n = 6 WHERE id = 60; COMMIT",
		"BEGIN; INSERT INTO hot VALUES (61, 'ö', 5); DELETE FROM hot WHERE id = 61; COMMIT",
		"BEGIN; UPDATE hot SET n = 9 WHERE id = 12; DELETE FROM hot WHERE id = 12; COMMIT",
		"INSERT INTO hot VALUES (60, 'ö', 7), (62, 'ü', 7) ON CONFLICT (id, part) DO UPDATE SET n = excluded.n + 1",
		"BEGIN; TRUNCATE hot; INSERT INTO hot SELECT i, 'ä', 1 FROM generate_series(1, 50) i; UPDATE hot SET n = 2 WHERE id = 5; COMMIT",
		"UPDATE hot SET n = n + 1 WHERE id = 5",
	} {
		pgtest.Exec(t, f.source, script)
		s.caughtUp()
		f.equal()
	}
	// A vacuum that freezes or moves rows changes none.
	pgtest.Exec(t, f.source, "UPDATE hot SET n = n + 1")
	pgtest.Exec(t, f.source, "VACUUM (FREEZE, FULL) hot")
	pgtest.Exec(t, f.source, "UPDATE hot SET n = n + 1 WHERE id = 1")
	pgtest.Exec(t, f.source, "CLUSTER hot USING hot_pkey")
	s.caughtUp()
	f.equal()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	// What is updated while nobody looks is found afterwards.
	f.exec("UPDATE hot SET n = n + 1 WHERE id < 20", "UPDATE hot SET id = 2000 WHERE id = 20")
	s = f.start(nil)
	s.caughtUp()
	f.equal()
	if _, err := trigger.Install(f.ctx(), f.pool, nil, f.tables); err != nil {
		t.Fatal(err)
	}
	if columns, described := f.trigger("hot"); columns != 2 || !described {
		t.Error("another Install did away with the scan")
	}
}

// Rows of transactions that end out of order are found by the id of their own version, and not again and again while an old one is open.
func TestScanAmongOpenTransactions(t *testing.T) {
	f := newFixture(t, hotDDL)
	s := scanned(t, f)
	old := pgtest.Connect(t, f.source)
	begin := func(sql string) pgx.Tx {
		tx, err := old.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	tx := begin("UPDATE hot SET n = -1 WHERE id = 30; SAVEPOINT a; UPDATE hot SET n = -2 WHERE id = 31; RELEASE a; SAVEPOINT b; UPDATE hot SET n = -3 WHERE id = 32")
	f.exec("BEGIN; UPDATE hot SET n = n + 1 WHERE id < 20; SAVEPOINT s; UPDATE hot SET n = n + 1 WHERE id = 21; RELEASE s; COMMIT")
	s.caughtUp()
	f.same(t, "WHERE id NOT IN (30, 31, 32)")
	s.mu.Lock()
	count := s.count
	s.mu.Unlock()
	<-time.After(300 * time.Millisecond) // many looks: the test is that nothing happens
	s.mu.Lock()
	if n := s.count - count; n > 2 { // the beat that caughtUp made may still come
		t.Errorf("%d batches although nothing was written", n)
	}
	s.mu.Unlock()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.caughtUp()
	f.equal()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	// A stream that begins among open transactions knows less, and finds no less.
	tx = begin("UPDATE hot SET n = -4 WHERE id = 33; SAVEPOINT a; UPDATE hot SET n = -5 WHERE id = 34; RELEASE a")
	f.exec("UPDATE hot SET n = n + 1 WHERE id < 20", "DELETE FROM hot WHERE id = 19")
	s = f.start(nil)
	s.caughtUp()
	f.exec("UPDATE hot SET n = n + 1 WHERE id < 10")
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = f.start(nil)
	s.caughtUp()
	f.equal()
}

// same compares part of table hot.
func (f *fixture) same(t *testing.T, where string) {
	t.Helper()
	var a, b string
	sql := "SELECT coalesce(string_agg(x::text, ' ' ORDER BY id), '') FROM public.hot x " + where
	if err := f.pool.QueryRow(context.Background(), sql).Scan(&a); err != nil {
		t.Fatal(err)
	}
	if err := f.there.QueryRow(context.Background(), sql).Scan(&b); err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Errorf("the source has %s, the target %s", a, b)
	}
}

// A table that has grown, or of which a trigger could change the key unseen, is logged again, with no update between the two ways.
func TestScanEnds(t *testing.T) {
	for _, c := range []struct{ name, sql, undo string }{
		{"grown", "INSERT INTO hot SELECT i, 'ß', 0, repeat('x', 1000) FROM generate_series(100, 600) i", ""},
		{"trigger", "CREATE FUNCTION moves() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER moves BEFORE UPDATE ON hot FOR EACH ROW EXECUTE FUNCTION moves()", "DROP TRIGGER moves ON hot"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, hotDDL)
			s := scanned(t, f)
			f.exec(c.sql)
			eventually(t, "all updates are logged", func() bool {
				f.exec("UPDATE hot SET n = n + 1 WHERE id < 30")
				columns, described := f.trigger("hot")
				return columns == 0 && !described
			})
			s.caughtUp()
			f.equal()
			before := f.logged("hot")
			f.exec("UPDATE hot SET n = n + 1 WHERE id = 5")
			if f.logged("hot") == before {
				t.Error("an update isn't logged")
			}
			s.caughtUp()
			f.equal()
			if c.undo == "" {
				return
			}
			f.exec(c.undo)
			f.heat()
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			// The trigger is widened and the process dies before it says so.
			f.exec("UPDATE hot SET n = n + 1 WHERE id < 9", fmt.Sprintf("CREATE OR REPLACE TRIGGER replicator_capture AFTER INSERT OR DELETE OR UPDATE ON hot FOR EACH ROW EXECUTE FUNCTION %s()", f.function("hot")),
				"ALTER TABLE hot ENABLE ALWAYS TRIGGER replicator_capture", "UPDATE hot SET n = n + 1 WHERE id < 5")
			f.o.Scanning.Updates = 1 << 40
			s = f.start(nil)
			s.caughtUp()
			f.equal()
			eventually(t, "the scan ends", func() bool {
				f.exec("UPDATE hot SET n = n + 1 WHERE id < 5")
				_, described := f.trigger("hot")
				return !described
			})
			s.caughtUp()
			f.equal()
		})
	}
}

func (f *fixture) function(table string) (name string) {
	f.t.Helper()
	if err := f.pool.QueryRow(f.ctx(), `SELECT 'replicator.capture_' || ('public.' || $1::text)::regclass::oid`, table).Scan(&name); err != nil {
		f.t.Fatal(err)
	}
	return name
}

// A busy table isn't waited for longer than a moment, and writers go on.
func TestScanWaitsForNoTable(t *testing.T) {
	f := newFixture(t, hotDDL)
	f.o.UpkeepEvery, f.o.IdleMax = 30*time.Millisecond, 20*time.Millisecond
	f.o.Scanning = trigger.Scanning{Bytes: 64 << 10, Updates: 1, Tables: 1}
	f.begin()
	old := pgtest.Connect(t, f.source)
	tx, err := old.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "UPDATE hot SET n = 0 WHERE id = 40"); err != nil {
		t.Fatal(err)
	}
	s := f.start(nil)
	deadline := time.Now().Add(2500 * time.Millisecond)
	for time.Now().Before(deadline) {
		execAll(t, f.source, []string{"SET lock_timeout = '1s'", "UPDATE hot SET n = n + 1 WHERE id < 5"})
	}
	s.caughtUp()
	if columns, described := f.trigger("hot"); columns != 0 || described {
		t.Error("the trigger was replaced although a writer was at work")
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.heat()
	s.caughtUp()
	f.equal()
}

// A scanned table that is dropped or renamed stops the stream with a word about it.
func TestScannedTableIsRenamed(t *testing.T) {
	f := newFixture(t, hotDDL)
	s := scanned(t, f)
	s.caughtUp()
	f.exec("ALTER TABLE hot RENAME TO warm")
	wantCode(t, s.failure(), "capture-altered")
}
