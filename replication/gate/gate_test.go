package gate

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

func TestInstallCoversEveryWayToTheRows(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	f.install(t)
	s, err := f.gate.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := names("accounts", "animals", "audit", "birds", "entries", "events", "events_a", "events_b", "events_b_leaf", "scratch")
	if !s.Installed || s.Armed || !slices.Equal(s.Tables, want) {
		t.Fatalf("state %+v, want disarmed on %v", s, want)
	}
	app := pgtest.Connect(t, f.app)
	mustExec(t, app, `INSERT INTO events (kind) VALUES (1), (2)`)
	f.arm(t, "secret", time.Minute)
	for _, sql := range []string{
		`INSERT INTO accounts VALUES (1000)`,
		`INSERT INTO accounts VALUES (1) ON CONFLICT (id) DO UPDATE SET balance = 0`,
		`INSERT INTO accounts VALUES (1) ON CONFLICT DO NOTHING`,
		`UPDATE accounts SET balance = 0 WHERE false`,
		`DELETE FROM accounts WHERE id = 1`,
		`TRUNCATE scratch`,
		`INSERT INTO events (kind) VALUES (1)`,
		`INSERT INTO events_a (kind) VALUES (1)`,
		`INSERT INTO events_b (kind) VALUES (2)`,
		`INSERT INTO events_b_leaf (kind) VALUES (2)`,
		`UPDATE events SET kind = 3 - kind`,
		`TRUNCATE events`,
		`UPDATE animals SET legs = 3`,
		`UPDATE ONLY animals SET legs = 3`,
		`DELETE FROM birds`,
		`TRUNCATE animals`,
		`UPDATE rich SET balance = 1`,
		`SELECT note(1)`,
		`WITH x AS (INSERT INTO scratch VALUES (1) RETURNING n) SELECT * FROM x`,
		`MERGE INTO scratch s USING (SELECT 1 n) x ON s.n = x.n WHEN NOT MATCHED THEN INSERT VALUES (x.n)`,
		`DO 'BEGIN EXECUTE ''DELETE FROM scratch''; END'`,
		`INSERT INTO ungated VALUES (1)`, // its deferred trigger writes to a gated table at commit
	} {
		wantRefused(t, app, sql)
	}
	if _, err := app.CopyFrom(t.Context(), pgx.Identifier{"events"}, []string{"kind"}, pgx.CopyFromRows([][]any{{1}})); postgres.Code(err) != postgres.CodeReadOnly {
		t.Errorf("COPY: got %v, want SQLSTATE 25006", err)
	}
	mustExec(t, app, `SELECT * FROM accounts FOR UPDATE`)
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustExec(t, app, `UPDATE accounts SET balance = 7`)
}

func TestErrorsSayWhatToDo(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	f.arm(t, "secret", time.Minute)
	_, err := app.Exec(t.Context(), `DELETE FROM accounts`)
	contains(t, err, "cutover is under way")
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || !strings.Contains(pe.Hint, "again shortly") {
		t.Errorf("hint %v", err)
	}
	f.arm(t, "secret", 0)
	_, err = app.Exec(t.Context(), `DELETE FROM accounts`)
	contains(t, err, "no longer, the primary side")
}

func TestPassIsByTokenAndEndsWithTheTransaction(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	f.arm(t, "secret", time.Minute)
	app := pgtest.Connect(t, f.app)
	for token, want := range map[string]string{"secret": "", "Secret": postgres.CodeReadOnly, "": postgres.CodeReadOnly, hashToken("secret"): postgres.CodeReadOnly} {
		err := pgx.BeginFunc(t.Context(), app, func(tx pgx.Tx) error {
			if err := Pass(t.Context(), tx, token); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `UPDATE accounts SET balance = 1`)
			return err
		})
		if postgres.Code(err) != want || (want == "" && err != nil) {
			t.Errorf("token %q: %v", token, err)
		}
		wantRefused(t, app, `UPDATE accounts SET balance = 1`)
	}
	var readable string
	if err := f.pool.QueryRow(t.Context(), readBodySQL).Scan(&readable); err != nil || strings.Contains(readable, "secret") {
		t.Errorf("anybody can read the token in the function's body: %s %v", readable, err)
	}
	s, err := f.gate.State(t.Context())
	if err != nil || !s.HeldBy("secret") || s.HeldBy("other") || !s.Armed || s.Remaining <= 0 {
		t.Errorf("state %+v %v", s, err)
	}
}

