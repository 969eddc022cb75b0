package probe

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication/schema"
	"replicator/replication/schema/schematest"
)

func options(source, target string) Options {
	return Options{Pair: "main", SourceURL: source, TargetURL: target, Capture: "auto", Copy: "full", Catalog: schema.Catalog{PgDump: pgtest.PgDump(15)},
		ID: postgres.Identity{Migration: "probe", Pair: "main"}}
}

// check runs the probes and requires the given findings, written "side/code=severity"; any other than OK that isn't given
// is an error too, unless lenient.
func check(t *testing.T, o Options, want ...string) []preflight.Finding {
	t.Helper()
	findings := Run(t.Context(), o)
	wanted := map[string]bool{}
	for _, w := range want {
		wanted[w] = true
	}
	for _, f := range findings {
		key := fmt.Sprintf("%s/%s=%s", f.Side, f.Code, f.Severity)
		if f.Severity != preflight.OK && f.Hint == "" {
			t.Errorf("%s has no hint: %s", key, f.Message)
		}
		if f.Pair != "main" {
			t.Errorf("%s is of pair %q", key, f.Pair)
		}
		if strings.Contains(f.Message+f.Hint, "s3cret") {
			t.Errorf("%s shows the password: %s %s", key, f.Message, f.Hint)
		}
		if f.Severity >= preflight.Warning && !wanted[key] {
			t.Errorf("unexpected %s: %s (%s)", key, f.Message, f.Hint)
		}
		delete(wanted, key)
	}
	for w := range wanted {
		t.Errorf("missing %s", w)
		for _, f := range findings {
			if strings.Contains(w, f.Code) {
				t.Logf("there is %s/%s=%s: %s", f.Side, f.Code, f.Severity, f.Message)
			}
		}
	}
	return findings
}

// everythingWarns is what the test schema, with one of everything, is warned about.
var everythingWarns = []string{"source/no-key=warning", "source/not-replicated=warning"}

func with(base []string, more ...string) []string {
	return append(append([]string(nil), base...), more...)
}

func TestAllIsWell(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.users (id bigint PRIMARY KEY, name text)")
	findings := check(t, options(src, dst))
	if len(findings) < 30 {
		t.Errorf("only %d findings: every probe is to show", len(findings))
	}
	before := pgtest.DumpSchema(t, src) + pgtest.DumpSchema(t, dst)
	check(t, options(src, dst))
	if before != pgtest.DumpSchema(t, src)+pgtest.DumpSchema(t, dst) {
		t.Error("the probes changed something")
	}
}

func TestEverything(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, schematest.Everything, schematest.Rows)
	check(t, options(src, dst), everythingWarns...)
}

func TestBadConnections(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.users (id bigint PRIMARY KEY)")
	change := func(f func(u *url.URL)) string {
		u, err := url.Parse(src)
		if err != nil {
			t.Fatal(err)
		}
		f(u)
		return u.String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	_ = l.Close()
	for _, c := range []struct{ name, source, code string }{
		{"password", change(func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "s3cret") }), "authentication-failed"},
		{"role", change(func(u *url.URL) { u.User = url.UserPassword("nobody-here", "s3cret") }), "authentication-failed"},
		{"database", change(func(u *url.URL) { u.Path = "/nowhere" }), "database-missing"},
		{"port", change(func(u *url.URL) { u.Host = dead }), "unreachable"},
		{"host", change(func(u *url.URL) { u.Host = "no-such-host.invalid:5432" }), "unreachable"},
		{"url", "postgres://u:s3cret@h:notaport/db", "url-invalid"},
		{"tls", change(func(u *url.URL) { u.RawQuery = "sslmode=require" }), "tls-failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check(t, options(c.source, dst), "source/"+c.code+"=error")
		})
	}
	t.Run("both", func(t *testing.T) {
		check(t, options("postgres://u:s3cret@h:notaport/db", "host=127.0.0.1 password=s3cret port=1"), "source/url-invalid=error", "target/unreachable=error")
	})
}

func TestSameDatabase(t *testing.T) {
	s := pgtest.Shared(t)
	src := s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.users (id bigint PRIMARY KEY)")
	check(t, options(src, src), "/same-database=error", "target/target-empty=error")
}

