package verify

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication"
)

func TestPhysicalFormDoesNotMatter(t *testing.T) {
	source, target := two(t)
	// Another order of columns, a dropped column, another order of rows, bloat, a wider type.
	pgtest.Exec(t, source, `CREATE TABLE t (id int PRIMARY KEY, gone int, a text, b text, c int)`, `ALTER TABLE t DROP gone`,
		`INSERT INTO t SELECT g, 'a' || g, repeat(md5(g::text), 3), g FROM generate_series(1, 5000) g`)
	pgtest.Exec(t, target, `CREATE TABLE t (c bigint, b text, id int PRIMARY KEY, a text)`,
		`INSERT INTO t (id, a, b, c) SELECT g, 'a' || g, 'x', g FROM generate_series(5000, 1, -1) g`, `UPDATE t SET b = repeat(md5(id::text), 3)`)
	tb := table(t, source, "t", "id")
	want(t, compare(t, source, target, Options{}, tb))
	// Cut into ranges of one page, read by several sessions, it adds up to the same.
	r := compare(t, source, target, Options{Workers: 3, rangePages: 1}, tb)
	want(t, r)
	if r.Tables[0].SourceRows != 5000 || r.Tables[0].TargetRows != 5000 {
		t.Errorf("rows %+v, want 5000 each", r.Tables[0])
	}
	pgtest.Exec(t, target, `UPDATE t SET a = b, b = a WHERE id = 4321`)
	want(t, compare(t, source, target, Options{Workers: 3, rangePages: 1}, tb), "different 4321")
}

func TestDifferencesByKey(t *testing.T) {
	source, target := two(t)
	ddl := `CREATE TABLE t (a int, b text, v text, PRIMARY KEY (a, b))`
	fill := `INSERT INTO t SELECT g, 'k' || g, g FROM generate_series(1, 20000) g`
	pgtest.Exec(t, source, ddl, fill)
	pgtest.Exec(t, target, ddl, fill)
	tb := table(t, source, "t", "a", "b")
	want(t, compare(t, source, target, Options{}, tb))
	pgtest.Exec(t, target, `DELETE FROM t WHERE a = 7`, `INSERT INTO t VALUES (90000, 'x y', '')`, `UPDATE t SET v = '' WHERE a = 19999`, `UPDATE t SET b = 'K8' WHERE a = 8`)
	r := compare(t, source, target, Options{}, tb)
	want(t, r, "missing (7,k7)", "extra (8,K8)", "missing (8,k8)", `extra (90000,"x y")`, "different (19999,k19999)")
	if r.Tables[0].Truncated || r.Tables[0].SourceRows != 20000 || r.Tables[0].TargetRows != 20000 {
		t.Errorf("result %+v", r.Tables[0])
	}
}

func TestListIsBounded(t *testing.T) {
	source, target := two(t)
	ddl := `CREATE TABLE t (id int PRIMARY KEY, v int)`
	pgtest.Exec(t, source, ddl, `INSERT INTO t SELECT g, g FROM generate_series(1, 100000) g`)
	pgtest.Exec(t, target, ddl, `INSERT INTO t SELECT g, g + 1 FROM generate_series(1, 100000) g`)
	tb := table(t, source, "t", "id")
	r := compare(t, source, target, Options{MaxKeys: 7}, tb)
	if tr := r.Tables[0]; len(tr.Differences) != 7 || !tr.Truncated || tr.Equal || r.Mismatches != 7 {
		t.Errorf("result %+v", r)
	}
	pgtest.Exec(t, target, `TRUNCATE t`)
	r = compare(t, source, target, Options{MaxKeys: 3}, tb)
	if tr := r.Tables[0]; len(tr.Differences) != 3 || tr.Differences[0].Kind != Missing || tr.TargetRows != 0 {
		t.Errorf("result %+v", r)
	}
	// As many as asked for and no more is not truncated.
	pgtest.Exec(t, target, `INSERT INTO t SELECT g, g FROM generate_series(4, 100000) g`)
	want(t, compare(t, source, target, Options{MaxKeys: 3}, tb), "missing 1", "missing 2", "missing 3")
}

