package apply

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/logical"
)

// exotic holds, for columns of every sort of type, values that are easily spoiled on the way.
var exotic = []struct{ name, typ, values string }{
	{"bits", "bit(5)", `B'10110'|B'00000'`},
	{"varbits", "bit varying", `B''|B'1'|B'101100000000'`},
	{"chars", "char(6)", `'ab'|'ab    '|''|'sixsix'`},
	{"letter", `"char"`, `'x'|''|'é'`},
	{"naming", "name", `'n'|repeat('n', 63)`},
	{"cash", "money", `'-12.34'|'92233720368547758.07'`},
	{"span", "interval", `'1 mon -1 days +02:03:04.000005'|'-1 year'|'0'`},
	{"days", "interval day to second(2)", `'3 days 04:05:06.78'|'-00:00:01'`},
	{"num", "numeric", `'NaN'|'Infinity'|1.10|1.1|'-0.000000000000000000001'|1e130`},
	{"nump", "numeric(10,3)", `1.5|-99.999`},
	{"f8", "float8", `'-0'|'NaN'|'-Infinity'|1e-310|0.1|'Infinity'::float8 - 'Infinity'`},
	{"f4", "float4", `'-0'|'NaN'|3.4e38|0.1`},
	{"ints", "int[]", `'{}'|'{1,NULL,3}'|'[2:3]={1,2}'|'{{1,2},{3,4}}'`},
	{"texts", "text[]", `'{"a,b","\"",NULL,"NULL",""}'|'{}'`},
	{"deep", "text[][]", `'{{{a,b}},{{c,"d e"}}}'`},
	{"m", "mood", `'sad'|'so, "odd"'`},
	{"ms", "mood[]", `'{sad,"so, \"odd\""}'`},
	{"dom", "small_ints", `'{1,2}'|'{}'`},
	{"comp", "pair_of", `ROW(1, 'a"b,c')|ROW(NULL, '')|ROW(2, NULL)`},
	{"comps", "pair_of[]", `ARRAY[ROW(1, 'x')::pair_of, NULL]`},
	{"range", "numrange", `'[1,2.50)'|'empty'|'(,3]'`},
	{"multi", "int4multirange", `'{[1,3),[5,9)}'|'{}'`},
	{"vec", "tsvector", `'a:1A fat:2B,4C ''o''''x'':3'|''`},
	{"query", "tsquery", `'fat & !cat:ab <-> x'`},
	{"doc", "xml", `'<a b="1">&lt;</a>'|'text only'`},
	{"js", "json", `'{"a":  1, "a": 2}'|'null'`},
	{"jb", "jsonb", `'{"b": [1.10, "\u00e9", null], "a": {}}'|'"\\"'`},
	{"bin", "bytea", `'\x00ff5c27'|''`},
	{"ci", "citext", `'MiXed'|'mixed'`},
	{"hs", "hstore", `'"a"=>"1", "b"=>NULL, "q\"c"=>"=>"'|''`},
	{"net", "inet", `'10.0.0.1'|'10.0.0.1/8'|'::1'`},
	{"block", "cidr", `'10.0.0.0/8'`},
	{"mac", "macaddr", `'08:00:2b:01:02:03'`},
	{"id", "uuid", `'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'`},
	{"pt", "point", `'(1.5,-0)'|'(1e300,0.1)'`},
	{"shape", "polygon", `'((0,0),(1,1),(1,0.1))'`},
	{"way", "path", `'[(0,0),(1,1)]'|'((0,0),(1,1))'`},
	{"ts", "timestamp", `'infinity'|'4713-01-01 00:00:00 BC'|'2020-02-29 12:00:00.000001'`},
	{"tz", "timestamptz", `'-infinity'|'2020-06-01 12:00+05:30'`},
	{"tt", "timetz", `'12:00:00.5+05:30'|'24:00:00-14'`},
	{"day", "date", `'infinity'|'0044-03-15 BC'`},
	{"yes", "boolean", `true|false`},
	{"lsn", "pg_lsn", `'16/B374D848'`},
	{"txt", "text", `''|E'\\\\N\t\n'|'NULL'|repeat('long', 2000)`},
}

