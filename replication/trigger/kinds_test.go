package trigger_test

import (
	"fmt"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication/trigger"
)

// kinds holds one table of each kind.
const kinds = `
CREATE EXTENSION IF NOT EXISTS citext;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN code AS varchar(10) CHECK (VALUE <> '');
CREATE TABLE plain (id bigserial PRIMARY KEY, v text, n numeric(12, 3) UNIQUE, m mood, a int[], j jsonb, at timestamptz DEFAULT now(), big text);
CREATE TABLE composite (a int, b text, c date, v bytea, PRIMARY KEY (c, b, a));
CREATE TABLE enumkey (m mood, c code, v text, PRIMARY KEY (m, c));
CREATE TABLE citextkey (c citext PRIMARY KEY, v text);
CREATE TABLE numerickey (n numeric PRIMARY KEY, v text);
CREATE TABLE charkey (c char(5), b "char", i interval, f float8, PRIMARY KEY (c, b, i, f));
CREATE TABLE uniquekey (x int, y int NOT NULL UNIQUE);
CREATE TABLE keyless (a int, v text, f float8, j json, c char(4), m mood, at timestamptz);
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, doubled int GENERATED ALWAYS AS (length(v) * 2) STORED);
CREATE TABLE computed (a int NOT NULL, k int GENERATED ALWAYS AS (a * 2) STORED PRIMARY KEY, v text);
CREATE TABLE "Odd ""$capture$'\ name" ("Key'col" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "select" text);
CREATE TABLE parts (id int, at date NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE parts_b (v text, at date NOT NULL, id int NOT NULL);
ALTER TABLE parts ATTACH PARTITION parts_b FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE animals (name text PRIMARY KEY, legs int);
CREATE TABLE birds (wings int, PRIMARY KEY (name)) INHERITS (animals);
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, v text);
CREATE TABLE secured (id int PRIMARY KEY, v text);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY nobody ON secured USING (false);
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 20) i;
INSERT INTO child SELECT i, i, 'c' FROM generate_series(1, 20) i;
INSERT INTO plain (v, n, m, big) SELECT 'v' || i, i, 'ok', repeat(md5(i::text), 200) FROM generate_series(1, 50) i;
`

