package pair

import (
	"slices"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
)

const partitionedSchema = `
CREATE TABLE parts (id int, at date NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE INDEX parts_v ON parts (v);
CREATE TABLE parts_20 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE parts_21 PARTITION OF parts FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE aside (v text, id int NOT NULL, at date NOT NULL, PRIMARY KEY (id, at));
INSERT INTO parts SELECT i, date '2020-01-01' + i, 'v' FROM generate_series(1, 700) i;
INSERT INTO aside SELECT 'a', i, date '2022-01-01' + i FROM generate_series(1, 100) i;
`

// Partitions that are attached, detached, made and dropped while the pair runs: each works, or stops the pair and names the exact
// statement, and no row is lost.
func TestPartitionsComeAndGo(t *testing.T) { everyCapture(t, partitionsComeAndGo) }

func partitionsComeAndGo(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, partitionedSchema)
	f.start(false)
	f.streaming()
	same := func(what string, statements ...string) {
		t.Helper()
		pgtest.Exec(t, f.source, statements...)
		f.caughtUp()
		f.equal()
		if t.Failed() {
			t.Fatalf("after %s", what)
		}
	}
	same("attaching", `ALTER TABLE parts ATTACH PARTITION aside FOR VALUES FROM ('2022-01-01') TO ('2023-01-01')`,
		`INSERT INTO parts SELECT i, date '2022-03-01' + i % 30, 'through the root' FROM generate_series(1000, 1100) i; UPDATE parts SET at = at + 365 WHERE id BETWEEN 400 AND 410; UPDATE parts SET v = 'u' WHERE id % 50 = 0`)
	f.mend("aside")
	same("detaching", `ALTER TABLE parts DETACH PARTITION parts_20`, `UPDATE parts_20 SET v = 'alone' WHERE id < 20; DELETE FROM parts_20 WHERE id < 5`)
	pgtest.Exec(t, f.source, `INSERT INTO parts_20 VALUES (5000, '1999-01-01', 'beyond the bounds')`)
	f.until("the statement that lets the row in", 20*time.Second, func(s Status) bool {
		return slices.ContainsFunc(s.Problems, func(p preflight.Finding) bool { return strings.Contains(p.Hint, "DETACH PARTITION") })
	})
	f.mend("parts_20")
	same("mending")

	// A new partition: its rows wait on the source until the target has it.
	pgtest.Exec(t, f.source, `CREATE TABLE parts_23 PARTITION OF parts FOR VALUES FROM ('2023-01-01') TO ('2024-01-01')`,
		`INSERT INTO parts SELECT i, date '2023-01-01' + i, 'new' FROM generate_series(1, 200) i; UPDATE parts SET at = date '2023-05-05' WHERE id BETWEEN 420 AND 425`)
	f.problem("table-missing")
	total := f.pair.Status().TablesTotal
	f.mend("parts_23")
	f.until("the new partition", 40*time.Second, func(s Status) bool {
		return s.TablesTotal == total+1 && s.TablesCopied == total+1 && s.Phase == Streaming
	})
	same("making", `UPDATE parts SET v = 'later' WHERE id < 20; UPDATE parts SET at = date '2021-05-05' WHERE id = 421`)
	for _, d := range f.differences() {
		t.Errorf("the sides differ: %s", d)
	}

	// A partition that is dropped, as old ones are.
	pgtest.Exec(t, f.source, `ALTER TABLE parts DETACH PARTITION parts_21; DROP TABLE parts_21`, `DROP TABLE parts_20`, `UPDATE parts SET v = 'after the drop'`)
	f.mend("parts_2") // both
	f.until("end of what is kept of them", 40*time.Second, func(Status) bool {
		return ask[int](f, f.target, `SELECT count(*) FROM replicator.copy WHERE table_name IN ('parts_20', 'parts_21')`) == 0
	})
	f.caughtUp()
	f.equal()
	f.until("no problem", 20*time.Second, func(s Status) bool { return len(s.Problems) == 0 && s.Phase == Streaming })
	if n := ask[int](f, f.target, `SELECT count(*) FROM parts WHERE v = 'after the drop'`); n != ask[int](f, f.source, `SELECT count(*) FROM parts`) {
		t.Errorf("%d rows of the target changed after the drop", n)
	}
}

// differences are those of the catalogs that keep a cutover from starting.
func (f *fixture) differences() (out []string) {
	f.t.Helper()
	for _, x := range f.pair.Check(f.ctx(), false) {
		if x.Code == "schema-differs" || x.Code == "table-missing" || x.Code == "table-dropped" {
			out = append(out, x.Message+": "+x.Hint)
		}
	}
	return out
}

