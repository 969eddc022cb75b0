package trigger_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

// hold begins a transaction with some statements on the source, as its owner.
func (f *fixture) hold(statements ...string) pgx.Tx {
	f.t.Helper()
	tx, err := pgtest.Connect(f.t, f.source).Begin(f.ctx())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, sql := range statements {
		if _, err := tx.Exec(f.ctx(), sql); err != nil {
			f.t.Fatal(err)
		}
	}
	return tx
}

const twoTables = `
CREATE TABLE hot (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
CREATE TABLE cold (id int PRIMARY KEY, n int NOT NULL DEFAULT 0);
INSERT INTO hot SELECT i FROM generate_series(1, 50) i;
INSERT INTO cold SELECT i FROM generate_series(1, 50) i;
`

// Who holds a table to himself holds up only that one: neither a stream that runs nor one that begins measures it or waits for it.
func TestALockedTableHoldsUpNoOther(t *testing.T) {
	f := newFixture(t, twoTables)
	f.o.UpkeepEvery, f.o.IdleMax = 30*time.Millisecond, 20*time.Millisecond
	f.begin()
	s := f.start(nil)
	s.caughtUp()
	tx := f.hold("LOCK TABLE cold IN ACCESS EXCLUSIVE MODE")
	arrives := func(n int) {
		t.Helper()
		f.exec(fmt.Sprintf("UPDATE hot SET n = %d", n))
		began := time.Now()
		eventually(t, "a change of the other table arrives", func() bool {
			s.source.Nudge()
			var have int
			err := f.there.QueryRow(f.ctx(), "SELECT max(n) FROM public.hot").Scan(&have)
			return err == nil && have == n
		})
		if d := time.Since(began); d > 10*time.Second {
			t.Errorf("it took %v", d)
		}
	}
	for n := range 10 {
		arrives(n + 1) // with rounds of upkeep in between
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	s = f.start(nil)
	arrives(100)
	if err := tx.Rollback(f.ctx()); err != nil {
		t.Fatal(err)
	}
	s.caughtUp()
	f.equal()
}

// A stream that begins and must read a table that somebody has to himself says that it waits for it.
func TestAStreamThatBeginsNamesWhoHoldsAScannedTable(t *testing.T) {
	f := newFixture(t, hotDDL)
	s := scanned(t, f)
	s.caughtUp()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	tx := f.hold("LOCK TABLE hot IN ACCESS EXCLUSIVE MODE")
	heard := make(chan string, 100)
	f.o.Waiting = func(what string) { heard <- what }
	s = f.start(nil)
	select {
	case what := <-heard:
		if what == "" {
			t.Error("it waits for nothing")
		}
	case <-time.After(20 * time.Second):
		t.Error("the stream doesn't say that it waits")
	}
	if err := tx.Rollback(f.ctx()); err != nil {
		t.Fatal(err)
	}
	s.caughtUp()
	f.equal()
}

// Logs of long values turn and are emptied: most of them lies apart from the table itself.
func TestALogOfLongRowsStaysSmall(t *testing.T) {
	f := newFixture(t, `CREATE TABLE long (a int, v text)`)
	f.o.RotateBytes, f.o.UpkeepEvery = 1<<20, 20*time.Millisecond
	f.begin()
	s := f.start(nil)
	for range 10 {
		f.exec(`INSERT INTO long SELECT i, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 3125 + i - i)) FROM generate_series(1, 20) i`)
		s.caughtUp()
	}
	eventually(t, "the log is small", func() bool {
		s.source.Nudge()
		o, err := trigger.Observe(f.ctx(), f.pool)
		return err == nil && o.Bytes < 4<<20
	})
	s.caughtUp()
	f.equal()
}

// A log that is given up is emptied at once where nobody writes to it, later where somebody does; no write fails or is logged any more, no stream goes on,
// and none begins before the log is made anew.
func TestALogIsGivenUp(t *testing.T) {
	f := newFixture(t, twoTables)
	f.o.RotateBytes, f.o.UpkeepEvery = 1, 20*time.Millisecond // it would turn the log back on
	f.begin()
	tx := f.hold("UPDATE hot SET n = 1 WHERE id = 1")
	f.exec("UPDATE hot SET n = 2 WHERE id = 2", "UPDATE cold SET n = 2")
	s := f.start(nil)
	s.caughtUp()
	left, err := trigger.Relieve(f.ctx(), f.pool)
	if err != nil || left == 0 {
		t.Fatalf("%d logs are in use: %v", left, err)
	}
	// The stream itself may have been reading at that moment.
	eventually(t, "one log is in use", func() bool {
		left, err := trigger.Free(f.ctx(), f.pool)
		return err == nil && left == 1
	})
	if n := f.logged("cold"); n != 0 {
		t.Errorf("%d changes are still logged", n)
	}
	if _, err := tx.Exec(f.ctx(), "UPDATE hot SET n = 3 WHERE id = 3"); err != nil {
		t.Errorf("a write of a transaction that was open fails: %v", err)
	}
	if _, err := state.Beat(f.ctx(), f.pool, "look"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.failure(), "capture-lost", "drop_retained")
	f.exec("UPDATE hot SET n = 4 WHERE id = 4", "UPDATE cold SET n = 4")
	if n := f.logged("cold"); n != 0 {
		t.Errorf("%d changes were logged afterwards", n)
	}
	if err := tx.Commit(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if left, err := trigger.Free(f.ctx(), f.pool); err != nil || left != 0 || f.logged("hot") != 0 {
		t.Errorf("%d logs are in use, %d changes logged, %v", left, f.logged("hot"), err)
	}
	wantCode(t, f.start(nil).failure(), "capture-lost")
	wantCode(t, trigger.Standing(f.ctx(), f.pool), "capture-lost")
	if _, err := trigger.Install(f.ctx(), f.pool, nil, f.tables); err != nil {
		t.Fatal(err)
	}
	wantCode(t, trigger.Standing(f.ctx(), f.pool), "capture-lost")
	if err := trigger.Renew(f.ctx(), f.pool); err != nil {
		t.Fatal(err)
	}
	if err := trigger.Standing(f.ctx(), f.pool); err != nil {
		t.Error(err)
	}
	f.exec("UPDATE cold SET n = 5")
	if n := f.logged("cold"); n != 50 {
		t.Errorf("%d of 50 changes are logged again", n)
	}
}

// What was put on a table goes with its replication, a busy table's when it can be had; what a dropped table has left goes too.
func TestTablesAreRetired(t *testing.T) {
	f := newFixture(t, twoTables+`CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE busy (id int PRIMARY KEY)`)
	f.begin()
	var oids []uint32
	keep := []replication.TableName{{Schema: "public", Name: "hot"}}
	for _, table := range f.tables {
		if table.Name != keep[0] {
			oids = append(oids, table.OID)
		}
	}
	left := func() (n int) {
		t.Helper()
		if err := f.pool.QueryRow(f.ctx(), `SELECT (SELECT count(*) FROM pg_proc WHERE proname = ANY (SELECT 'capture_' || x FROM unnest($1::oid[]) x)) +
			(SELECT count(*) FROM pg_class WHERE relname ~ ANY (SELECT '^capture_' || x || '_[01]$' FROM unnest($1::oid[]) x)) + (SELECT count(*) FROM pg_trigger WHERE tgrelid = ANY ($1) AND tgname ~ '^replicator_capture')`, oids).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	tx := f.hold("INSERT INTO busy VALUES (1)")
	f.exec("DROP TABLE gone")
	if n := left(); n != 2*5+3 {
		t.Fatalf("%d objects before", n)
	}
	done := make(chan error, 1)
	go func() { done <- trigger.Retire(f.ctx(), f.pool, nil, keep) }()
	eventually(t, "only the busy table is left", func() bool { return left() == 5 })
	execAll(t, f.source, []string{"SET statement_timeout = '3s'", "INSERT INTO busy VALUES (2)", "UPDATE cold SET n = 7", "UPDATE hot SET n = 7"})
	if err := tx.Commit(f.ctx()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || left() != 0 {
		t.Errorf("%d objects are left: %v", left(), err)
	}
	if n := f.logged("hot"); n != 50 {
		t.Errorf("%d of 50 changes of the table that stays are logged", n)
	}
}

// Triggers that were replaced by ones that fire for less, or for another function, are noticed.
func TestAlteredTriggersAreNoticed(t *testing.T) {
	for name, sql := range map[string]string{
		"when":       "CREATE OR REPLACE TRIGGER replicator_capture AFTER INSERT OR DELETE OR UPDATE ON cold FOR EACH ROW WHEN (pg_trigger_depth() > 99) EXECUTE FUNCTION %s()",
		"update of":  "CREATE OR REPLACE TRIGGER replicator_capture AFTER INSERT OR DELETE OR UPDATE OF id ON cold FOR EACH ROW EXECUTE FUNCTION %s()",
		"inserts":    "CREATE OR REPLACE TRIGGER replicator_capture AFTER INSERT ON cold FOR EACH ROW EXECUTE FUNCTION %s()",
		"other":      "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE OR REPLACE TRIGGER replicator_capture AFTER INSERT OR DELETE OR UPDATE ON cold FOR EACH ROW EXECUTE FUNCTION nothing()",
		"truncation": "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE OR REPLACE TRIGGER replicator_capture_truncate AFTER TRUNCATE ON cold EXECUTE FUNCTION nothing()",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, twoTables)
			f.begin()
			s := f.start(nil)
			s.caughtUp()
			if name != "other" && name != "truncation" {
				sql = fmt.Sprintf(sql, f.function("cold"))
			}
			f.exec(sql, "ALTER TABLE cold ENABLE ALWAYS TRIGGER replicator_capture, ENABLE ALWAYS TRIGGER replicator_capture_truncate", "UPDATE cold SET n = 1; UPDATE hot SET n = 1")
			wantCode(t, s.failure(), "capture-disabled", "public.cold")
		})
	}
}

// A value that a type has come to refuse is not shown.
func TestErrorsShowNoValues(t *testing.T) {
	f := newFixture(t, `CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE moods (m mood PRIMARY KEY, n int)`)
	f.begin()
	f.exec("INSERT INTO moods VALUES ('sad', 1)", "ALTER TYPE mood RENAME VALUE 'sad' TO 'secret'")
	s := f.start(nil)
	err := s.failure()
	wantCode(t, err, "capture-altered", "public.moods", "22P02")
	if text := fmt.Sprint(err); postgres.Code(err) != "" || strings.Contains(text, `"sad"`) {
		t.Errorf("it shows the value: %s", text)
	}
}
