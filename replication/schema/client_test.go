package schema

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
)

// The program sees the password in its environment only, never on its command line, and its words are shown without it.
func TestPasswordStaysOffTheCommandLine(t *testing.T) {
	s := pgtest.Shared(t)
	source := s.Database(t)
	const password = `s3cret '"\ p%w;$x`
	role := fmt.Sprintf("pw_%d", os.Getpid())
	pgtest.Exec(t, source, "CREATE ROLE "+role+" LOGIN SUPERUSER PASSWORD E's3cret \\'\"\\\\ p%w;$x'")
	t.Cleanup(func() { pgtest.Exec(t, s.URL("postgres"), "DROP ROLE "+role) })
	u, err := url.Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	keyword := fmt.Sprintf(`host=%s port=%s user=%s dbname='%s' password='s3cret \'"\\ p%%w;$x' statement_timeout=5000`, u.Hostname(), u.Port(), role, strings.Trim(u.Path, "/"))
	u.RawQuery += "&statement_timeout=5000&pool_max_conns=3"
	seen := filepath.Join(t.TempDir(), "seen")
	spy := filepath.Join(t.TempDir(), "pg_dump")
	if err := os.WriteFile(spy, []byte("#!/bin/sh\n[ \"$1\" = --version ] && { echo 'pg_dump (PostgreSQL) 18.1'; exit; }\necho \"$@\" > '"+seen+"'\necho \"no: $PGPASSWORD\" >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dsn := range []string{strings.Replace(u.String(), "&pool_max_conns=3", "", 1), keyword} {
		pgtest.Exec(t, source, "CREATE TABLE IF NOT EXISTS public.a (id integer)")
		entries, err := Dump(testContext(t), DumpOptions{URL: dsn, PgDump: pgtest.PgDump(15)})
		if err != nil || len(entries) != 1 {
			t.Fatalf("%s: %d entries, %v", dsn, len(entries), err)
		}
		_, err = Dump(testContext(t), DumpOptions{URL: dsn, PgDump: spy})
		var hinted *preflight.Hinted
		if !errors.As(err, &hinted) || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "no: xxxxx") {
			t.Errorf("error %v", err)
		}
		args, rerr := os.ReadFile(seen)
		if rerr != nil || strings.Contains(string(args), "s3cret") || !strings.Contains(string(args), role) {
			t.Errorf("command line %s, %v", args, rerr)
		}
	}
}

func TestClientTooOldOrMissing(t *testing.T) {
	source := pgtest.Shared(t).Database(t)
	old := filepath.Join(t.TempDir(), "pg_dump")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho 'pg_dump (PostgreSQL) 12.22 (Debian 12.22-1)'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]string{old: "pg-dump-too-old", "/nowhere/pg_dump": "pg-dump-missing"} {
		_, err := Dump(testContext(t), DumpOptions{URL: source, PgDump: path})
		var hinted *preflight.Hinted
		if !errors.As(err, &hinted) || hinted.Code != code || hinted.Hint == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestTLSSettingsReachTheClient(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{TLS: true})
	source := s.Database(t)
	pgtest.Exec(t, source, "CREATE TABLE public.a (id integer)")
	base, _, _ := strings.Cut(source, "?")
	for _, query := range []string{"sslmode=require", "sslmode=verify-ca&sslrootcert=" + url.QueryEscape(s.CertFile())} {
		if entries, err := Dump(testContext(t), DumpOptions{URL: base + "?" + query, PgDump: pgtest.PgDump(15)}); err != nil || len(entries) != 1 {
			t.Errorf("%s: %d entries, %v", query, len(entries), err)
		}
	}
}

// User mappings hold passwords, which must not get into the plan that is kept on the target.
func TestUserMappingsStayBehind(t *testing.T) {
	source := pgtest.Shared(t).Database(t)
	pgtest.Exec(t, source, `CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'h');
		CREATE USER MAPPING FOR postgres SERVER far OPTIONS (password 's3cret'); CREATE FOREIGN TABLE public.f (i integer) SERVER far`)
	entries := mustDump(t, source, 15)
	for _, e := range entries {
		if strings.Contains(e.SQL, "s3cret") {
			t.Errorf("%s holds a password", e)
		}
	}
	skipped, err := Unreplicated(testContext(t), connect(t, source), Filter{})
	if err != nil || len(skipped) != 1 || skipped[0].Reason != "foreign table" {
		t.Errorf("%v, %v", skipped, err)
	}
}
