package trigger_test

import (
	"fmt"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/trigger"
)

const keyedTwice = `
CREATE TABLE k (a int NOT NULL, b int NOT NULL, v text, CONSTRAINT k_key UNIQUE (a, b));
CREATE TABLE other (id int PRIMARY KEY);
INSERT INTO k SELECT i, i, 'v' FROM generate_series(1, 20) i;
`

func (f *fixture) uncaptured() []replication.TableName {
	f.t.Helper()
	tables, err := schema.Tables(f.ctx(), f.pool, schema.Filter{})
	if err != nil {
		f.t.Fatal(err)
	}
	out, err := trigger.Uncaptured(f.ctx(), f.pool, tables)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// A log by key is worth something as long as an index keeps the key unique, at once and for all rows. Without, two rows of one key would both be
// taken for new. The stream stops before it delivers anything, and the table is named as one whose log must be made anew.
func TestAKeyMustStayUnique(t *testing.T) {
	const drop, again = `ALTER TABLE k DROP CONSTRAINT k_key; `, `; INSERT INTO k VALUES (1, 1, 'again')`
	for name, c := range map[string]struct {
		ddl    string
		unique bool
	}{
		"dropped":                     {drop + again, false},
		"deferrable":                  {drop + `ALTER TABLE k ADD UNIQUE (a, b) DEFERRABLE`, false},
		"partial":                     {drop + `CREATE UNIQUE INDEX ON k (a, b) WHERE a > 1` + again, false},
		"of an expression":            {drop + `CREATE UNIQUE INDEX ON k (a, abs(b))`, false},
		"of more columns":             {drop + `CREATE UNIQUE INDEX ON k (a, b, v)` + again, false},
		"only included":               {drop + `CREATE UNIQUE INDEX ON k (v) INCLUDE (a, b)`, false},
		"not unique":                  {drop + `CREATE INDEX ON k (a, b)` + again, false},
		"nullable":                    {`ALTER TABLE k ALTER a DROP NOT NULL`, false},
		"by another index":            {`CREATE UNIQUE INDEX ON k (b, a) INCLUDE (v); ` + drop, true},
		"by the primary key":          {drop + `ALTER TABLE k ADD PRIMARY KEY (a, b)`, true},
		"by one of its columns alone": {drop + `ALTER TABLE k ADD UNIQUE (b)`, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, keyedTwice+`UPDATE k SET v = v || a`)
			f.begin()
			s := f.start(nil)
			f.exec(`UPDATE k SET v = v || '!' WHERE a < 5`)
			s.caughtUp()
			for _, url := range []string{f.source, f.target} {
				pgtest.Exec(t, url, drop) // so that nothing but the capture can notice
			}
			pgtest.Exec(t, f.source, `ALTER TABLE k ADD CONSTRAINT k_key UNIQUE (a, b)`)
			f.exec(c.ddl, `INSERT INTO other VALUES (1); UPDATE k SET v = 'u' WHERE a = 2`)
			if c.unique {
				s.caughtUp()
				f.equal()
				if got := f.uncaptured(); len(got) > 0 {
					t.Errorf("%v are taken for uncaptured", got)
				}
				return
			}
			wantCode(t, s.failure(), "capture-altered", "public.k")
			var n int
			if err := f.there.QueryRow(t.Context(), `SELECT count(*) + (SELECT count(*) FROM public.other) FROM public.k`).Scan(&n); err != nil || n != 20 {
				t.Errorf("something of the window was applied: %d rows (%v), want 20", n, err)
			}
			if got := f.uncaptured(); fmt.Sprint(got) != "[public.k]" {
				t.Errorf("uncaptured are %v, want public.k", got)
			}
		})
	}
}

// A table without key is logged by its columns: one that is added, gone or renamed makes the log one that must be made anew.
func TestAnUnkeyedTablesColumns(t *testing.T) {
	f := newFixture(t, `CREATE TABLE keyless (a int, v text, d int GENERATED ALWAYS AS (a * 2) STORED); CREATE TABLE deferred (a int PRIMARY KEY DEFERRABLE, v text)`)
	f.install()
	for _, table := range []string{"keyless", "deferred"} {
		f.exec(`ALTER TABLE ` + table + ` ALTER v SET DEFAULT 'x'`)
		if got := f.uncaptured(); len(got) != 0 {
			t.Errorf("a default: uncaptured are %v", got)
		}
		for _, change := range []string{`ADD n int`, `RENAME v TO w`, `DROP w`, `ADD v text`} {
			f.exec(`ALTER TABLE ` + table + ` ` + change)
			if got := f.uncaptured(); fmt.Sprint(got) != "[public."+table+"]" {
				t.Errorf("%s %s: uncaptured are %v", table, change, got)
			}
			f.install()
			if got := f.uncaptured(); len(got) != 0 {
				t.Errorf("%s %s: uncaptured are %v after Install", table, change, got)
			}
		}
	}
}