func TestKeylessTablesAreMultisets(t *testing.T) {
	source, target := two(t)
	pgtest.Exec(t, source, `CREATE TABLE t (v text)`, `INSERT INTO t VALUES ('a'), ('a'), ('a'), ('b'), (NULL), ('')`)
	pgtest.Exec(t, target, `CREATE TABLE t (v text)`, `INSERT INTO t VALUES (''), ('b'), ('a'), (NULL), ('a'), ('a')`)
	tb := table(t, source, "t")
	want(t, compare(t, source, target, Options{}, tb))
	// The same number of rows and the same distinct ones, but not the same multiset.
	pgtest.Exec(t, target, `DELETE FROM t`, `INSERT INTO t VALUES ('a'), ('b'), ('b'), ('b'), (NULL), ('')`)
	r := compare(t, source, target, Options{}, tb)
	if d := r.Tables[0].Differences; len(d) != 2 || !strings.HasSuffix(d[0].Key, "2 time(s)") || !strings.HasSuffix(d[1].Key, "2 time(s)") || d[0].Kind == d[1].Kind {
		t.Errorf("differences %+v", d)
	}
}

// Two rows that exchange their values, and duplicates that a sum modulo two would cancel.
func TestSumsDoNotCancel(t *testing.T) {
	source, target := two(t)
	ddl := `CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE k (v text)`
	pgtest.Exec(t, source, ddl, `INSERT INTO t VALUES (1, 'x'), (2, 'y')`, `INSERT INTO k VALUES ('a'), ('a')`)
	pgtest.Exec(t, target, ddl, `INSERT INTO t VALUES (1, 'y'), (2, 'x')`, `INSERT INTO k VALUES ('b'), ('b')`)
	want(t, compare(t, source, target, Options{}, table(t, source, "t", "id")), "different 1", "different 2")
	if r := compare(t, source, target, Options{}, table(t, source, "k")); r.Tables[0].Equal {
		t.Error("pairs of equal rows cancel out")
	}
}

func TestGeneratedInheritedAndOddNames(t *testing.T) {
	source, target := two(t)
	for url, expr := range map[string]string{source: "n + 1", target: "n + 2"} {
		pgtest.Exec(t, url, `CREATE TABLE g (id int PRIMARY KEY, n int, next int GENERATED ALWAYS AS (`+expr+`) STORED)`, `INSERT INTO g VALUES (1, 1)`,
			`CREATE TABLE parent (id int PRIMARY KEY)`, `CREATE TABLE child () INHERITS (parent)`, `INSERT INTO parent VALUES (1)`,
			`CREATE TABLE "o'dd ""Name""" ("my key" int PRIMARY KEY, "?$1" text)`, `INSERT INTO "o'dd ""Name""" VALUES (1, '$1')`,
			`CREATE TABLE "empty" ()`)
	}
	pgtest.Exec(t, target, `INSERT INTO child VALUES (2)`)
	want(t, compare(t, source, target, Options{}, table(t, source, "g", "id")), "different 1")
	want(t, compare(t, source, target, Options{}, table(t, source, "parent", "id")))
	want(t, compare(t, source, target, Options{}, table(t, source, "child")), "extra row hash "+rowHash(t, target, "child")+", 1 time(s)")
	odd := replication.Table{Name: replication.TableName{Schema: "public", Name: `o'dd "Name"`}, Columns: []replication.Column{{Name: "my key"}, {Name: "?$1"}}, Key: []int{0}}
	want(t, compare(t, source, target, Options{}, odd))
	pgtest.Exec(t, target, `UPDATE "o'dd ""Name""" SET "?$1" = ''`)
	want(t, compare(t, source, target, Options{}, odd), "different 1")
	want(t, compare(t, source, target, Options{}, table(t, source, "empty")))
}

func rowHash(t *testing.T, url, name string) string {
	t.Helper()
	var h int64
	if err := pgtest.Connect(t, url).QueryRow(t.Context(), `SELECT hashtextextended(ROW(id)::text, 0) FROM `+name).Scan(&h); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%016x", uint64(h))
}

