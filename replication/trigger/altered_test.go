package trigger_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

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

// Where the sides differ, that is told, with the statement that mends it, rather than that the log has become useless.
func TestDriftIsToldBeforeWhatWasAltered(t *testing.T) {
	f := newFixture(t, few)
	drifted := errors.New("drifted")
	f.o.DriftEvery = time.Hour
	f.o.Drift = func(ctx context.Context, q trigger.Querier) error {
		var n int
		if err := q.QueryRow(ctx, `SELECT count(*) FROM pg_attribute WHERE attrelid = 'public.keyless'::regclass AND attname = 'more'`).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return drifted
		}
		return nil
	}
	f.begin()
	s := f.start(nil)
	f.exec(`INSERT INTO keyless VALUES (1)`)
	s.caughtUp()
	f.exec(`ALTER TABLE keyless ADD more int; INSERT INTO keyless VALUES (2)`)
	if err := s.failure(); !errors.Is(err, drifted) {
		t.Errorf("ended with %v", err)
	}
}

// What Silence gives up is neither delivered with holes nor taken up again by a stream that goes on, and Install makes it good.
func TestSilence(t *testing.T) {
	f := newFixture(t, few)
	f.o.RotateBytes, f.o.UpkeepEvery = 8<<10, time.Millisecond // the function is replaced all the time
	f.begin()
	s := f.start(nil)
	f.exec(`INSERT INTO plain (v) SELECT 'v' FROM generate_series(1, 3000)`)
	s.caughtUp()
	var oid uint32
	for _, table := range f.tables {
		if table.Name.Name == "plain" {
			oid = table.OID
		}
	}
	f.exec(`ALTER TABLE plain RENAME id TO ident`)
	lost, failing, err := trigger.Lost(f.ctx(), f.pool)
	if err != nil || fmt.Sprint(lost, failing) != fmt.Sprintf("[public.plain] [%d]", oid) {
		t.Errorf("lost are %v, failing %v (%v)", lost, failing, err)
	}
	if err := trigger.Silence(f.ctx(), f.pool, oid, 1); err != nil {
		t.Fatal(err)
	}
	f.exec(`INSERT INTO plain (v) VALUES ('silent')`, `ALTER TABLE plain RENAME ident TO id`, `INSERT INTO parent VALUES (99)`)
	if s.failure() == nil {
		t.Fatal("the stream goes on")
	}
	var n int
	if err := f.there.QueryRow(t.Context(), `SELECT count(*) FROM public.parent`).Scan(&n); err != nil || n != 0 {
		t.Errorf("a window that sees the end of the capture was applied: %d %v", n, err)
	}
	wantCode(t, f.start(nil).failure(), "capture-lost", "public.plain")
	if got := f.uncaptured(); fmt.Sprint(got) != "[public.plain]" {
		t.Errorf("uncaptured are %v", got)
	}
	if lost, failing, err = trigger.Lost(f.ctx(), f.pool); err != nil || fmt.Sprint(lost, failing) != "[public.plain] []" {
		t.Errorf("lost are %v, failing %v (%v)", lost, failing, err)
	}
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_proc WHERE proname = 'capture_1'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("a function was made for a table that isn't captured: %d %v", n, err)
	}
	if _, err := f.there.Exec(f.ctx(), `TRUNCATE public.plain`); err != nil {
		t.Fatal(err)
	}
	f.install()
	if got := f.uncaptured(); len(got) != 0 {
		t.Errorf("uncaptured are %v after Install", got)
	}
	for _, table := range f.tables {
		if table.OID == oid {
			f.copy([]replication.Table{table})
		}
	}
	s = f.start(nil)
	f.exec(`INSERT INTO plain (v) VALUES ('later')`)
	s.caughtUp()
	f.equal()
}
