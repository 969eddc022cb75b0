package trigger_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// hostile makes a schema of the session's own in which whatever the capture functions name has a namesake, for the very types that they name it
// with. A namesake that is called fails; a table takes the rows.
func (f *fixture) hostile(evil *pgx.Conn) {
	f.t.Helper()
	// Names are looked for only in schemas that the role whose rights the function has may use.
	sql := []string{`GRANT USAGE ON SCHEMA evil TO PUBLIC`}
	boom := func(name, args, returns string) {
		sql = append(sql, fmt.Sprintf(`CREATE FUNCTION evil.%s(%s) RETURNS %s LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''hijacked as %%'', current_user; END'`, name, args, returns))
	}
	pairs := [][2]string{{"oid", "integer"}, {"oid", "bigint"}, {"oid", "oid"}, {"text", "text"}, {"text[]", "text[]"}, {"record", "record"}, {"name", "text"},
		{"integer", "integer"}, {"bigint", "bigint"}, {"boolean", "boolean"}}
	for _, p := range pairs {
		boom("boom", "pg_catalog."+`"`+internal(p[0])+`"`+", pg_catalog."+`"`+internal(p[1])+`"`, "boolean")
		for _, operator := range []string{"=", "<>"} {
			sql = append(sql, fmt.Sprintf(`CREATE OPERATOR evil.%s (LEFTARG = pg_catalog."%s", RIGHTARG = pg_catalog."%s", FUNCTION = evil.boom)`, operator, internal(p[0]), internal(p[1])))
		}
	}
	boom("pg_current_xact_id", "", "pg_catalog.xid8")
	for _, arg := range []string{"text", "int4", "int8", "float8", "json", "bpchar", "timestamptz", "date", "uuid", "numeric", "varchar"} {
		boom("format", `pg_catalog.text, pg_catalog."`+arg+`"`, "pg_catalog.text")
	}
	boom("format", "pg_catalog.text, public.mood", "pg_catalog.text")
	boom("format", "pg_catalog.text, public.code", "pg_catalog.text")
	boom("format", "pg_catalog.text, public.citext", "pg_catalog.text")
	// A type that the hostile role owns may be cast to from any other, even by itself.
	sql = append(sql, `CREATE TYPE evil.carrier AS (o pg_catalog.oid)`)
	boom("carry", "pg_catalog.oid", "evil.carrier")
	boom("boom", "evil.carrier, pg_catalog.int4", "boolean")
	sql = append(sql, `CREATE CAST (pg_catalog.oid AS evil.carrier) WITH FUNCTION evil.carry(pg_catalog.oid) AS IMPLICIT`,
		`CREATE OPERATOR evil.= (LEFTARG = evil.carrier, RIGHTARG = pg_catalog.int4, FUNCTION = evil.boom)`)
	for _, schema := range []string{"evil", "pg_temp"} {
		for _, name := range []string{"text", "xid8", "int4", "oid", "trigger"} {
			sql = append(sql, fmt.Sprintf(`CREATE DOMAIN %s.%s AS pg_catalog.text CHECK (VALUE IS NULL)`, schema, name))
		}
	}
	for _, table := range f.tables {
		var kind string
		if err := f.pool.QueryRow(f.t.Context(), `SELECT string_agg(quote_ident(attname) || ' ' || CASE WHEN atttypid < 16384 THEN format_type(atttypid, atttypmod) ELSE 'pg_catalog.text' END, ', ')
			FROM pg_attribute WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`, fmt.Sprintf("replicator.capture_%d_0", table.OID)).Scan(&kind); err != nil {
			f.t.Fatal(err)
		}
		kind = strings.NewReplacer(" xid8", " pg_catalog.xid8", " text", " pg_catalog.text").Replace(kind)
		for slot := range 2 {
			sql = append(sql, fmt.Sprintf(`CREATE TEMP TABLE capture_%d_%d (%s)`, table.OID, slot, kind))
		}
	}
	sql = append(sql, `CREATE TEMP TABLE capture_truncated (xid pg_catalog.xid8, relid pg_catalog.oid)`)
	for _, s := range sql {
		if _, err := evil.Exec(f.t.Context(), s); err != nil {
			f.t.Fatalf("%s: %v", s, err)
		}
	}
}

// internal is a type's name in pg_type.
func internal(typ string) string {
	names := map[string]string{"integer": "int4", "bigint": "int8", "boolean": "bool", "text[]": "_text"}
	if n, ok := names[typ]; ok {
		return n
	}
	return typ
}

