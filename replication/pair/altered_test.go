package pair

import (
	"errors"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/probe"
	"replicator/replication/schema"
)

// writes has the application write until it can, and returns how long that took.
func (f *fixture) writes(url, sql string, within time.Duration) {
	f.t.Helper()
	began := time.Now()
	for {
		err := f.write(url, sql)
		if err == nil {
			break
		}
		if time.Since(began) > within {
			f.t.Fatalf("%s: the application can't write: %v", sql, err)
		}
		<-time.After(100 * time.Millisecond)
	}
	f.t.Logf("%.60s: the application could write after %v", sql, time.Since(began).Round(100*time.Millisecond))
}

// settled waits until the pair streams without a problem and both sides are equal.
func (f *fixture) settled() {
	f.t.Helper()
	f.until("no problem", 40*time.Second, func(s Status) bool { return len(s.Problems) == 0 && s.Phase == Streaming })
	f.caughtUp()
	f.equal()
	f.until("no problem", 20*time.Second, func(s Status) bool { return len(s.Problems) == 0 && s.Phase == Streaming })
}

// A key whose constraint is dropped while the pair runs identifies no row any more: the table is captured as one without a key and copied
// again, and what the target must drop is named.
func TestKeyDropped(t *testing.T) { everyCapture(t, keyDropped) }

func keyDropped(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	pgtest.Exec(t, f.source, `BEGIN; ALTER TABLE t DROP CONSTRAINT t_pkey; INSERT INTO t VALUES (1, 'second'); COMMIT`)
	f.until("the statement that lets the row in", 40*time.Second, func(Status) bool { return strings.Contains(f.hints(), `DROP CONSTRAINT "t_pkey"`) })
	if n := ask[int](f, f.target, `SELECT count(*) FROM t WHERE id = 1`); n > 1 {
		t.Errorf("%d rows of one key on the target, whose constraint stands", n)
	}
	pgtest.Exec(t, f.target, `ALTER TABLE t DROP CONSTRAINT t_pkey`)
	f.writes(f.source, `UPDATE t SET v = 'both' WHERE id = 1; DELETE FROM t WHERE id = 2`, 40*time.Second)
	f.settled()
	pgtest.Exec(t, f.source, `INSERT INTO t VALUES (3, 'second'); UPDATE t SET v = v || '!' WHERE id = 3; DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t WHERE id = 3)`)
	f.caughtUp()
	f.equal()
}

const unkeyedSchema = `
CREATE TABLE keyless (a int, v text);
CREATE TABLE deferred (a int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
INSERT INTO keyless SELECT i % 50, 'v' FROM generate_series(1, 100) i;
INSERT INTO deferred SELECT i, 'v' FROM generate_series(1, 100) i;
`

// A table without a usable key is logged by all its columns. Whichever side gets a change of them first, and whether the pair runs meanwhile or
// not, nothing is lost, the application goes on writing, and where the sides differ the statement for the target is named.
func TestUnkeyedTableAltered(t *testing.T) { everyCapture(t, unkeyedTableAltered) }

func unkeyedTableAltered(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, unkeyedSchema)
	f.start(false)
	f.streaming()
	both := func(sql string) string {
		return strings.ReplaceAll(sql, "$t", "keyless") + "; " + strings.ReplaceAll(sql, "$t", "deferred")
	}
	for _, c := range []struct {
		change, write string
		first         string // target, source, or source while nobody runs
		drifts        bool
	}{
		// Nothing but the new column is ever written: what the log names hasn't changed.
		{`ALTER TABLE $t ADD n int`, `UPDATE $t SET n = 7 WHERE a = 1`, "target", false},
		{`ALTER TABLE $t ADD m int`, `UPDATE $t SET m = 7 WHERE a = 2; INSERT INTO $t (a, m) VALUES (1000, 1)`, "source", true},
		{`ALTER TABLE $t RENAME v TO w`, `UPDATE $t SET w = 'renamed' WHERE a = 3; DELETE FROM $t WHERE a = 4`, "source", true},
		{`ALTER TABLE $t DROP n`, `UPDATE $t SET w = 'dropped' WHERE a = 5`, "source", false},
		{`ALTER TABLE $t ADD o int`, `UPDATE $t SET o = 7 WHERE a = 6`, "down", true},
	} {
		change, write := both(c.change), both(c.write)
		t.Logf("%s, %s first", c.change, c.first)
		switch c.first {
		case "target":
			pgtest.Exec(t, f.target, change)
			pgtest.Exec(t, f.source, change)
		case "source":
			pgtest.Exec(t, f.source, change)
		case "down":
			f.stop()
			pgtest.Exec(t, f.source, change)
			f.writes(f.source, write, time.Second)
			f.start(false)
		}
		f.writes(f.source, write, 40*time.Second)
		if c.drifts {
			f.problem("schema-drift")
			if hint := f.hints(); !strings.Contains(hint, "ALTER TABLE") {
				t.Errorf("the hint names no statement: %s", hint)
			}
		}
		if c.first != "target" {
			pgtest.Exec(t, f.target, change)
		}
		// The copy is made again by itself, after which the sides are equal.
		f.until("equal sides", 40*time.Second, func(s Status) bool {
			if s.Phase != Streaming || len(s.Problems) > 0 {
				return false
			}
			report, err := f.pair.VerifyNow(f.ctx(), nil)
			return err == nil && report.Mismatches == 0 && len(report.Tables) == 2
		})
		f.settled()
	}
}

// Columns are known by their names. One that is dropped and made anew under its name, or two that exchange theirs, move no row and send nothing: the
// table is compared, and copied again where it differs.
func TestColumnsUnderOldNames(t *testing.T) { everyCapture(t, columnsUnderOldNames) }

