package pgtest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// scope is a TB whose cleanup the test decides.
type scope struct {
	*testing.T
	cleanups []func()
	errors   []string
}

func (s *scope) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }
func (s *scope) Errorf(format string, args ...any) {
	s.errors = append(s.errors, fmt.Sprintf(format, args...))
}
func (s *scope) Failed() bool { return len(s.errors) > 0 }
func (s *scope) end() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}

func TestDatabaseIsDroppedWhateverHoldsIt(t *testing.T) {
	t.Parallel()
	s := pgtest.Shared(t)
	inner := &scope{T: t}
	url := s.Database(inner)
	owner := s.LogicalOwner(inner, url)
	pgtest.Exec(t, owner, "create table t (id int primary key)", "begin; insert into t values (1); prepare transaction 'it''s held'")
	idle := pgtest.Connect(t, url)
	if _, err := idle.Exec(t.Context(), "begin; select * from t"); err != nil {
		t.Fatal(err)
	}
	// Creating a slot waits for prepared transactions, so the transaction is prepared again after it.
	pgtest.Exec(t, url, "rollback prepared 'it''s held'", "select pg_create_logical_replication_slot('held_"+name(t, url)+"', 'pgoutput')",
		"begin; insert into t values (1); prepare transaction 'it''s held'", "create publication p for table t")
	walsender, err := pgconn.Connect(t.Context(), owner+"&replication=database")
	if err != nil {
		t.Fatal(err)
	}
	defer walsender.Close(t.Context())
	stream := walsender.Exec(t.Context(), "START_REPLICATION SLOT held_"+name(t, url)+` LOGICAL 0/0 (proto_version '1', publication_names 'p')`)
	defer stream.Close()

	inner.end()
	if inner.Failed() {
		t.Fatalf("cleanup: %v", inner.errors)
	}
	admin := pgtest.Connect(t, s.URL("postgres"))
	left := queryString(t, admin, `select (select count(*) from pg_database where datname = $1)
		+ (select count(*) from pg_replication_slots where database = $1)
		+ (select count(*) from pg_roles where rolname = $2) || ''`, name(t, url), user(t, owner))
	if left != "0" {
		t.Errorf("%s of database, slot and role are left", left)
	}
}

func name(t *testing.T, url string) string { return parse(t, url).Database }
func user(t *testing.T, url string) string { return parse(t, url).User }

func parse(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRolesMayWhatTheirHostsAllow(t *testing.T) {
	t.Parallel()
	old := pgtest.Start(t, pgtest.Options{Version: 13})
	const (
		ownsTable    = "create table t (id int primary key); create schema s; create publication p for table t; drop publication p; drop table t; drop schema s"
		statistics   = "show data_directory"
		replicaRole  = "set session_replication_role = replica"
		slot         = "select pg_create_logical_replication_slot('role_test', 'pgoutput', true)"
		createRole   = "create role somebody"
		createDB     = "create database something"
		eventTrigger = "create function f() returns event_trigger language plpgsql as 'begin end'; create event trigger e on ddl_command_end execute function f()"
	)
	for _, c := range []struct {
		role       string
		server     *pgtest.Server
		make       func(*pgtest.Server, pgtest.TB, string) string
		may, maynt []string
	}{
		{"heroku", pgtest.Shared(t), (*pgtest.Server).HerokuOwner, []string{ownsTable, statistics}, []string{replicaRole, slot, createRole, createDB, eventTrigger}},
		{"heroku 13", old, (*pgtest.Server).HerokuOwner, []string{ownsTable, statistics}, []string{replicaRole, slot, createRole, createDB, eventTrigger}},
		{"rds", pgtest.Shared(t), (*pgtest.Server).RDSMaster, []string{ownsTable, replicaRole}, []string{slot, createRole, createDB, eventTrigger, statistics}},
		{"rds 13", old, (*pgtest.Server).RDSMaster, []string{ownsTable}, []string{slot, replicaRole}},
		{"logical", pgtest.Shared(t), (*pgtest.Server).LogicalOwner, []string{ownsTable, replicaRole, slot}, []string{createRole, createDB, eventTrigger}},
		{"logical 13", old, (*pgtest.Server).LogicalOwner, []string{ownsTable, slot}, []string{replicaRole}},
	} {
		t.Run(c.role, func(t *testing.T) {
			url := c.make(c.server, t, c.server.Database(t))
			for _, sql := range c.may {
				if err := try(t, url, sql); err != nil {
					t.Errorf("may not %q: %v", sql, err)
				}
			}
			for _, sql := range c.maynt {
				if err := try(t, url, sql); err == nil {
					t.Errorf("may %q", sql)
				}
			}
		})
	}
}

func try(t *testing.T, url, sql string) error {
	t.Helper()
	conn := pgtest.Connect(t, url)
	_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
	return err
}

func TestEachDatabaseIsItsOwn(t *testing.T) {
	t.Parallel()
	s := pgtest.Shared(t)
	a, b := s.Database(t), s.Database(t)
	pgtest.Exec(t, a, "create table only_here (id int)")
	if err := try(t, b, "select * from only_here"); err == nil || !strings.Contains(err.Error(), "42P01") {
		t.Errorf("the other database answers %v", err)
	}
}

func TestLoadChinookAsAnOrdinaryOwner(t *testing.T) {
	t.Parallel()
	s := pgtest.Shared(t)
	owner := s.HerokuOwner(t, s.Database(t))
	pgtest.LoadChinook(t, owner)
	conn := pgtest.Connect(t, owner)
	tables := queryString(t, conn, "select string_agg(tablename, ' ' order by tablename) from pg_tables where schemaname = 'public'")
	if want := "album artist customer employee genre invoice invoice_line media_type playlist playlist_track track"; tables != want {
		t.Errorf("tables %s, want %s", tables, want)
	}
	var rows int
	for _, table := range strings.Fields(tables) {
		var n int
		if err := conn.QueryRow(t.Context(), "select count(*) from "+table).Scan(&n); err != nil {
			t.Fatal(err)
		}
		rows += n
	}
	if rows != 15607 {
		t.Errorf("%d rows, want 15607", rows)
	}
}

func TestAStartIsFast(t *testing.T) {
	pgtest.Start(t, pgtest.Options{}) // makes the template on a fresh machine
	begin := time.Now()
	pgtest.Start(t, pgtest.Options{})
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("a start took %v: is the template copied?", took)
	}
}