// A hostile role with its own operators, functions, types, casts and temporary objects before the server's in its search_path can't make the capture
// functions, which run with their owner's rights, do anything else, and can't use them for tables of its own.
func TestSearchPathCannotHijackTheCapture(t *testing.T) {
	f := newFixture(t, kinds)
	app := f.appRole()
	role := userOf(t, app)
	pgtest.Exec(t, f.super, fmt.Sprintf(`CREATE SCHEMA evil AUTHORIZATION %s`, role))
	f.begin()
	f.exec("GRANT USAGE ON SCHEMA public TO " + role)
	evil := pgtest.Connect(t, app)
	f.hostile(evil)
	for round, path := range []string{"evil, pg_temp, pg_catalog, public", "pg_temp, evil, pg_catalog"} {
		for _, sql := range []string{
			`SET search_path = ` + path, `DISCARD PLANS`,
			fmt.Sprintf(`INSERT INTO public.plain (id, v) VALUES (60%d, 'a')`, round), `UPDATE public.plain SET v = 'b'`,
			fmt.Sprintf(`UPDATE public.plain SET id = 61%d WHERE id OPERATOR(pg_catalog.=) 60%d`, round, round),
			fmt.Sprintf(`DELETE FROM public.plain WHERE id OPERATOR(pg_catalog.=) %d`, 3+round),
			`INSERT INTO public.keyless VALUES (1, 'x')`, `UPDATE public.keyless SET v = 'y'`, `DELETE FROM public.keyless WHERE v OPERATOR(pg_catalog.=) 'x'`,
			fmt.Sprintf(`INSERT INTO public.enumkey VALUES ('sad', 'k%d')`, round), fmt.Sprintf(`UPDATE public.enumkey SET m = 'ok' WHERE c OPERATOR(pg_catalog.=) 'k%d'`, round),
			fmt.Sprintf(`INSERT INTO public.citextkey VALUES ('c%d', 'x')`, round), `TRUNCATE public.secured`,
		} {
			if _, err := evil.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Errorf("search_path %s: %s: %v", path, sql, err)
			}
		}
	}
	for _, table := range f.tables {
		var n int
		if err := evil.QueryRow(t.Context(), fmt.Sprintf(`SELECT pg_catalog.count(*) FROM (TABLE pg_temp.capture_%d_0 UNION ALL TABLE pg_temp.capture_%d_1) x`, table.OID, table.OID), pgx.QueryExecModeSimpleProtocol).Scan(&n); err != nil || n > 0 {
			t.Errorf("%d changes of %s were logged in a temporary table of theirs: %v", n, table.Name, err)
		}
	}
	f.refuseTheirTriggers(evil, role)
	s := f.start(nil)
	s.caughtUp()
	f.equal()
}

// refuseTheirTriggers tries to have the capture functions serve tables of a role's own.
func (f *fixture) refuseTheirTriggers(evil *pgx.Conn, role string) {
	f.t.Helper()
	t := f.t
	var oid uint32
	for _, table := range f.tables {
		if table.Name.Name == "parent" {
			oid = table.OID
		}
	}
	for _, sql := range []string{
		`CREATE TABLE evil.bait (id integer); CREATE TRIGGER x AFTER INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION replicator.capture_` + fmt.Sprint(oid) + `()`,
		`CREATE TABLE evil.bait (id integer); CREATE TRIGGER x AFTER TRUNCATE ON evil.bait EXECUTE FUNCTION replicator.capture_truncate()`,
		`INSERT INTO replicator.capture_` + fmt.Sprint(oid) + `_0 VALUES ('3', 'D', 1)`,
		`TABLE replicator.capture_truncated`,
	} {
		if _, err := evil.PgConn().Exec(t.Context(), sql).ReadAll(); postgres.Code(err) != postgres.CodeInsufficientPriv {
			t.Errorf("%s: %v, want a refusal", sql, err)
		}
	}
	// Even with the right to execute it: the function serves its own table only.
	f.exec("GRANT USAGE ON SCHEMA replicator TO " + role + "; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA replicator TO " + role)
	_, err := evil.PgConn().Exec(t.Context(), `CREATE TABLE evil.bait (id integer); CREATE TRIGGER x AFTER INSERT ON evil.bait FOR EACH ROW EXECUTE FUNCTION replicator.capture_`+fmt.Sprint(oid)+`(); INSERT INTO evil.bait VALUES (1)`).ReadAll()
	if postgres.Code(err) != "23502" || !strings.Contains(err.Error(), `"xid"`) {
		t.Errorf("a trigger of their own: %v", err)
	}
}

var (
	calls     = regexp.MustCompile(`[a-z_."][\w."]*\(`)
	literals  = regexp.MustCompile(`'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|OPERATOR\(pg_catalog\.[^)]*\)|:=|::`)
	operators = regexp.MustCompile(`[=<>~!@#%^&|+*/-]+`)
	types     = regexp.MustCompile(`(?m)(?:::|^  (?:old|new)_row )([a-z][\w.]*)`)
)