func columnsUnderOldNames(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, `CREATE TABLE t (id int PRIMARY KEY, a text, b text); INSERT INTO t SELECT i, 'a', 'b' FROM generate_series(1, 100) i`)
	f.watch = 200 * time.Millisecond
	f.start(false)
	f.streaming()
	copied := func() string {
		return ask[string](f, f.target, `SELECT snapshot || state FROM replicator.copy WHERE table_name = 't'`)
	}
	for _, change := range []string{
		`BEGIN; ALTER TABLE t DROP a, ADD a text; UPDATE t SET b = 'c' WHERE id = 1; COMMIT`,
		`BEGIN; ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b; COMMIT`,
	} {
		for _, down := range []bool{false, true} {
			pgtest.Exec(t, f.source, `UPDATE t SET a = id, b = 'b' || id`)
			f.caughtUp()
			before := copied()
			if down {
				f.stop()
			}
			pgtest.Exec(t, f.source, change)
			if down {
				f.start(false)
			}
			f.until("the table's new copy", 40*time.Second, func(s Status) bool { return s.Phase == Streaming && copied() != before })
			f.settled()
		}
	}
	// What exchanges names on both sides is equal, and not copied again.
	before := copied()
	f.stop()
	for _, url := range []string{f.source, f.target} {
		pgtest.Exec(t, url, `BEGIN; ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b; COMMIT`)
	}
	f.start(false)
	f.streaming()
	f.settled()
	if now := copied(); now != before {
		t.Errorf("copied again though equal: %s, before %s", now, before)
	}
}

const generatedKeys = `
CREATE TABLE g (a int NOT NULL, k int GENERATED ALWAYS AS (a * 2) STORED NOT NULL PRIMARY KEY, v text);
CREATE TABLE partly (a int, k int GENERATED ALWAYS AS (a * 2) STORED NOT NULL, v text, PRIMARY KEY (a, k));
CREATE TABLE either (k int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY, a int NOT NULL UNIQUE, v text);
INSERT INTO g (a, v) SELECT i, 'v' FROM generate_series(1, 100) i;
INSERT INTO partly (a, v) SELECT i, 'v' FROM generate_series(1, 100) i;
INSERT INTO either (a, v) SELECT i, 'v' FROM generate_series(1, 100) i;
`

// A key over a generated column: no capture gets its values.
func TestGeneratedKey(t *testing.T) { everyCapture(t, generatedKey) }

func generatedKey(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, generatedKeys)
	f.start(false)
	f.streaming()
	for _, table := range []string{"g", "partly", "either"} {
		pgtest.Exec(t, f.source, strings.ReplaceAll(`INSERT INTO $t (a, v) VALUES (1000, 'new'); UPDATE $t SET v = 'u' WHERE a = 1; UPDATE $t SET a = 2000 WHERE a = 2; DELETE FROM $t WHERE a = 3`, "$t", table))
	}
	f.settled()
}

// From PostgreSQL 18 on a generated column in a replica identity makes the application's writes to a published table fail: another key serves, or the
// table is refused before it is published, with what to do, and triggers are taken where that is left to us.
func TestGeneratedIdentity(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	s := pgtest.Start(t, pgtest.Options{Version: 18})
	f.source = s.LogicalOwner(t, s.Database(t))
	pgtest.Exec(t, f.source, generatedKeys+`CREATE TABLE whole (a int NOT NULL UNIQUE, d int GENERATED ALWAYS AS (a * 2) VIRTUAL, v text); INSERT INTO whole VALUES (1); ALTER TABLE whole REPLICA IDENTITY FULL`)
	ctx := f.ctx()
	p, _ := f.byHand(ctx)
	read := func() []replication.Table {
		t.Helper()
		tables, err := schema.Tables(ctx, p.source.pool, p.o.Filter)
		if err != nil {
			t.Fatal(err)
		}
		return tables
	}
	var h *preflight.Hinted
	if _, err := p.capture(false).begin(ctx, read()); !errors.As(err, &h) || h.Code != "generated-identity" || !strings.Contains(err.Error(), "public.g ") {
		t.Fatalf("began with %v", err)
	}
	obstacles := func() string {
		t.Helper()
		grants, err := probe.ReadGrants(ctx, p.source.pool, p.id, "", read())
		if err != nil {
			t.Fatal(err)
		}
		return probe.Reason("source", grants.Obstacles())
	}
	if reason := obstacles(); !strings.Contains(reason, "generated columns") || !strings.Contains(reason, "public.g") {
		t.Errorf("the reason is %q", reason)
	}
	pgtest.Exec(t, f.source, `ALTER TABLE g ADD UNIQUE (a)`, `ALTER TABLE partly ADD UNIQUE (a)`)
	if reason := obstacles(); strings.Contains(reason, "generated columns") {
		t.Errorf("the reason is %q", reason)
	}
	for range 2 {
		if _, err := p.capture(false).begin(ctx, read()); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"g", "partly", "either", "whole"} {
		pgtest.Exec(t, f.source, strings.ReplaceAll(`UPDATE $t SET v = 'published'; DELETE FROM $t WHERE a = 1`, "$t", table))
	}
	if err := p.remove(ctx); err != nil {
		t.Fatal(err)
	}
	if got := ask[string](f, f.source, `SELECT string_agg(relname || ' ' || relreplident::text, ', ' ORDER BY relname) FROM pg_class WHERE relname IN ('g', 'partly', 'either', 'whole')`); got != "either d, g d, partly d, whole f" {
		t.Errorf("the identities are %s", got)
	}
}
