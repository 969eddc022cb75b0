package schema

import (
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// The catalog tells an ALTER TABLE that computes rows anew from everything else that gives a table another file, or writes its columns' definitions.
func TestStorageTellsRewrites(t *testing.T) { tellsRewrites(t, pgtest.Shared(t)) }

func tellsRewrites(t *testing.T, server *pgtest.Server) {
	url := server.Database(t)
	pgtest.Exec(t, url, `CREATE TABLE "odd name" (id int PRIMARY KEY, v varchar(10), n int); INSERT INTO "odd name" SELECT i, 'v', i FROM generate_series(1, 100) i`)
	conn := connect(t, url)
	read := func() Storage {
		t.Helper()
		all, err := ReadStorage(testContext(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		s := all[replication.TableName{Schema: "public", Name: "odd name"}]
		if parsed, err := ParseStorage(s.String()); err != nil || parsed != s || s.File == 0 {
			t.Fatalf("%+v became %+v: %v", s, parsed, err)
		}
		return s
	}
	for _, c := range []struct {
		ddl       string
		rewritten bool
	}{
		{`ALTER TABLE "odd name" ALTER v TYPE varchar(10) USING v || '!'`, true},
		{`VACUUM FULL "odd name"`, false},
		{`VACUUM (FREEZE) pg_attribute`, false},
		{`UPDATE "odd name" SET n = 1; ANALYZE "odd name"`, false},
		{`CLUSTER "odd name" USING "odd name_pkey"`, false},
		{`ALTER TABLE "odd name" ALTER v TYPE varchar(20)`, false},
		{`ALTER TABLE "odd name" ALTER v SET DEFAULT 'x', ALTER n SET NOT NULL, ALTER n SET STATISTICS 7; GRANT SELECT (n) ON "odd name" TO PUBLIC`, false},
		{`ALTER TABLE "odd name" SET (fillfactor = 50); CREATE INDEX ON "odd name" (v); REINDEX TABLE "odd name"`, false},
		{`ALTER TABLE "odd name" ALTER n TYPE bigint`, true},
		{`ALTER TABLE "odd name" ADD c timestamptz DEFAULT clock_timestamp()`, true},
		{`ALTER TABLE "odd name" ADD d timestamptz DEFAULT now()`, false},
		{`ALTER TABLE "odd name" DROP c`, false},
		{`TRUNCATE "odd name"`, false},
		{`BEGIN; ALTER TABLE "odd name" ALTER id TYPE int USING id + 1; TRUNCATE "odd name"; COMMIT`, true},
		{`BEGIN; DROP TABLE "odd name"; CREATE TABLE "odd name" (id int PRIMARY KEY); COMMIT`, true},
		{`ALTER TABLE "odd name" ADD b text, ADD "c "" d" text DEFAULT 'x'; ALTER TABLE "odd name" RENAME id TO ident`, false},
		{`ALTER TABLE "odd name" DROP b, ADD b text`, true},
		{`BEGIN; ALTER TABLE "odd name" RENAME b TO x; ALTER TABLE "odd name" RENAME "c "" d" TO b; ALTER TABLE "odd name" RENAME x TO "c "" d"; COMMIT`, true},
		{`ALTER TABLE "odd name" DROP b, DROP "c "" d"`, false},
		{`ALTER TABLE "odd name" DROP ident`, false}, // without a column
	} {
		before := read()
		pgtest.Exec(t, url, c.ddl)
		if after := read(); before.Rewritten(after) != c.rewritten || before.Rewritten(before) {
			t.Errorf("%s: %v, from %v to %v", c.ddl, !c.rewritten, before, after)
		}
	}
}

// What a former version stored can be read, and says nothing about names; a column that is gone is remembered until another one takes its name.
func TestStorageRemembersNames(t *testing.T) {
	former, err := ParseStorage("12 34 abc")
	if err != nil || former != (Storage{OID: 12, File: 34, Columns: "abc"}) {
		t.Fatalf("%+v: %v", former, err)
	}
	for _, bad := range []string{"", "12 34", "12 x abc", `12 34 abc {"a": "b"}`} {
		if _, err := ParseStorage(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	with := func(names string) Storage { return Storage{OID: 12, File: 34, Columns: "abc", Names: names} }
	first, without, again := with(`{"a": 1, "b": 2}`), with(`{"a": 1}`), with(`{"a": 1, "b": 3}`)
	if former.Rewritten(first) || first.Rewritten(without) || without.Rewritten(again) || !first.Rewritten(again) {
		t.Error("a column that comes or goes is taken for another, or the other way round")
	}
	kept := without.Since(first)
	if !kept.Rewritten(again) || kept.Rewritten(without) || without.Since(kept) != kept {
		t.Errorf("column b is forgotten: %v", kept)
	}
	if first.Since(former) != first {
		t.Errorf("%v", first.Since(former))
	}
}