func TestDeadlineOpensByItself(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	f.arm(t, "secret", time.Second)
	wantRefused(t, app, `UPDATE accounts SET balance = 2`)
	eventually(t, "the deadline passes", func() bool {
		_, err := app.Exec(t.Context(), `UPDATE accounts SET balance = 2`)
		return err == nil
	})
	s, err := f.gate.State(t.Context())
	if err != nil || s.Armed || !s.Expired {
		t.Errorf("state %+v %v", s, err)
	}
	// The freeze had a hole: neither renewing nor sealing may hide that.
	for _, ttl := range []time.Duration{time.Minute, 0} {
		if err := f.gate.Arm(t.Context(), "secret", ttl); !errors.Is(err, ErrExpired) {
			t.Errorf("Arm with ttl %v after expiry: %v", ttl, err)
		}
	}
	mustExec(t, app, `UPDATE accounts SET balance = 3`)
	if err := f.gate.Barrier(t.Context()); !errors.Is(err, ErrNotArmed) {
		t.Errorf("Barrier after expiry: %v", err)
	}
	f.arm(t, "another attempt", time.Minute)
	wantRefused(t, app, `UPDATE accounts SET balance = 2`)
}

func TestPermanentIsNeverWeakened(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	f.arm(t, "brief", 500*time.Millisecond)
	if err := f.gate.Arm(t.Context(), "brief", 0); !errors.Is(err, ErrExpired) {
		t.Errorf("sealing with less than a second left: %v", err)
	}
	f.arm(t, "secret", time.Minute)
	f.arm(t, "secret", 0)
	f.arm(t, "secret", 0)
	for _, token := range []string{"secret", "other"} {
		if err := f.gate.Arm(t.Context(), token, time.Minute); !errors.Is(err, ErrPermanent) {
			t.Errorf("a deadline on a permanent gate, token %q: %v", token, err)
		}
	}
	f.install(t) // a restarted daemon does that
	wantRefused(t, app, `UPDATE accounts SET balance = 2`)
	if s, err := f.gate.State(t.Context()); err != nil || !s.Permanent || !s.Armed || !s.Deadline.IsZero() {
		t.Errorf("state %+v %v", s, err)
	}
	if err := f.gate.Barrier(t.Context()); err != nil {
		t.Error(err)
	}
}

// A process that was cut off and comes back can prolong or seal only what is still its own freeze.
func TestRenewAndSealNeedALivingFreeze(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	refused := func(when string, want error) {
		t.Helper()
		if err := f.gate.Renew(t.Context(), "mine", time.Minute); !errors.Is(err, want) {
			t.Errorf("%s: Renew gave %v", when, err)
		}
		if err := f.gate.Seal(t.Context(), "mine"); !errors.Is(err, want) {
			t.Errorf("%s: Seal gave %v", when, err)
		}
	}
	refused("never armed", ErrNotArmed)
	f.arm(t, "mine", time.Minute)
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	refused("disarmed by another", ErrNotArmed)
	mustExec(t, app, `UPDATE accounts SET balance = 1`)
	f.arm(t, "theirs", time.Minute)
	refused("armed by another", ErrNotArmed)
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.arm(t, "mine", time.Millisecond)
	eventually(t, "it expires", func() bool {
		s, err := f.gate.State(t.Context())
		return err == nil && s.Expired
	})
	refused("expired", ErrExpired)
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.arm(t, "mine", time.Minute)
	if err := f.gate.Renew(t.Context(), "mine", 2*time.Minute); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := f.gate.Seal(t.Context(), "mine"); err != nil {
			t.Error(err)
		}
	}
	if s, err := f.gate.State(t.Context()); err != nil || !s.Permanent {
		t.Errorf("state %+v %v", s, err)
	}
}