// cases are changes whose net effect must arrive, each in one window.
var cases = map[string][]string{
	"insert":                         {`INSERT INTO plain (v, n) VALUES ('x', 1000), (NULL, NULL), ('', -0.5)`},
	"update leaves a TOASTed value":  {`UPDATE plain SET v = 'changed' WHERE id < 10`},
	"delete":                         {`DELETE FROM plain WHERE id > 40`},
	"insert and delete":              {`INSERT INTO plain (id, v) VALUES (5000, 'x')`, `DELETE FROM plain WHERE id = 5000`},
	"delete and insert":              {`DELETE FROM plain WHERE id = 3`, `INSERT INTO plain (id, v, n) VALUES (3, 'again', 3)`},
	"key moves":                      {`UPDATE plain SET id = id + 100000 WHERE id BETWEEN 10 AND 15`},
	"keys swap":                      {`UPDATE plain SET id = -1 WHERE id = 20`, `UPDATE plain SET id = 20 WHERE id = 21`, `UPDATE plain SET id = 21 WHERE id = -1`},
	"unique values swap":             {`UPDATE plain SET n = -1 WHERE id = 30`, `UPDATE plain SET n = 30 WHERE id = 31`, `UPDATE plain SET n = 31 WHERE id = 30`},
	"unique values rotate":           {`UPDATE plain SET n = n - 5000 WHERE id <= 20`, `UPDATE plain p SET n = 5000 + x.m FROM (SELECT id, coalesce(lead(n) OVER (ORDER BY id), first_value(n) OVER (ORDER BY id)) m FROM plain WHERE n < -1000) x WHERE x.id = p.id`},
	"unique value to a new row":      {`UPDATE plain SET n = NULL WHERE n = 5`, `INSERT INTO plain (v, n) VALUES ('heir', 5)`},
	"keys slide":                     {`INSERT INTO uniquekey SELECT i, i FROM generate_series(1, 100) i ORDER BY i DESC`, `UPDATE uniquekey SET y = y + 1`, `DELETE FROM uniquekey WHERE x % 3 = 0`},
	"composite key":                  {`INSERT INTO composite VALUES (1, 'é', '2024-02-29', '\x00ff'), (2, '', '-infinity', NULL)`, `UPDATE composite SET a = 9 WHERE a = 1`},
	"enum and domain in the key":     {`INSERT INTO enumkey VALUES ('sad', 'a'), ('ok', 'b')`, `UPDATE enumkey SET m = 'happy' WHERE c = 'a'`, `UPDATE enumkey SET v = 'u'`},
	"another spelling, citext":       {`INSERT INTO citextkey VALUES ('Abc'), ('x')`, `UPDATE citextkey SET c = 'aBC' WHERE c = 'abc'`, `UPDATE citextkey SET v = 'y'`},
	"another spelling, numeric":      {`INSERT INTO numerickey VALUES (1.0), (2)`, `UPDATE numerickey SET n = 1.00 WHERE n = 1`},
	"another spelling, later":        {`UPDATE numerickey SET n = n + 0.000`, `UPDATE citextkey SET c = upper(c)`},
	"odd key types":                  {`SET intervalstyle = 'iso_8601'`, `INSERT INTO charkey VALUES ('a', 'b', '1 day', 0.1), ('a', 'c', '24 hours', 'NaN')`, `UPDATE charkey SET i = '1 mon', f = '-infinity' WHERE b = 'c'`},
	"keyless":                        {`SET datestyle = 'German'`, `SET timezone = 'Asia/Tokyo'`, `SET extra_float_digits = -5`, `INSERT INTO keyless SELECT i % 3, NULL, 0.1::float8 + 0.2, '{"a":  1}', 'x', 'ok', '2024-05-06 07:08:09.123456Z' FROM generate_series(1, 10) i`},
	"keyless, some of equal rows":    {`DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE a = 1 LIMIT 2)`, `UPDATE keyless SET v = '' WHERE a = 2`, `UPDATE keyless SET v = v`},
	"deferrable key":                 {`INSERT INTO deferred VALUES (1, 'a'), (2, 'b')`, `UPDATE deferred SET id = 3 - id`},
	"identity and generated columns": {`INSERT INTO always (v) VALUES ('a'), ('bb')`, `UPDATE always SET v = 'ccc' WHERE id = 1`, `UPDATE always SET id = DEFAULT WHERE id = 2`},
	"key over a generated column":    {`INSERT INTO computed (a, v) VALUES (1, 'a'), (2, 'b'), (3, 'c')`, `UPDATE computed SET v = 'u' WHERE a = 1`, `UPDATE computed SET a = 7 WHERE a = 2`, `DELETE FROM computed WHERE a = 3`},
	"odd names":                      {`INSERT INTO "Odd ""$capture$'\ name" ("select") VALUES ('x')`, `UPDATE "Odd ""$capture$'\ name" SET "Key'col" = gen_random_uuid()`},
	"through the root":               {`INSERT INTO parts VALUES (1, '2020-05-05', 'a'), (2, '2021-05-05', 'b')`},
	"rows move between leaves":       {`UPDATE parts SET at = at + 365 WHERE id = 1`, `UPDATE parts SET at = at - 365 WHERE id = 2`, `UPDATE parts SET v = 'moved'`},
	"inherited":                      {`INSERT INTO animals VALUES ('dog', 4), ('owl', 2)`, `INSERT INTO birds VALUES ('owl', 2, 2)`, `UPDATE animals SET legs = legs + 1`, `DELETE FROM ONLY animals WHERE name = 'owl'`},
	"referential actions":            {`DELETE FROM parent WHERE id < 5`, `UPDATE parent SET id = 500 WHERE id = 7`},
	"row level security":             {`INSERT INTO secured VALUES (1, 'a')`, `UPDATE secured SET v = 'b'`},
	"truncate":                       {`INSERT INTO secured VALUES (2, 'x')`, `TRUNCATE secured`, `INSERT INTO secured VALUES (3, 'y')`},
	"truncate cascade":               {`TRUNCATE parent CASCADE`, `INSERT INTO parent VALUES (1, 'new')`, `INSERT INTO child VALUES (1, 1, 'new')`},
	"truncate the root":              {`TRUNCATE parts`, `INSERT INTO parts VALUES (9, '2021-05-05', 'after')`},
	"truncate rolled back":           {`BEGIN; TRUNCATE plain; INSERT INTO plain (id) VALUES (1); ROLLBACK`, `UPDATE plain SET v = 'still there' WHERE id = 1`},
	"savepoints":                     {`BEGIN; INSERT INTO plain (id) VALUES (7001); SAVEPOINT a; DELETE FROM plain; ROLLBACK TO a; SAVEPOINT b; INSERT INTO plain (id) VALUES (7002); RELEASE b; COMMIT`},
	"replica role":                   {`SET session_replication_role = replica`, `INSERT INTO plain (id) VALUES (8001)`, `DELETE FROM plain WHERE id = 2`},
	"rewritten":                      {`INSERT INTO uniquekey VALUES (1, 777)`, `VACUUM FULL uniquekey`, `CLUSTER uniquekey USING uniquekey_y_key`},
}