// mend runs on the target the statements that are named for a table, until none is.
func (f *fixture) mend(table string) {
	f.t.Helper()
	ran := map[string]bool{}
	f.until("end of what differs in "+table, 20*time.Second, func(Status) bool {
		left := false
		for _, d := range f.differences() {
			if !strings.Contains(d, table) {
				continue
			}
			left = true
			sql := d[strings.LastIndex(d, "on the target: ")+len("on the target: "):]
			sql, _, _ = strings.Cut(sql, "; they then ")
			sql, _, _ = strings.Cut(sql, "; if renamed")
			if strings.TrimSpace(sql) == "" {
				f.t.Fatalf("no statement: %s", d)
			}
			if !ran[sql] {
				pgtest.Exec(f.t, f.target, sql)
				ran[sql] = true
				break
			}
		}
		return !left
	})
	if len(ran) == 0 {
		f.t.Fatalf("no statement is named for %s: %q", table, f.differences())
	}
}

// A table that is dropped and made anew under its name is another table: it is copied again, and what was written to it is not lost. One that
// is renamed is named, and follows when the target's is renamed too.
func TestTableMadeAnew(t *testing.T) { everyCapture(t, tableMadeAnew) }

func tableMadeAnew(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	pgtest.Exec(t, f.source, `BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'anew' FROM generate_series(50, 150) i; COMMIT`,
		`INSERT INTO t VALUES (1000, 'later'); UPDATE other SET v = 'meanwhile' WHERE id = 1`)
	arrived := func(table, v string, n int) func(Status) bool {
		return func(Status) bool {
			return ask[int](f, f.target, `SELECT count(*) FROM `+table+` WHERE v = '`+v+`'`) == n
		}
	}
	f.until("the new table's rows", 40*time.Second, arrived("t", "anew", 101))
	f.streaming()
	pgtest.Exec(t, f.source, `UPDATE t SET v = 'streamed' WHERE id < 60`)
	f.caughtUp()
	f.equal()

	pgtest.Exec(t, f.source, `ALTER TABLE t RENAME TO fancy`, `UPDATE fancy SET v = 'renamed' WHERE id < 70`, `UPDATE other SET v = 'meanwhile' WHERE id = 2`)
	f.problem("table-dropped")
	pgtest.Exec(t, f.target, `ALTER TABLE t RENAME TO fancy`)
	f.until("the renamed table", 40*time.Second, func(s Status) bool {
		return s.Phase == Streaming && ask[bool](f, f.target, `SELECT EXISTS (SELECT FROM replicator.copy WHERE table_name = 'fancy' AND state = 'copied')`)
	})
	pgtest.Exec(t, f.source, `DELETE FROM fancy WHERE id > 100; INSERT INTO fancy VALUES (1, 'streamed')`)
	f.caughtUp()
	f.equal()
	f.until("no problem", 20*time.Second, func(s Status) bool { return len(s.Problems) == 0 })
}

// A key's column that is renamed, or gets another type, is followed without an operator on the source, where the application's writes would go
// on failing under trigger capture; the pair names the statement for the target and goes on when it was run.
func TestKeyColumnAltered(t *testing.T) { everyCapture(t, keyColumnAltered) }

func keyColumnAltered(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	for _, c := range []struct{ change, write string }{
		{`ALTER TABLE t RENAME id TO ident`, `INSERT INTO t (ident, v) VALUES (1000, 'renamed'); UPDATE t SET v = 'renamed' WHERE ident = 2; DELETE FROM t WHERE ident = 3`},
		{`ALTER TABLE t ALTER ident TYPE text`, `INSERT INTO t VALUES ('word', 'retyped'); UPDATE t SET v = 'retyped' WHERE ident = '4'; DELETE FROM t WHERE ident = '5'`},
	} {
		pgtest.Exec(t, f.source, c.change)
		began := time.Now()
		for {
			err := f.write(f.source, c.write)
			if err == nil {
				break
			}
			if time.Since(began) > 40*time.Second {
				t.Fatalf("%s: the application can't write: %v", c.change, err)
			}
			<-time.After(200 * time.Millisecond)
		}
		t.Logf("%s: the application could write again after %v", c.change, time.Since(began).Round(100*time.Millisecond))
		f.problem("schema-drift")
		if hint := f.hints(); !strings.Contains(hint, "ALTER TABLE") || strings.Contains(hint, "CONSTRAINT") {
			t.Errorf("the hint isn't the one statement: %s", hint)
		}
		pgtest.Exec(t, f.target, c.change)
		f.caughtUp()
		f.equal()
		f.until("no problem", 20*time.Second, func(s Status) bool { return len(s.Problems) == 0 && s.Phase == Streaming })
	}
}
