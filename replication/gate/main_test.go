package gate

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/internal/retry"
	"replicator/replication"
)

// fixture is a database as an application has it: an owner who is no superuser, and a role that may only read and write.
type fixture struct {
	server *pgtest.Server
	super  string
	owner  string
	app    string
	pool   *pgxpool.Pool
	gate   *Gate
	tables []replication.TableName
}

var schema = []string{
	`CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0)`,
	`CREATE TABLE entries (id bigserial PRIMARY KEY, account int REFERENCES accounts ON DELETE CASCADE, note text)`,
	`CREATE TABLE events (id bigserial, kind int NOT NULL, note text, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind)`,
	`CREATE TABLE events_a PARTITION OF events FOR VALUES IN (1)`,
	`CREATE TABLE events_b PARTITION OF events FOR VALUES IN (2) PARTITION BY LIST (kind)`,
	`CREATE TABLE events_b_leaf PARTITION OF events_b FOR VALUES IN (2)`,
	`CREATE TABLE animals (name text, legs int)`,
	`CREATE TABLE birds (wings int) INHERITS (animals)`,
	`CREATE TABLE scratch (n int)`,
	`CREATE TABLE audit (n bigint)`,
	`CREATE VIEW rich AS SELECT * FROM accounts WHERE balance >= 0`,
	`INSERT INTO accounts SELECT g, 100 FROM generate_series(1, 50) g`,
	`INSERT INTO animals VALUES ('dog', 4)`,
	`INSERT INTO birds VALUES ('owl', 2, 2)`,
	`CREATE FUNCTION note(a int) RETURNS void LANGUAGE plpgsql AS 'BEGIN INSERT INTO entries (account, note) VALUES (a, ''f''); UPDATE accounts SET balance = balance + 1 WHERE id = a; END'`,
	`CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO audit VALUES (NEW.n); RETURN NULL; END'`,
	`CREATE TABLE ungated (n bigint)`,
	`CREATE CONSTRAINT TRIGGER late AFTER INSERT ON ungated DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()`,
}

func names(list ...string) []replication.TableName {
	var out []replication.TableName
	for _, n := range list {
		out = append(out, replication.TableName{Schema: "public", Name: n})
	}
	return out
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	return newFixtureOn(t, pgtest.Shared(t))
}

func newFixtureOn(t *testing.T, server *pgtest.Server) *fixture {
	t.Helper()
	f := &fixture{server: server, super: server.Database(t)}
	f.owner = server.HerokuOwner(t, f.super)
	pgtest.Exec(t, f.owner, schema...)
	// A second credential without any right to schema replicator or its function.
	f.app = server.RDSMaster(t, f.super)
	server2 := roleOf(t, f.app)
	pgtest.Exec(t, f.super, "ALTER DATABASE "+databaseOf(t, f.super)+" OWNER TO "+roleOf(t, f.owner))
	pgtest.Exec(t, f.owner,
		"GRANT USAGE ON SCHEMA public TO "+server2,
		"GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO "+server2,
		"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "+server2,
		"ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
	f.pool = newPool(t, f.owner)
	f.gate = New(f.pool, slog.New(slog.DiscardHandler))
	f.tables = names("accounts", "entries", "events_a", "events_b_leaf", "animals", "birds", "scratch", "audit")
	return f
}

func newPool(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	p, err := postgres.Pool(t.Context(), url, postgres.Identity{Migration: "test", Pair: "main"}, "gate", 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func roleOf(t *testing.T, url string) string {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return c.User
}

func databaseOf(t *testing.T, url string) string {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return c.Database
}

func (f *fixture) install(t *testing.T) {
	t.Helper()
	if err := f.gate.Install(t.Context(), f.tables); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) arm(t *testing.T, token string, ttl time.Duration) {
	t.Helper()
	if err := f.gate.Arm(t.Context(), token, ttl); err != nil {
		t.Fatal(err)
	}
}

func mustExec(t *testing.T, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func wantRefused(t *testing.T, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql, args...); postgres.Code(err) != postgres.CodeReadOnly {
		t.Errorf("%s: got %v, want SQLSTATE 25006", sql, err)
	}
}

// eventually waits for a condition, at most half a minute.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := retry.Do(ctx, retry.Policy{First: 2 * time.Millisecond, Max: 20 * time.Millisecond}, func(context.Context) error {
		if !cond() {
			return errors.New("not yet")
		}
		return nil
	}); err != nil {
		t.Fatalf("waiting until %s: %v", what, err)
	}
}

func contains(t *testing.T, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("error %q doesn't say %q", err, p)
		}
	}
}