// order is that of the cases; some build on earlier ones.
var order = []string{"insert", "update leaves a TOASTed value", "delete", "insert and delete", "delete and insert", "key moves", "keys swap", "unique values swap",
	"unique values rotate", "unique value to a new row", "keys slide", "composite key", "enum and domain in the key", "another spelling, citext",
	"another spelling, numeric", "another spelling, later", "odd key types", "keyless", "keyless, some of equal rows", "deferrable key", "identity and generated columns",
	"key over a generated column", "odd names", "through the root", "rows move between leaves", "inherited", "referential actions", "row level security", "truncate", "truncate cascade",
	"truncate the root", "truncate rolled back", "savepoints", "replica role", "rewritten"}

// Every kind of table and change arrives, whether each case is a window of its own, all of them are one, or the window comes in pieces, full or early ones.
func TestEveryKindArrives(t *testing.T) {
	early := trigger.DefaultLimits
	early.Early = 2
	for name, limits := range map[string]trigger.Limits{"whole": {}, "pieces": {Changes: 3, Bytes: 1 << 20}, "early": early} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, kinds)
			f.o.Limits = limits
			f.begin()
			f.equal()
			s := f.start(nil)
			for _, name := range order {
				f.run(name)
				s.caughtUp()
				f.equal()
				if t.Failed() {
					t.Fatalf("after %q", name)
				}
			}
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
		})
		t.Run("at once, "+name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, kinds)
			f.o.Limits = limits
			f.begin()
			for _, name := range order {
				f.run(name)
			}
			s := f.start(nil)
			s.caughtUp()
			f.equal()
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// run carries a case out; the one about the replica role needs the superuser.
func (f *fixture) run(name string) {
	f.t.Helper()
	url := f.source
	if name == "replica role" {
		url = f.super
	}
	execAll(f.t, url, cases[name])
}

// The oldest and the newest supported source.
func TestOtherVersions(t *testing.T) {
	for _, version := range []int{13, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			f := newFixtureOn(t, pgtest.Start(t, pgtest.Options{Version: version}), kinds)
			f.begin()
			for _, name := range order {
				f.run(name)
			}
			s := f.start(nil)
			s.caughtUp()
			f.equal()
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			if err := trigger.Uninstall(f.ctx(), f.pool, nil); err != nil {
				t.Fatal(err)
			}
		})
	}
}
