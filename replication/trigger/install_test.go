package trigger_test

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
	"replicator/replication/schema"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

// appRole is a role that may do nothing but read and write the tables of schema public.
func (f *fixture) appRole() (url string) {
	f.t.Helper()
	app := f.server.LogicalOwner(f.t, f.super)
	role := userOf(f.t, app)
	pgtest.Exec(f.t, f.super, fmt.Sprintf(`ALTER DATABASE %q OWNER TO %s`, databaseOf(f.t, f.super), userOf(f.t, f.source)))
	f.exec("GRANT USAGE ON SCHEMA public TO "+role, "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO "+role,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "+role)
	return app
}

func userOf(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.User.Username()
}

func databaseOf(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

func TestUninstallLeavesNoTrace(t *testing.T) {
	f := newFixture(t, kinds)
	if err := state.Drop(f.ctx(), f.pool); err != nil {
		t.Fatal(err)
	}
	before := pgtest.DumpSchema(t, f.super)
	if err := state.Ensure(f.ctx(), f.pool); err != nil {
		t.Fatal(err)
	}
	f.begin()
	s := f.start(nil)
	f.run("insert")
	s.caughtUp()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	f.exec("DROP TABLE child") // its log is left without a table
	reader := pgtest.Connect(t, f.source)
	tx, err := reader.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT FROM plain"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- trigger.Uninstall(f.ctx(), f.pool, nil) }()
	// While a reader keeps it from dropping the trigger, others go on.
	eventually(t, "the other triggers are gone", func() bool {
		var n int
		err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_trigger WHERE tgname ~ '^replicator_'`).Scan(&n)
		return err == nil && n == 2
	})
	execAll(t, f.source, []string{`SET statement_timeout = '3s'`, `SELECT count(*) FROM plain`, `INSERT INTO plain (v) VALUES ('goes on')`})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := trigger.Uninstall(f.ctx(), f.pool, nil); err != nil {
		t.Fatal(err)
	}
	var left string
	if err := f.pool.QueryRow(t.Context(), `SELECT coalesce(string_agg(relname, ' '), '') FROM pg_class WHERE relnamespace = 'replicator'::regnamespace AND relname ~ 'capture'`).Scan(&left); err != nil || left != "" {
		t.Errorf("left: %q %v", left, err)
	}
	if err := state.Drop(f.ctx(), f.pool); err != nil {
		t.Fatal(err)
	}
	f.exec("CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, v text)")
	if after := pgtest.DumpSchema(t, f.super); after != before {
		t.Errorf("the schema is not what it was:\n%s", firstDifference(before, after))
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

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestInstallGoesOnWhereItEnded(t *testing.T) {
	f := newFixture(t, kinds)
	var err error
	if f.tables, err = schema.Tables(f.ctx(), f.pool, schema.Filter{}); err != nil {
		t.Fatal(err)
	}
	if made, err := trigger.Install(f.ctx(), f.pool, nil, f.tables[:3]); err != nil || len(made) != 3 {
		t.Fatalf("%v %v", made, err)
	}
	if made, err := trigger.Install(f.ctx(), f.pool, nil, f.tables); err != nil || len(made) != len(f.tables)-3 {
		t.Fatalf("%v %v", made, err)
	}
	if made, err := trigger.Install(f.ctx(), f.pool, nil, f.tables); err != nil || len(made) != 0 {
		t.Fatalf("%v %v", made, err)
	}
	// What was tampered with is made anew, and said.
	f.exec("ALTER TABLE plain DISABLE TRIGGER ALL; ALTER TABLE plain ENABLE TRIGGER ALL", "DROP TRIGGER replicator_capture_truncate ON keyless", "ALTER TABLE keyless ADD more int")
	if f.tables, err = schema.Tables(f.ctx(), f.pool, schema.Filter{}); err != nil {
		t.Fatal(err)
	}
	made, err := trigger.Install(f.ctx(), f.pool, nil, f.tables)
	if err != nil || fmt.Sprint(made) != "[public.keyless public.plain]" {
		t.Fatalf("%v %v", made, err)
	}
}

// A log in the form of before is converted with what it holds; no copy is void.
func TestAnEarlierLogIsConverted(t *testing.T) {
	f := newFixture(t, kinds)
	f.begin()
	f.exec(`DO $do$
DECLARE n oid := 'plain'::regclass; comment text;
BEGIN
  SELECT substring(prosrc from '-- replicator capture: [^\n]*') INTO STRICT comment FROM pg_proc WHERE proname = 'capture_' || n;
  EXECUTE format('DROP TABLE replicator.capture_%1$s_0, replicator.capture_%1$s_1', n);
  EXECUTE format('CREATE TABLE replicator.capture_%1$s_0 (xid xid8 NOT NULL, op "char" NOT NULL, k0 integer NOT NULL)', n);
  EXECUTE format('CREATE TABLE replicator.capture_%1$s_1 (xid xid8 NOT NULL, op "char" NOT NULL, k0 integer NOT NULL)', n);
  EXECUTE format('CREATE OR REPLACE FUNCTION replicator.capture_%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L', n,
    replace(replace(comment, ',"form":2', ''), '"slot":0', '"slot":1') || E'\n' || format('BEGIN
  IF TG_OP = ''UPDATE'' AND OLD.id = NEW.id THEN INSERT INTO replicator.capture_%1$s_1 VALUES (pg_current_xact_id(), ''U'', NEW.id); RETURN NULL; END IF;
  IF TG_OP <> ''INSERT'' THEN INSERT INTO replicator.capture_%1$s_1 VALUES (pg_current_xact_id(), ''D'', OLD.id); END IF;
  IF TG_OP <> ''DELETE'' THEN INSERT INTO replicator.capture_%1$s_1 VALUES (pg_current_xact_id(), ''I'', NEW.id); END IF;
  RETURN NULL;
END', n));
END $do$`)
	write := []string{`INSERT INTO plain (id, v) VALUES (701, 'a'), (702, 'b'), (703, 'c')`, `UPDATE plain SET v = 'u' WHERE id IN (1, 2, 701)`,
		`UPDATE plain SET id = id + 100 WHERE id IN (2, 702)`, `DELETE FROM plain WHERE id IN (3, 703)`}
	execAll(t, f.source, write)
	for range 2 {
		if err := trigger.Convert(f.ctx(), f.pool, nil, f.tables); err != nil {
			t.Fatal(err)
		}
		if made, err := trigger.Install(f.ctx(), f.pool, nil, f.tables); err != nil || len(made) != 0 {
			t.Fatalf("Install: %v %v", made, err)
		}
	}
	var rows, slot int
	if err := f.pool.QueryRow(t.Context(), `SELECT (xpath('//c/text()', query_to_xml('SELECT count(*) AS c FROM replicator.capture_' || p.oid || '_1 WHERE o0 IS NOT NULL OR k0 IS NOT NULL', false, true, '')))[1]::text::int,
		substring(prosrc from '"slot":(.)')::int FROM (SELECT 'public.plain'::regclass::oid) p(oid) JOIN pg_proc ON proname = 'capture_' || p.oid`).Scan(&rows, &slot); err != nil || rows != 12 || slot != 1 {
		t.Fatalf("%d rows in slot 1, written to: %d, %v", rows, slot, err)
	}
	execAll(t, f.source, []string{`UPDATE plain SET v = 'after' WHERE id IN (102, 701)`, `DELETE FROM plain WHERE id = 802`, `INSERT INTO plain (id, v) VALUES (3, 'again')`})
	s := f.start(nil)
	s.caughtUp()
	f.equal()
}

// Installing and uninstalling under load: every change after Install is logged, nobody waits for long.
func TestInstallUnderLoad(t *testing.T) {
	f := newFixture(t, `CREATE TABLE a (id bigserial PRIMARY KEY, v int); CREATE TABLE b (id bigserial PRIMARY KEY, v int)`)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var longest atomic.Int64
	var count atomic.Int64
	for i := range 4 {
		conn := pgtest.Connect(t, f.source)
		wg.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				_, err := conn.Exec(context.Background(), fmt.Sprintf("WITH x AS (INSERT INTO a (v) VALUES (%d) RETURNING id) INSERT INTO b SELECT id, pg_sleep(0.005) IS NULL::int::bool::int FROM x", i))
				if err != nil {
					_, err = conn.Exec(context.Background(), fmt.Sprintf("INSERT INTO a (v) VALUES (%d)", i))
				}
				if err != nil {
					t.Errorf("write: %v", err)
					return
				}
				count.Add(1)
				longest.Store(max(longest.Load(), int64(time.Since(began))))
			}
		})
	}
	f.begin()
	s := f.start(nil)
	s.caughtUp()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := trigger.Uninstall(f.ctx(), f.pool, nil); err != nil {
		t.Fatal(err)
	}
	cancel()
	wg.Wait()
	if d := time.Duration(longest.Load()); d > 3*time.Second || count.Load() == 0 {
		t.Errorf("the longest of %d writes took %v", count.Load(), d)
	}
}

func TestRefusedTablesNameTheRemedy(t *testing.T) {
	f := newFixture(t, `CREATE TABLE mine (id int PRIMARY KEY); CREATE TABLE forced (id int PRIMARY KEY); CREATE TABLE keyless (v text);
		ALTER TABLE forced ENABLE ROW LEVEL SECURITY; ALTER TABLE forced FORCE ROW LEVEL SECURITY`)
	pgtest.Exec(t, f.super, `CREATE TABLE foreigners (id int PRIMARY KEY)`)
	tables, err := schema.Tables(f.ctx(), f.pool, schema.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	findings, err := trigger.Check(f.ctx(), f.pool, tables)
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(findings)
	for _, want := range []string{"NO FORCE ROW LEVEL SECURITY", "foreigners", "OWNER TO", "public.keyless", "add a primary key"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	if preflight.Worst(findings) != preflight.Error {
		t.Error("no finding is an error")
	}
	if _, err := trigger.Install(f.ctx(), f.pool, nil, tables); err == nil || !strings.Contains(err.Error(), "foreigners") || !strings.Contains(err.Error(), "NO FORCE") {
		t.Errorf("Install: %v", err)
	}
	var n int
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_trigger WHERE tgname ~ '^replicator_'`).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d triggers were made before the refusal: %v", n, err)
	}
}

// The application sees no difference: command tags, RETURNING, and a role without any right to our schema.
func TestTheApplicationSeesNoDifference(t *testing.T) {
	f := newFixture(t, kinds)
	statements := []string{
		`INSERT INTO plain (id, v) VALUES (901, 'a'), (902, 'b') RETURNING id, v`,
		`INSERT INTO plain (id, v) VALUES (901, 'a') ON CONFLICT (id) DO UPDATE SET v = excluded.v || 'x' RETURNING v`,
		`INSERT INTO plain (id) VALUES (901) ON CONFLICT DO NOTHING`,
		`UPDATE plain SET id = id + 10 WHERE id IN (901, 902) RETURNING id`,
		`WITH d AS (DELETE FROM plain WHERE id = 911 RETURNING v) SELECT * FROM d`,
		`DELETE FROM plain WHERE id = 912`,
		`INSERT INTO keyless VALUES (1), (1) RETURNING a`,
		`UPDATE keyless SET a = 2`,
		`DELETE FROM keyless RETURNING *`,
		`UPDATE parent SET id = id + 1000`,
		`UPDATE parts SET at = at RETURNING tableoid::regclass`,
		`TRUNCATE keyless`,
		`INSERT INTO animals VALUES ('x', 1)`, `DELETE FROM animals`,
	}
	app := f.appRole()
	play := func() (out []string) {
		conn := pgtest.Connect(t, app)
		for _, sql := range statements {
			for _, r := range must(conn.PgConn().Exec(t.Context(), sql).ReadAll())(t) {
				out = append(out, fmt.Sprintf("%s %s %q", sql, r.CommandTag, r.Rows))
			}
		}
		return out
	}
	f.exec(`CREATE TABLE keep AS TABLE parent`)
	before := play()
	f.exec(`UPDATE parent SET id = id - 1000`, `DROP TABLE keep`)
	f.begin()
	after := play()
	if fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("before: %q\nafter: %q", before, after)
	}
	s := f.start(nil)
	s.caughtUp()
	f.equal()
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