func TestTarget(t *testing.T) {
	s := pgtest.Shared(t)
	src := s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.users (id bigint PRIMARY KEY)")
	for _, c := range []struct {
		name, sql string
		want      []string
	}{
		{"table", "CREATE TABLE public.x ()", []string{"target/target-empty=error"}},
		{"function", "CREATE FUNCTION public.f() RETURNS integer LANGUAGE sql AS 'SELECT 1'", []string{"target/target-empty=error"}},
		{"type", "CREATE TYPE public.e AS ENUM ()", []string{"target/target-empty=error"}},
		{"state", "CREATE SCHEMA replicator; CREATE TABLE replicator.x ()", []string{"target/target-state=error"}},
		{"state of another", "CREATE SCHEMA replicator; CREATE TABLE replicator.migration AS SELECT 'other' AS name", []string{"target/target-state=error"}},
		{"state of ours, begun and nothing made", "CREATE SCHEMA replicator; CREATE TABLE replicator.migration AS SELECT 'probe' AS name", nil},
		{"extension", "CREATE EXTENSION hstore", nil},
		{"no public", "DROP SCHEMA public", []string{"target/schema-public=error"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst := s.Database(t)
			pgtest.Exec(t, dst, c.sql)
			check(t, options(src, dst), c.want...)
			o := options(src, dst)
			o.Resuming = true
			if c.name != "no public" {
				check(t, o)
			}
		})
	}
	dst := s.Database(t)
	o := options(src, dst)
	o.Copy = "none"
	check(t, o, "target/target-empty=error")
	pgtest.Exec(t, dst, "CREATE TABLE public.users (id bigint PRIMARY KEY)")
	check(t, o)
}

func TestObstaclesOnTheSource(t *testing.T) {
	s := pgtest.Shared(t)
	for _, c := range []struct {
		name, sql string
		want      []string
	}{
		{"nothing", "", []string{"source/tables=error"}},
		{"large object", "CREATE TABLE public.t (id integer PRIMARY KEY); SELECT lo_create(0)", []string{"source/large-objects=error"}},
		{"left out", "CREATE TABLE public.left_out (id integer PRIMARY KEY); CREATE TABLE public.t (id integer PRIMARY KEY REFERENCES public.left_out)", []string{"source/foreign-key-left-out=error"}},
		{"deferrable", "CREATE TABLE public.t (id integer PRIMARY KEY DEFERRABLE)", []string{"source/no-key=warning"}},
		{"publication", "CREATE TABLE public.t (id integer PRIMARY KEY); CREATE PUBLICATION replicator_probe_main", []string{"source/publication=error", "source/capture=error"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := s.Database(t), s.Database(t)
			pgtest.Exec(t, src, c.sql)
			o := options(src, dst)
			o.Catalog = schema.Catalog{PgDump: pgtest.PgDump(15), Filter: schema.Filter{Exclude: []string{"public.left_out"}}}
			check(t, o, c.want...)
		})
	}
}

func TestSlots(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	o := options(src, dst)
	o.Slot = "not_there"
	check(t, o, "source/slot=error", "source/capture=error")
	pgtest.Exec(t, src, "SELECT pg_create_logical_replication_slot('replicator_probe_main', 'pgoutput')")
	check(t, options(src, dst), "source/slot=error", "source/capture=error")
	o = options(src, dst)
	o.Resuming = true
	check(t, o)
	o.Resuming, o.Slot = false, "replicator_probe_main"
	check(t, o)
	pgtest.Exec(t, src, "SELECT pg_drop_replication_slot('replicator_probe_main'); SELECT pg_create_logical_replication_slot('replicator_probe_main', 'test_decoding')")
	check(t, o, "source/slot=error", "source/capture=error")
	o = options(src, dst)
	o.Capture = "trigger"
	check(t, o, "source/capture=error")
}

func TestPgDump(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	o := options(src, dst)
	o.Catalog = schema.Catalog{PgDump: "/nowhere/pg_dump"}
	check(t, o, "/pg-dump-missing=error")
	o.Catalog = schema.Catalog{PgDump: oldClient(t)}
	check(t, o, "/pg-dump-too-old=error")
}
