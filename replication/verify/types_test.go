package verify

import (
	"fmt"
	"strings"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// values are pairs of values of a type that differ by as little as the type allows, or that a sloppy comparison takes for equal.
var values = []struct{ kind, a, b string }{
	{"smallint", "1", "2"},
	{"bigint", "9223372036854775807", "9223372036854775806"},
	{"numeric", "1.0", "1.00"},
	{"numeric", "'NaN'", "0"},
	{"numeric", "0.1", "0.10000000000000000000000000000000000001"},
	{"real", "1.0000002", "1.0000001"},
	{"double precision", "0.1", "0.10000000000000002"},
	{"double precision", "0.0", "'-0'"},
	{"double precision", "'Infinity'", "'-Infinity'"},
	{"double precision", "'NaN'", "'Infinity'"},
	{"double precision", "5e-324", "0"},
	{"boolean", "true", "false"},
	{"text", "''", "NULL"},
	{"text", "'null'", "NULL"},
	{"text", "'a'", "'A'"},
	{"text", "'a'", "'a '"},
	{"text", "E'\\u00e9'", "E'e\\u0301'"},
	{"text", "'a,b'", "'\"a,b\"'"},
	{"text", "E'a\\nb'", "E'a\\\\nb'"},
	{"varchar(20)", "'x'", "'x '"},
	{"char(5)", "'ab'", "'abc'"},
	{`"char"`, "'a'", "'b'"},
	{"name", "'n'", "'m'"},
	{"bytea", `'\x00ff'`, `'\x00fe'`},
	{"bytea", `''`, `'\x00'`},
	{"date", "'infinity'", "'-infinity'"},
	{"date", "'2024-02-29'", "'0044-03-15 BC'"},
	{"time", "'00:00'", "'24:00'"},
	{"timetz", "'10:00+02'", "'09:00+01'"},
	{"timestamp", "'infinity'", "'294276-12-31 23:59:59.999999'"},
	{"timestamp", "'2024-01-01 00:00:00'", "'2024-01-01 00:00:00.000001'"},
	{"timestamptz", "'2024-01-01 00:00+00'", "'2024-01-01 00:00+01'"},
	{"interval", "'1 mon'", "'30 days'"},
	{"interval", "'24:00'", "'1 day'"},
	{"money", "1234.56", "1234.57"},
	{"uuid", "'00000000-0000-0000-0000-000000000000'", "'00000000-0000-0000-0000-000000000001'"},
	{"json", `'{"a": 1}'`, `'{"a":1}'`},
	{"jsonb", `'{"a": 1.0}'`, `'{"a": 1.00}'`},
	{"jsonb", `'null'`, `NULL`},
	{"jsonb", `'[1,"2"]'`, `'["1",2]'`},
	{"xml", `'<a>1</a>'`, `'<a>1</a><b/>'`},
	{"inet", "'10.0.0.1'", "'10.0.0.1/8'"},
	{"cidr", "'10.0.0.0/8'", "'10.0.0.0/9'"},
	{"macaddr", "'08:00:2b:01:02:03'", "'08:00:2b:01:02:04'"},
	{"bit(4)", "B'1010'", "B'1011'"},
	{"varbit", "B'1'", "B'10'"},
	{"point", "'(1,2)'", "'(2,1)'"},
	{"polygon", "'((0,0),(1,1),(1,0))'", "'((0,0),(1,1),(1,0.0000001))'"},
	{"int4range", "'[1,5)'", "'[1,5]'"},
	{"numrange", "'(,1]'", "'empty'"},
	{"tstzrange", "'[2024-01-01,infinity)'", "'[2024-01-01,)'"},
	{"int[]", "'{1,2}'", "'{2,1}'"},
	{"int[]", "'{1}'", "'[0:0]={1}'"},
	{"int[]", "'{}'", "NULL"},
	{"text[]", "ARRAY[NULL]", "ARRAY['NULL']"},
	{"text[]", "ARRAY['']", "ARRAY[]::text[]"},
	{"float8[]", "'{0.1}'", "'{0.10000000000000002}'"},
	{"tsvector", "'a:1'", "'a:2'"},
	{"tsquery", "'a & b'", "'a | b'"},
	{"pg_lsn", "'0/1'", "'0/2'"},
	{"oid", "1", "4294967295"},
	{"regclass", "'pg_class'", "'pg_proc'"},
	{"mood", "'sad'", "'ok'"},
	{"citext", "'a'", "'A'"},
	{"hstore", "'a=>1'", "'a=>NULL'"},
	{"positive", "1", "2"},
	{"pair", "ROW(1,NULL)", "ROW(1,'')"},
	{"pair[]", "ARRAY[ROW(1,'a,b')::pair]", "ARRAY[ROW(1,'a')::pair]"},
}

var typeSchema = []string{
	`CREATE EXTENSION citext`,
	`CREATE EXTENSION hstore`,
	`CREATE TYPE mood AS ENUM ('sad', 'ok')`,
	`CREATE DOMAIN positive AS int CHECK (VALUE > 0)`,
	`CREATE TYPE pair AS (n int, t text)`,
}

// differentSettings are what a careless database hands to every session: none may show.
func differentSettings(t *testing.T, url string) {
	t.Helper()
	for _, s := range []string{"datestyle = 'German, DMY'", "intervalstyle = 'iso_8601'", "extra_float_digits = -5", "timezone = 'Asia/Kolkata'",
		"bytea_output = 'escape'", "search_path = 'nowhere'"} {
		pgtest.Exec(t, url, `DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET `+strings.ReplaceAll(s, "'", "''")+`', current_database()); END$$`)
	}
}

// Every type: equal values are equal whatever the order of rows and the session's settings, and the smallest difference is found.
func TestEveryType(t *testing.T) {
	source, target := two(t)
	everyType(t, source, target)
}

// The text of a value and its hash are the same on the oldest and the newest server.
func TestEveryTypeAcrossVersions(t *testing.T) {
	old := pgtest.Start(t, pgtest.Options{Version: 13})
	recent := pgtest.Start(t, pgtest.Options{Version: 18})
	everyType(t, old.Database(t), recent.Database(t))
}

func everyType(t *testing.T, source, target string) {
	ddl := append([]string{}, typeSchema...)
	var load, reversed, change []string
	var all []string
	for i, v := range values {
		name := fmt.Sprintf("t%d", i)
		all = append(all, name)
		ddl = append(ddl, fmt.Sprintf(`CREATE TABLE %s (id int PRIMARY KEY, v %s)`, name, v.kind))
		insert := fmt.Sprintf(`INSERT INTO %s SELECT id, CASE id %% 2 WHEN 0 THEN (%s)::%s ELSE (%s)::%s END FROM generate_series(1, 20) id ORDER BY id`,
			name, v.a, v.kind, v.b, v.kind)
		load, reversed = append(load, insert), append(reversed, insert+" DESC")
		change = append(change, fmt.Sprintf(`UPDATE %s SET v = (%s)::%s WHERE id = 10`, name, v.b, v.kind))
	}
	pgtest.Exec(t, source, append(ddl, load...)...)
	pgtest.Exec(t, target, append(ddl, reversed...)...)
	differentSettings(t, target)
	r := compare(t, source, target, Options{}, tables(all)...)
	for i, tr := range r.Tables {
		if !tr.Equal || tr.SourceRows != 20 || tr.TargetRows != 20 {
			t.Errorf("%s %s / %s: equal data isn't equal: %+v", values[i].kind, values[i].a, values[i].b, tr)
		}
	}
	pgtest.Exec(t, target, "SET search_path = public; SET datestyle = 'ISO, YMD'; "+strings.Join(change, "; "))
	r = compare(t, source, target, Options{}, tables(all)...)
	for i, tr := range r.Tables {
		if len(tr.Differences) != 1 || tr.Differences[0] != (Difference{Different, "10"}) || tr.Equal {
			t.Errorf("%s: %s and %s aren't told apart: %+v", values[i].kind, values[i].a, values[i].b, tr)
		}
	}
	if r.Mismatches != len(values) {
		t.Errorf("%d mismatches, want %d", r.Mismatches, len(values))
	}
}

func tables(names []string) []replication.Table {
	var out []replication.Table
	for _, n := range names {
		out = append(out, replication.Table{
			Name: replication.TableName{Schema: "public", Name: n}, Columns: []replication.Column{{Name: "id"}, {Name: "v"}}, Key: []int{0},
		})
	}
	return out
}