// kinds are tables with every sort of key, identity and constraint. Each has a statement generator in randomStatement.
const kinds = `
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION btree_gist;
CREATE TYPE mood AS ENUM ('sad', 'so, "odd"');
CREATE DOMAIN small_ints AS int[] CHECK (array_length(VALUE, 1) < 5);
CREATE TYPE pair_of AS (n int, s text);
CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE DOMAIN email AS citext;
CREATE TABLE pk (id int PRIMARY KEY, v text, big text, big2 text);
ALTER TABLE pk ALTER big SET STORAGE EXTERNAL, ALTER big2 SET STORAGE EXTERNAL;
CREATE TABLE comp (id int, b text, v bytea, PRIMARY KEY (b, id));
CREATE TABLE fullkey (id int NOT NULL UNIQUE, v text, big text); ALTER TABLE fullkey REPLICA IDENTITY FULL; ALTER TABLE fullkey ALTER big SET STORAGE EXTERNAL;
CREATE TABLE keyless (id int, v text, f float8, p point, j json, a int[], c pair_of, big text); ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, big text, d int GENERATED ALWAYS AS (length(v)) STORED); ALTER TABLE always ALTER big SET STORAGE EXTERNAL;
CREATE TABLE alwaysx (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, v text, big text); ALTER TABLE alwaysx ALTER big SET STORAGE EXTERNAL;
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, e int);
CREATE TABLE late (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text);
CREATE TABLE latepk (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text); ALTER TABLE latepk REPLICA IDENTITY FULL;
CREATE TABLE excl (id int PRIMARY KEY, r int4range, EXCLUDE USING gist (r WITH &&));
CREATE TABLE ident (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text); ALTER TABLE ident REPLICA IDENTITY USING INDEX ident_u_key;
CREATE TABLE folded (id text COLLATE ci PRIMARY KEY, v text);
CREATE TABLE nums (id numeric PRIMARY KEY, v text);
CREATE TABLE floats (id float8 PRIMARY KEY, v text);
CREATE TABLE fixed (id char(5) PRIMARY KEY, v text);
CREATE TABLE mails (id email PRIMARY KEY, v text);
CREATE TABLE lists (id int[] PRIMARY KEY, v text);
CREATE TABLE longkey (id text PRIMARY KEY, v text); ALTER TABLE longkey ALTER id SET STORAGE EXTERNAL;
`

// keys are the values of the id columns.
var keys = map[string]string{
	"folded": "'a'|'A'|'b'|'B'|'ä'|'Ä'", "nums": "1.0|1.00|1|'NaN'|2.5|2.50", "floats": "'-0'|0|'NaN'|1e300|0.1", "fixed": "'a'|'a    '|'b'|''",
	"mails": "'A@x'|'a@X'|'b@x'", "lists": "'{1,2}'|'{}'|'{NULL,2}'|'{{1},{2}}'", "longkey": "repeat(md5('1'), 80)|repeat(md5('2'), 80)|'short'",
}

func exoticSchema() string {
	var b strings.Builder
	for _, table := range []string{"exotic", "exotic_keyless"} {
		b.WriteString("CREATE TABLE " + table + " (n int")
		if table == "exotic" {
			b.WriteString(" PRIMARY KEY")
		}
		for _, c := range exotic {
			b.WriteString(", " + c.name + " " + c.typ)
		}
		b.WriteString("); ")
	}
	return b.String() + "ALTER TABLE exotic_keyless REPLICA IDENTITY FULL;"
}

// one chooses among alternatives that single bars separate.
func one(r *rand.Rand, alternatives string) string {
	all := strings.Split(strings.ReplaceAll(alternatives, "||", "\x00"), "|")
	return strings.ReplaceAll(all[r.IntN(len(all))], "\x00", "||")
}