// Those functions that pin a search_path are safe behind it; they name everything with its schema all the same, since what pins may go for speed.
func TestCaptureFunctionsNameSchemas(t *testing.T) {
	f := newFixture(t, kinds)
	f.begin()
	rows, err := f.pool.Query(t.Context(), `SELECT proname::text, prosrc, coalesce(array_to_string(proconfig, ' '), '') FROM pg_proc WHERE pronamespace = 'replicator'::regnamespace AND proname ~ '^capture_'`)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	var name, body, pinned string
	if _, err := pgx.ForEachRow(rows, []any{&name, &body, &pinned}, func() error {
		seen++
		bare := literals.ReplaceAllString(body, " ")
		for _, call := range calls.FindAllString(bare, -1) {
			if !strings.HasPrefix(call, "pg_catalog.") {
				t.Errorf("%s calls %s without its schema", name, call)
			}
		}
		if o := operators.FindAllString(bare, -1); len(o) > 0 {
			t.Errorf("%s uses the operators %q without their schema", name, o)
		}
		for _, typ := range types.FindAllStringSubmatch(body, -1) {
			if !strings.HasPrefix(typ[1], "pg_catalog.") {
				t.Errorf("%s names the type %s without its schema", name, typ[1])
			}
		}
		if strings.Contains(pinned, "search_path") && !strings.Contains(pinned, "search_path=pg_catalog, pg_temp") {
			t.Errorf("%s pins %s: pg_temp has to be named, as the last, or comes first", name, pinned)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if seen < len(f.tables) {
		t.Fatalf("%d functions for %d tables", seen, len(f.tables))
	}
}

// Whoever writes is captured: a role that sees and writes only the rows that a policy lets it, one that writes through somebody else's SECURITY DEFINER
// function and may not write by itself, and a member of the owner's role.
func TestWhoeverWritesIsCaptured(t *testing.T) {
	f := newFixture(t, `CREATE TABLE mine (id int PRIMARY KEY, owner text, v text); CREATE TABLE keyless (owner text, v text); CREATE TABLE audit (id bigserial PRIMARY KEY, by text);
		INSERT INTO mine SELECT i, 'somebody', 'v' FROM generate_series(1, 20) i;
		ALTER TABLE mine ENABLE ROW LEVEL SECURITY; ALTER TABLE keyless ENABLE ROW LEVEL SECURITY;
		CREATE POLICY own ON mine USING (owner = current_user); CREATE POLICY own ON keyless USING (owner = current_user)`)
	app := f.appRole()
	definer, member := f.server.LogicalOwner(t, f.super), f.server.LogicalOwner(t, f.super)
	owner := userOf(t, f.source)
	pgtest.Exec(t, f.super, fmt.Sprintf(`ALTER DATABASE %q OWNER TO %s; GRANT %s TO %s; CREATE SCHEMA theirs AUTHORIZATION %s`, databaseOf(t, f.super), owner, owner, userOf(t, member), userOf(t, definer)))
	f.exec(fmt.Sprintf(`GRANT INSERT ON audit TO %[1]s; GRANT USAGE ON SEQUENCE audit_id_seq TO %[1]s; REVOKE ALL ON audit FROM %[2]s`, userOf(t, definer), userOf(t, app)))
	pgtest.Exec(t, definer, fmt.Sprintf(`CREATE FUNCTION theirs.note() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_temp AS 'INSERT INTO public.audit (by) VALUES (current_user || '' for '' || session_user)'; GRANT USAGE ON SCHEMA theirs TO %s`, userOf(t, app)))
	f.begin()
	conn := pgtest.Connect(t, app)
	for _, sql := range []string{
		`INSERT INTO mine VALUES (100, current_user, 'a'), (101, current_user, 'b')`, `UPDATE mine SET v = 'seen'`, `UPDATE mine SET id = 200 WHERE id = 100`, `DELETE FROM mine WHERE id = 101`,
		`INSERT INTO keyless VALUES (current_user, 'a'), (current_user, 'b')`, `UPDATE keyless SET v = 'c' WHERE v = 'a'`, `DELETE FROM keyless WHERE v = 'b'`,
		`SELECT theirs.note()`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if _, err := conn.Exec(t.Context(), `INSERT INTO audit (by) VALUES ('by itself')`); postgres.Code(err) != postgres.CodeInsufficientPriv {
		t.Errorf("the role may write to audit by itself: %v", err)
	}
	execAll(t, member, []string{`UPDATE mine SET v = 'of a member' WHERE id < 5`, `SET ROLE ` + owner, `UPDATE mine SET v = 'as the owner' WHERE id BETWEEN 5 AND 9`, `TRUNCATE audit`, `INSERT INTO audit (by) VALUES ('the owner')`})
	execAll(t, app, []string{`SELECT theirs.note()`})
	s := f.start(nil)
	s.caughtUp()
	f.equal()
	var got string
	if err := f.there.QueryRow(context.Background(), `SELECT (SELECT count(*) FROM public.mine WHERE v = 'seen') || ' ' || (SELECT count(*) FROM public.mine WHERE v = 'as the owner') || ' ' || (SELECT count(*) FROM public.keyless) || ' ' || (SELECT count(*) FROM public.audit)`).Scan(&got); err != nil {
		t.Fatal(err)
	}
	if got != "1 5 1 2" {
		t.Errorf("the target holds %s rows of each, want 1 5 1 2", got)
	}
}
