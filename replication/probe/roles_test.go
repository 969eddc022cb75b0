package probe

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/schema/schematest"
)

// oldClient is a program that answers as a pg_dump of version 12.
func oldClient(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pg_dump")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho 'pg_dump (PostgreSQL) 12.22'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Heroku's owner can't replicate, so that triggers capture, and, as a target, can't silence triggers; the probe says both and what to do.
func TestHerokuOwner(t *testing.T) {
	s := pgtest.Shared(t)
	srcDB, dstDB := s.Database(t), s.Database(t)
	src, dst := s.HerokuOwner(t, srcDB), s.RDSMaster(t, dstDB)
	pgtest.Exec(t, src, schematest.Everything)
	findings := check(t, options(src, dst), with(everythingWarns, "source/replication-privilege=error", "source/capture=error")...)
	for _, f := range findings {
		if f.Code == "capture" && !strings.Contains(f.Hint, "logical replication") {
			t.Errorf("the capture's remedy is %q", f.Hint)
		}
	}
	o := options(src, dst)
	o.Triggers = func(_ context.Context, _ *pgx.Conn, tables []replication.Table) ([]preflight.Finding, error) {
		if len(tables) == 0 {
			t.Error("no table was handed on")
		}
		return []preflight.Finding{{Code: "capture-keyless", Severity: preflight.Warning, Message: "some table", Hint: "some remedy"}}, nil
	}
	check(t, o, with(everythingWarns, "source/capture-keyless=warning")...)
	check(t, options(s.Database(t), src), "source/tables=error", "target/target-empty=error", "target/session-replication-role=error")
}

// The owner of a database who may replicate needs nothing else.
func TestLogicalOwnerToRDSMaster(t *testing.T) {
	s := pgtest.Shared(t)
	srcDB, dstDB := s.Database(t), s.Database(t)
	src, dst := s.LogicalOwner(t, srcDB), s.RDSMaster(t, dstDB)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	check(t, options(src, dst))
}

func TestMissingRights(t *testing.T) {
	s := pgtest.Shared(t)
	db, dst := s.Database(t), s.Database(t)
	src := s.LogicalOwner(t, db)
	pgtest.Exec(t, src, "CREATE TABLE public.mine (id integer PRIMARY KEY)")
	pgtest.Exec(t, db, `CREATE TABLE public.theirs (id serial PRIMARY KEY); ALTER TABLE public.theirs ENABLE ROW LEVEL SECURITY; ALTER TABLE public.theirs OWNER TO postgres`)
	check(t, options(src, dst), "source/select-privilege=error", "source/table-owner=error", "source/row-security=error", "source/sequence-privilege=error",
		"source/publication-privilege=error", "source/capture=error")
	o := options(src, dst)
	o.Catalog = schema.Catalog{PgDump: pgtest.PgDump(15), Filter: schema.Filter{Exclude: []string{"public.theirs"}}}
	check(t, o, "source/sequence-privilege=error")
}

func TestServerWithoutRoom(t *testing.T) {
	tight := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_level": "replica", "max_replication_slots": "0", "max_wal_senders": "0", "max_connections": "9", "max_slot_wal_keep_size": "64MB"}})
	roomy := pgtest.Shared(t)
	src, dst := tight.Database(t), roomy.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	check(t, options(src, dst), "source/wal-level=error", "source/slot=error", "source/walsenders=error", "source/slot-retention=warning", "source/capture=error", "source/connections=warning")
	other := tight.Database(t)
	back := roomy.Database(t)
	pgtest.Exec(t, back, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	check(t, options(back, other), "target/connections=warning")
}

// One slot is enough, and whoever has no more learns what two more would give.
func TestFewSlots(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_replication_slots": "2"}})
	src, dst := s.Database(t), pgtest.Shared(t).Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	found := false
	for _, f := range check(t, options(src, dst)) {
		found = found || f.Code == "slot" && f.Severity.String() == "info" && strings.Contains(f.Message, "2 of 2") && strings.Contains(f.Hint, "max_replication_slots")
	}
	if !found {
		t.Error("nothing says that a backlog is read faster with more slots")
	}
}

func TestPreparedTransactionHoldsUp(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_prepared_transactions": "5"}})
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)", "BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'young'")
	found := false
	for _, f := range check(t, options(src, dst)) {
		found = found || f.Code == "prepared-transactions" && f.Severity.String() == "info" && strings.Contains(f.Message, "young")
	}
	if !found {
		t.Error("the prepared transaction isn't named")
	}
}

func TestEncodings(t *testing.T) {
	s := pgtest.Shared(t)
	src := s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	pgtest.Exec(t, s.URL("postgres"), "DROP DATABASE IF EXISTS latin", "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	t.Cleanup(func() { pgtest.Exec(t, s.URL("postgres"), "DROP DATABASE latin") })
	findings := Run(t.Context(), options(src, s.URL("latin")))
	found := false
	for _, f := range findings {
		found = found || f.Code == "encoding" && f.Severity.String() == "error"
	}
	if !found {
		t.Errorf("a LATIN1 target for a UTF8 source: %+v", findings)
	}
}

func TestTLS(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{TLS: true})
	src, dst := s.Database(t), pgtest.Shared(t).Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	base, _, _ := strings.Cut(src, "?")
	check(t, options(base+"?sslmode=require", dst))
	check(t, options(base+"?sslmode=disable", dst), "source/authentication-failed=error")
	check(t, options(base+"?sslmode=verify-full", dst), "source/tls-failed=error")
	check(t, options(base+"?sslmode=verify-ca&sslrootcert="+s.CertFile(), dst))
}

// The oldest and the newest supported server, both ways.
func TestVersions(t *testing.T) {
	old, recent := pgtest.Start(t, pgtest.Options{Version: 13}), pgtest.Start(t, pgtest.Options{Version: 18})
	for _, s := range []*pgtest.Server{old, recent} {
		t.Run(strconv.Itoa(s.Version()), func(t *testing.T) {
			src, dst := s.Database(t), recent.Database(t)
			pgtest.Exec(t, src, schematest.Everything)
			o := options(src, dst)
			o.Catalog = schema.Catalog{PgDump: pgtest.PgDump(18)}
			check(t, o, everythingWarns...)
			if s == old {
				o = options(recent.Database(t), old.Database(t))
				o.Catalog = schema.Catalog{PgDump: pgtest.PgDump(18)}
				check(t, o, "source/tables=error", "target/target-older=error")
			}
		})
	}
}