// randomStatement returns a random statement on a random table.
func randomStatement(r *rand.Rand) string {
	n := func(k int) string { return strconv.Itoa(1 + r.IntN(k)) }
	big := func() string {
		return one(r, "NULL|repeat(md5(random()::text), 100)|'short'|repeat('x', 3000)")
	}
	switch r.IntN(12) {
	case 0, 1: // exotic types
		c := exotic[r.IntN(len(exotic))]
		table := one(r, "exotic|exotic_keyless")
		switch r.IntN(4) {
		case 0:
			return "INSERT INTO " + table + " (n, " + c.name + ") VALUES (" + n(12) + ", " + one(r, c.values) + ")"
		case 1:
			return "DELETE FROM " + table + " WHERE n = " + n(12)
		default:
			return "UPDATE " + table + " SET " + c.name + " = " + one(r, c.values) + " WHERE n = " + n(12)
		}
	case 2: // exotic keys
		table := one(r, "folded|nums|floats|fixed|mails|lists|longkey")
		k, k2 := one(r, keys[table]), one(r, keys[table])
		return one(r, "INSERT INTO "+table+" VALUES ("+k+", 'v')|DELETE FROM "+table+" WHERE id = "+k+"|UPDATE "+table+" SET v = v || 'x' WHERE id = "+k+"|UPDATE "+table+" SET id = "+k2+" WHERE id = "+k+
			"|DELETE FROM "+table+" WHERE id = "+k+"; INSERT INTO "+table+" VALUES ("+k2+", 'again')")
	case 3: // unique values that change hands
		a, b := n(12), n(12)
		return one(r, "UPDATE uniq SET u = NULL WHERE id = "+a+"; UPDATE uniq SET u = "+n(12)+" WHERE id = "+b+
			"|INSERT INTO uniq VALUES ("+a+", "+n(12)+")|DELETE FROM uniq WHERE u = "+n(12)+"; UPDATE uniq SET u = "+n(12)+" WHERE id = "+a+
			"|UPDATE uniq SET u = -1 WHERE id = 1; UPDATE uniq SET u = x.u FROM uniq x WHERE uniq.id = 2 AND x.id = 3; UPDATE uniq SET e = 1")
	case 4: // deferrable
		return one(r, "INSERT INTO late VALUES ("+n(12)+", "+n(12)+")|UPDATE late SET u = u + 1|UPDATE late SET u = -u WHERE id = "+n(12)+"|DELETE FROM late WHERE id = "+n(12)+
			"|INSERT INTO latepk VALUES ("+n(12)+", 'v')|UPDATE latepk SET id = 13 - id|UPDATE latepk SET v = v || 'x' WHERE id = "+n(12)+"|DELETE FROM latepk WHERE id = "+n(12))
	case 5:
		return one(r, "INSERT INTO excl VALUES ("+n(12)+", int4range("+n(12)+", 13))|UPDATE excl SET r = int4range("+n(5)+", 6) WHERE id = "+n(12)+"|DELETE FROM excl WHERE id = "+n(12)+"|DELETE FROM excl WHERE r @> "+n(12)+"; INSERT INTO excl VALUES (13, int4range(3, 5))")
	case 6: // GENERATED ALWAYS
		return one(r, "INSERT INTO always (v, big) VALUES ('v', "+big()+")|INSERT INTO always OVERRIDING SYSTEM VALUE VALUES ("+n(12)+", 'o', "+big()+")|UPDATE always SET v = v || 'x' WHERE id < "+n(12)+"|UPDATE always SET id = DEFAULT WHERE id = "+n(12)+"|DELETE FROM always WHERE id = "+n(12)+
			"|INSERT INTO alwaysx VALUES ("+n(12)+", DEFAULT, 'v', "+big()+")|UPDATE alwaysx SET n = DEFAULT WHERE id = "+n(12)+"|UPDATE alwaysx SET v = v || 'x' WHERE id = "+n(12)+"|UPDATE alwaysx SET id = "+n(12)+", n = DEFAULT WHERE id = "+n(12)+"|DELETE FROM alwaysx WHERE id = "+n(12))
	case 7: // keyless
		row := "(" + n(6) + ", " + one(r, "NULL|'v'|''") + ", " + one(r, "'NaN'|-0.0|'-0'|NULL") + ", '(1,2)', '{\"a\":  1}', " + one(r, "'{1,NULL}'|NULL|'{1,2}'") + ", " + one(r, "ROW(1,'a')|NULL|ROW(NULL,NULL)") + ", " + big() + ")"
		return one(r, "INSERT INTO keyless VALUES "+row+", "+row+"|UPDATE keyless SET a[2] = 5 WHERE id = "+n(6)+"|UPDATE keyless SET v = 'w', id = "+n(6)+" WHERE id = "+n(6)+"|DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE id = "+n(6)+" LIMIT 1)|UPDATE keyless SET c.n = 5 WHERE id = "+n(6)+"|DELETE FROM keyless WHERE id = "+n(6))
	case 8:
		return one(r, "INSERT INTO ident VALUES ("+n(12)+", "+n(12)+", 'v')|UPDATE ident SET v = v || 'x' WHERE id = "+n(12)+"|UPDATE ident SET u = "+n(12)+" WHERE id = "+n(12)+"|UPDATE ident SET id = "+n(12)+" WHERE u = "+n(12)+"|DELETE FROM ident WHERE id = "+n(12))
	case 9:
		return one(r, "INSERT INTO fullkey VALUES ("+n(12)+", 'v', "+big()+")|UPDATE fullkey SET v = v || 'x' WHERE id = "+n(12)+"|UPDATE fullkey SET id = "+n(12)+" WHERE id = "+n(12)+"|UPDATE fullkey SET id = -id|DELETE FROM fullkey WHERE id = "+n(12)+
			"|INSERT INTO comp VALUES ("+n(5)+", 'b"+n(3)+"', '\\x00')|UPDATE comp SET b = 'b"+n(3)+"' WHERE id = "+n(5)+"|UPDATE comp SET v = v || '\\x01' WHERE id = "+n(5)+"|DELETE FROM comp WHERE id = "+n(5))
	case 10:
		if r.IntN(8) == 0 {
			return one(r, "TRUNCATE pk, keyless|TRUNCATE always RESTART IDENTITY|TRUNCATE comp, fullkey, uniq CASCADE|ALTER TABLE pk REPLICA IDENTITY FULL|ALTER TABLE pk REPLICA IDENTITY DEFAULT")
		}
		fallthrough
	default:
		id := n(12)
		return one(r, "INSERT INTO pk VALUES ("+id+", 'v', "+big()+", "+big()+")|UPDATE pk SET v = v || 'x' WHERE id = "+id+"|UPDATE pk SET big = "+big()+" WHERE id = "+id+"|UPDATE pk SET id = "+n(12)+" WHERE id = "+id+"|DELETE FROM pk WHERE id = "+id+
			"|DELETE FROM pk WHERE id = "+id+"; INSERT INTO pk VALUES ("+id+", 'again', "+big()+", NULL)|INSERT INTO pk VALUES ("+id+", 'gone', NULL, NULL); DELETE FROM pk WHERE id = "+id+"|UPDATE pk SET big2 = big, v = 'y' WHERE id <= "+id+
			"|UPDATE pk SET id = -id WHERE id IN (1, 2); UPDATE pk SET id = 3 + id WHERE id < 0")
	}
}

