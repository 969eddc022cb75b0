package schema

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/internal/preflight"
)

// An object of the same name that isn't the same doesn't count as done where that can be seen.
func TestApplyRefusesAnother(t *testing.T) {
	s := pgtest.Shared(t)
	target := s.Database(t)
	pgtest.Exec(t, target, `CREATE TABLE public.a (id integer, n integer, CONSTRAINT a_pkey PRIMARY KEY (n), CONSTRAINT a_fk UNIQUE (id), CONSTRAINT a_check CHECK (n > 1));
		CREATE TABLE public.p (id integer) PARTITION BY RANGE (id); CREATE TABLE public.q (id integer) PARTITION BY RANGE (id);
		CREATE TABLE public.leaf PARTITION OF public.q DEFAULT`)
	conn := connect(t, target)
	for _, e := range []Entry{
		{Type: "CONSTRAINT", SQL: "ALTER TABLE ONLY public.a\n    ADD CONSTRAINT other_pkey PRIMARY KEY (id);"},
		{Type: "FK CONSTRAINT", SQL: "ALTER TABLE ONLY public.a\n    ADD CONSTRAINT a_fk FOREIGN KEY (n) REFERENCES public.a(id) NOT VALID;"},
		{Type: "CHECK CONSTRAINT", SQL: "ALTER TABLE public.a\n    ADD CONSTRAINT a_check CHECK ((n > 2)) NOT VALID;"},
		{Type: "TABLE ATTACH", SQL: "ALTER TABLE ONLY public.p ATTACH PARTITION public.leaf DEFAULT;"},
		{Type: "TABLE", SQL: "CREATE TABLE public.b (id nothing);"},
	} {
		if err := Apply(testContext(t), conn, e, ""); err == nil {
			t.Errorf("%s: no error", e.SQL)
		}
	}
	for _, e := range []Entry{
		{Type: "CONSTRAINT", SQL: "ALTER TABLE ONLY public.a\n    ADD CONSTRAINT a_pkey PRIMARY KEY (n);"},
		{Type: "CHECK CONSTRAINT", SQL: "ALTER TABLE public.a\n    ADD CONSTRAINT a_check CHECK ((n > 1)) NOT VALID;"},
		{Type: "TABLE ATTACH", SQL: "ALTER TABLE ONLY public.q ATTACH PARTITION public.leaf DEFAULT;"},
	} {
		if err := Apply(testContext(t), conn, e, ""); err != nil {
			t.Error(err)
		}
	}
	// After errors the session is out of any transaction and has its settings back.
	var path string
	if err := conn.QueryRow(testContext(t), "SHOW search_path").Scan(&path); err != nil || path != "pg_catalog" || conn.PgConn().TxStatus() != 'I' {
		t.Errorf("search_path %q, transaction status %c, %v", path, conn.PgConn().TxStatus(), err)
	}
}

// An entry is applied whole or not at all.
func TestApplyIsAtomic(t *testing.T) {
	conn := connect(t, pgtest.Shared(t).Database(t))
	if err := Apply(testContext(t), conn, Entry{Type: "TABLE", SQL: "CREATE TABLE public.a (id integer); ALTER TABLE public.a ALTER COLUMN no SET STORAGE main;"}, ""); err == nil {
		t.Fatal("no error")
	}
	var there bool
	if err := conn.QueryRow(testContext(t), "SELECT to_regclass('public.a') IS NOT NULL").Scan(&there); err != nil || there {
		t.Errorf("half of the entry is there: %v, %v", there, err)
	}
}

// Of entries that go together, those before the one that fails are done and noted; the others can be applied one at a time.
func TestApplyTogether(t *testing.T) {
	conn := connect(t, pgtest.Shared(t).Database(t))
	run := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(testContext(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	run("CREATE TABLE public.note (name text); CREATE TABLE public.b (id integer)")
	var entries []Entry
	for _, n := range []string{"a", "b", "c"} {
		entries = append(entries, Entry{Type: "TABLE", Schema: "public", Name: n, SQL: "CREATE TABLE public." + n + " (id integer); -- a remark"})
	}
	note := func(e Entry) string { return "INSERT INTO public.note VALUES ('" + e.Name + "')" }
	noted := func() (names string) {
		t.Helper()
		if err := conn.QueryRow(testContext(t), "SELECT string_agg(name || ' ' || (to_regclass('public.' || name) IS NOT NULL), ', ' ORDER BY name) FROM public.note").Scan(&names); err != nil {
			t.Fatal(err)
		}
		return names
	}
	if err := ApplyTogether(testContext(t), conn, entries, note); postgres.Code(err) != "42P07" {
		t.Errorf("%v, want a duplicate table", err)
	}
	if got := noted(); got != "a true" || conn.PgConn().TxStatus() != 'I' {
		t.Errorf("noted: %s; transaction status %c", got, conn.PgConn().TxStatus())
	}
	for _, e := range entries[1:] {
		if err := Apply(testContext(t), conn, e, note(e)); err != nil {
			t.Error(err)
		}
	}
	if got := noted(); got != "a true, b true, c true" {
		t.Errorf("noted: %s", got)
	}
	entries[0].Name, entries[0].SQL = "d", "CREATE TABLE public.d (id integer)"
	entries[1].Name, entries[1].SQL = "e", "CREATE TABLE public.e (id integer)"
	if err := ApplyTogether(testContext(t), conn, entries[:2], note); err != nil {
		t.Error(err)
	}
	if got := noted(); got != "a true, b true, c true, d true, e true" {
		t.Errorf("noted: %s", got)
	}
}

func TestMissingExtensionHasAHint(t *testing.T) {
	conn := connect(t, pgtest.Shared(t).Database(t))
	err := Apply(testContext(t), conn, Entry{Type: "EXTENSION", SQL: "CREATE EXTENSION IF NOT EXISTS timescale_nowhere WITH SCHEMA public;"}, "")
	var hinted *preflight.Hinted
	if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint, "extension") {
		t.Errorf("%v", err)
	}
}

// A table that stays locked bounds the dump's wait, and the error says so.
func TestDumpDoesNotWaitForever(t *testing.T) {
	s := pgtest.Shared(t)
	source := s.Database(t)
	pgtest.Exec(t, source, "CREATE TABLE public.a (id integer)")
	holder := connect(t, source)
	if _, err := holder.Exec(testContext(t), "BEGIN; LOCK TABLE public.a IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	_, err := Dump(testContext(t), DumpOptions{URL: source, PgDump: pgtest.PgDump(15), LockWait: 50 * time.Millisecond})
	var hinted *preflight.Hinted
	if !errors.As(err, &hinted) || hinted.Code != "pg-dump-failed" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Dump(ctx, DumpOptions{URL: source, PgDump: pgtest.PgDump(15), LockWait: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