func TestEncodingsThatDiffer(t *testing.T) {
	s := pgtest.Shared(t)
	target := s.Database(t)
	pgtest.Exec(t, s.URL("postgres"), `CREATE DATABASE verify_latin1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0`)
	t.Cleanup(func() { pgtest.Exec(t, s.URL("postgres"), `DROP DATABASE verify_latin1 WITH (FORCE)`) })
	source := s.URL("verify_latin1")
	for _, url := range []string{source, target} {
		pgtest.Exec(t, url, `SET client_encoding = 'UTF8'`, `CREATE TABLE t (k text PRIMARY KEY, v text)`, `INSERT INTO t VALUES ('é', 'naïve'), ('ß', 'Straße')`)
	}
	tb := table(t, source, "t", "k")
	want(t, compare(t, source, target, Options{}, tb))
	pgtest.Exec(t, target, `UPDATE t SET v = 'naive' WHERE k = 'é'`)
	want(t, compare(t, source, target, Options{}, tb), "different é")
}

// What is compared is the callers' snapshots, not what the tables hold by now.
func TestSnapshotsAreRespected(t *testing.T) {
	source, target := two(t)
	for _, url := range []string{source, target} {
		pgtest.Exec(t, url, `CREATE TABLE t (id int PRIMARY KEY)`, `INSERT INTO t VALUES (1)`)
	}
	a, b := opener(t, source), opener(t, target)
	pgtest.Exec(t, target, `INSERT INTO t SELECT generate_series(2, 5000)`)
	r, err := Compare(t.Context(), a, b, []replication.Table{table(t, source, "t", "id")}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want(t, r)
}

func TestManyTablesAndTheirReport(t *testing.T) {
	source, target := two(t)
	var list []replication.Table
	var ddl []string
	for i := range 40 {
		name := fmt.Sprintf("t%d", i)
		ddl = append(ddl, fmt.Sprintf(`CREATE TABLE %s (id int PRIMARY KEY, v int)`, name), fmt.Sprintf(`INSERT INTO %s SELECT g, g FROM generate_series(1, 300) g`, name))
		list = append(list, tables([]string{name})...)
	}
	pgtest.Exec(t, source, ddl...)
	pgtest.Exec(t, target, ddl...)
	pgtest.Exec(t, target, `UPDATE t3 SET v = 0 WHERE id = 30`, `DELETE FROM t33 WHERE id IN (1, 2)`)
	var heard []string
	r := compare(t, source, target, Options{Workers: 4, OnTable: func(tr TableResult) { heard = append(heard, tr.Table.Name) }}, list...)
	if len(heard) != 40 || len(r.Tables) != 40 || r.Mismatches != 3 {
		t.Fatalf("%d heard, %d reported, %d mismatches", len(heard), len(r.Tables), r.Mismatches)
	}
	for i, tr := range r.Tables {
		if tr.Table != list[i].Name || !slices.Contains(heard, tr.Table.Name) || tr.Equal != (i != 3 && i != 33) {
			t.Errorf("table %d: %+v", i, tr)
		}
	}
}

func TestErrorsNameSideTableAndRemedy(t *testing.T) {
	source, target := two(t)
	pgtest.Exec(t, source, `CREATE TABLE t (id int PRIMARY KEY, v int)`, `CREATE TABLE u (id int)`)
	pgtest.Exec(t, target, `CREATE TABLE t (id int PRIMARY KEY)`)
	for name, parts := range map[string][]string{
		"t": {"public.t", "target", "bring the schema in line"},
		"u": {"public.u", "target", "create it there"},
	} {
		tb := table(t, source, name)
		released := 0
		count := func(o Opener) Opener {
			return func(ctx context.Context) (*pgx.Conn, func(), error) {
				c, release, err := o(ctx)
				return c, func() { released++; release() }, err
			}
		}
		_, err := Compare(t.Context(), count(opener(t, source)), count(opener(t, target)), []replication.Table{tb}, Options{Workers: 3})
		for _, p := range parts {
			if err == nil || !strings.Contains(err.Error(), p) {
				t.Errorf("%s: error %q doesn't say %q", name, err, p)
			}
		}
		if released != 6 {
			t.Errorf("%s: %d of 6 sessions released", name, released)
		}
	}
	reader := pgtest.Shared(t).HerokuOwner(t, target)
	_, err := Compare(t.Context(), opener(t, source), opener(t, reader), []replication.Table{{Name: replication.TableName{Schema: "public", Name: "t"}, Columns: []replication.Column{{Name: "id"}}}}, Options{})
	if err == nil || !strings.Contains(err.Error(), "grant this role SELECT") {
		t.Errorf("error %v", err)
	}
}