// Random transactions over tables of every kind, captured from a slot: carried out as sets in batches of any size, as pieces, and change by
// change, all destinations end as the source.
func TestSetsEqualSingleChanges(t *testing.T) {
	s := pgtest.Seed(t)
	r := rand.New(rand.NewPCG(s, 1))
	server := pgtest.Shared(t)
	all := kinds + exoticSchema()
	source := server.Database(t)
	pgtest.Exec(t, source, all, "CREATE SCHEMA replicator; CREATE TABLE replicator.heartbeat (id int PRIMARY KEY, token text)")
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	tables := rows(t, pool, "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
	var names []replication.TableName
	for _, n := range tables {
		names = append(names, replication.TableName{Schema: "public", Name: n})
	}
	var slots []string
	id := postgres.Identity{Migration: "m", Pair: "p", Epoch: 7}
	publication := "replicator_" + rows(t, pool, "SELECT current_database()::text")[0]
	if err := logical.EnsurePublication(ctx, pool, publication, names); err != nil {
		t.Fatal(err)
	}
	// Where and in which portions the same stream is applied.
	limits := []logical.Limits{{Changes: 1}, {Changes: 2 + r.IntN(20)}, {Changes: 3000}}
	var at []uint64
	for i := range limits {
		slots = append(slots, fmt.Sprintf("%s_%d", publication, i))
		lsn, err := logical.CreateSlot(ctx, source, id, pool, slots[i], nil)
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, lsn)
	}
	write(t, source, r, soak(600))
	if _, err := pool.Exec(ctx, "INSERT INTO replicator.heartbeat VALUES (1, 'end')"); err != nil {
		t.Fatal(err)
	}
	contents := func(p *pgxpool.Pool, table string) []string { return rows(t, p, "SELECT t::text FROM "+table+" t") }
	for i, l := range limits {
		d := newDestination(t, server.Database(t), source, all, string(logical.FormatPosition(at[i])))
		stream(t, d, logical.NewSource(logical.Options{URL: source, ID: id, Slot: slots[i], Publication: publication, Limits: l, Pull: []int64{1, -1}[i%2]}))
		for _, table := range tables {
			want, got := contents(pool, table), contents(d.pool, table)
			if len(want) == 0 {
				t.Logf("%s is empty at the end", table)
			}
			if !slices.Equal(got, want) {
				t.Errorf("limits %+v: %s has\n%.3000s\nwant\n%.3000s", l, table, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
}

// write runs random transactions; statements that the source refuses are rolled back by themselves.
func write(t *testing.T, url string, r *rand.Rand, n int) {
	t.Helper()
	conn := pgtest.Connect(t, url)
	ctx := context.Background()
	done := 0
	for range n {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for range 1 + r.IntN(8) {
				for sql := range strings.SplitSeq(randomStatement(r), "; ") {
					if _, err := conn.PgConn().Exec(ctx, "SAVEPOINT s").ReadAll(); err != nil {
						return err
					}
					if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
						if c := postgres.Code(err); !strings.HasPrefix(c, "23") && c != "55006" {
							t.Fatalf("%s: %v", sql, err)
						}
						if _, err := conn.PgConn().Exec(ctx, "ROLLBACK TO s").ReadAll(); err != nil {
							return err
						}
						continue
					}
					done++
				}
			}
			return nil
		})
		if err != nil && !strings.HasPrefix(postgres.Code(err), "23") { // a deferred constraint
			t.Fatal(err)
		}
	}
	t.Logf("%d statements", done)
}

// stream applies everything up to the token "end".
func stream(t *testing.T, d *destination, source *logical.Source) {
	t.Helper()
	a := d.open()
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan *replication.Batch), make(chan error, 1)
	go func() { done <- source.Stream(ctx, a.Position(), out) }()
	defer func() { cancel(); <-done }()
	batches, applied := 0, 0
	for {
		select {
		case err := <-done:
			done <- nil
			t.Fatalf("the stream ended: %v", err)
		case b := <-out:
			if b.PositionOnly() {
				continue
			}
			batches++
			token := b.Token()
			if err := a.Send(d.ctx(), b); err != nil {
				t.Fatalf("apply: %v", err)
			}
			if token == "end" {
				if err := a.Settle(d.ctx()); err != nil {
					t.Fatalf("apply: %v", err)
				}
			}
			for _, done := range a.Collect() {
				applied++
				done.Batch.Release() // what is used again too early shows in the contents
			}
			if token == "end" {
				if applied != batches {
					t.Errorf("%d batches of %d were reported", applied, batches)
				}
				t.Logf("%d batches", batches)
				return
			}
		}
	}
}