// An application may log DDL by an event trigger into a table that is gated.
func TestEventTriggerThatWritesIsNoObstacle(t *testing.T) {
	f := newFixture(t)
	pgtest.Exec(t, f.super, `CREATE FUNCTION log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.audit VALUES (7); END'`,
		`CREATE EVENT TRIGGER log_ddl ON ddl_command_end EXECUTE FUNCTION log_ddl()`)
	f.install(t)
	f.arm(t, "x", time.Minute)
	f.arm(t, "x", time.Minute)
	if err := f.gate.Seal(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestAnotherOwnerIsNamedBeforeTheFreeze(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	pgtest.Exec(t, f.super, `ALTER FUNCTION replicator.gate() OWNER TO postgres`)
	contains(t, f.gate.Install(t.Context(), f.tables), "belongs to another role", "OWNER TO")
	contains(t, f.gate.Arm(t.Context(), "x", time.Minute), "connect with the role that installed the gate")
}

func TestInstallMendsWhatWasTamperedWith(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	f.arm(t, "secret", time.Minute)
	pgtest.Exec(t, f.owner, `ALTER TABLE accounts DISABLE TRIGGER USER`, `DROP TRIGGER replicator_gate ON scratch`,
		`DROP TRIGGER replicator_gate ON audit`, `CREATE TRIGGER replicator_gate BEFORE INSERT ON audit FOR EACH STATEMENT EXECUTE FUNCTION replicator.gate()`)
	s, err := f.gate.State(t.Context())
	if err != nil || !slices.Equal(s.Missing(f.tables), names("accounts", "scratch", "audit")) {
		t.Fatalf("missing %v %v", s.Missing(f.tables), err)
	}
	pgtest.Exec(t, f.owner, `CREATE TABLE added (n int)`)
	f.tables = append(f.tables, names("added")...)
	f.install(t)
	owner := pgtest.Connect(t, f.owner)
	for _, sql := range []string{`DELETE FROM accounts`, `TRUNCATE scratch`, `DELETE FROM audit`, `INSERT INTO added VALUES (1)`} {
		wantRefused(t, owner, sql)
	}
}

func TestInstallNamesWhatItCannotDo(t *testing.T) {
	f := newFixture(t)
	contains(t, f.gate.Install(t.Context(), names("accounts", "nowhere")), "no such table", "public.nowhere")
	pgtest.Exec(t, f.super, `CREATE TABLE theirs (n int)`)
	contains(t, f.gate.Install(t.Context(), append(names("theirs"), f.tables...)), "public.theirs", "OWNER TO")
	// The others got theirs all the same.
	if s, err := f.gate.State(t.Context()); err != nil || len(s.Missing(f.tables)) > 0 {
		t.Errorf("missing %v %v", s.Missing(f.tables), err)
	}
}

func TestReplicaRolePassesAndReadsGoOn(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	f.arm(t, "secret", 0)
	apply := pgtest.Connect(t, f.super)
	mustExec(t, apply, `SET session_replication_role = replica`)
	mustExec(t, apply, `UPDATE accounts SET balance = 5`)
}

func dump(t *testing.T, url string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), pgtest.PgDump(15), "--dbname", url).Output()
	if err != nil {
		t.Fatalf("pg_dump: %v", err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, `\restrict`) && !strings.HasPrefix(line, `\unrestrict`) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func TestUninstallLeavesNoTrace(t *testing.T) {
	f := newFixture(t)
	before := dump(t, f.super)
	f.install(t)
	f.arm(t, "secret", 0)
	if dump(t, f.super) == before {
		t.Fatal("the dump doesn't show the gate: this test proves nothing")
	}
	for range 2 {
		if err := f.gate.Uninstall(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := dump(t, f.super); after != before {
		t.Errorf("pg_dump differs after Uninstall:\n%s", after)
	}
	s, err := f.gate.State(t.Context())
	if err != nil || s.Installed {
		t.Errorf("state %+v %v", s, err)
	}
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Error(err)
	}
	if err := f.gate.Arm(t.Context(), "x", 0); !errors.Is(err, ErrNotInstalled) {
		t.Errorf("Arm without a gate: %v", err)
	}
}

func TestUninstallLeavesOthersInTheSchema(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	pgtest.Exec(t, f.owner, `CREATE TABLE replicator.heartbeat (n int)`)
	if err := f.gate.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, f.owner, `SELECT * FROM replicator.heartbeat`)
}
