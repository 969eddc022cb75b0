package gate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// startBarrier runs Barrier beside the test; the channel gives its result.
func startBarrier(ctx context.Context, g *Gate) <-chan error {
	done := make(chan error, 1)
	go func() { done <- g.Barrier(ctx) }()
	return done
}

// blocked waits until the barrier has had time to see its holders and still waits: another poll of pg_locks by the same query
// names the pid.
func (f *fixture) blocked(t *testing.T, done <-chan error, virtualHolders int) {
	t.Helper()
	eventually(t, "the holders are seen", func() bool {
		h, err := f.gate.holders(t.Context())
		return err == nil && len(h) == virtualHolders
	})
	select {
	case err := <-done:
		t.Fatalf("the barrier returned %v while a writer of before was open", err)
	default:
	}
}

// Every kind of transaction that wrote before the arming may commit after it, so the barrier must wait for each.
func TestBarrierWaitsForEveryOpenWriter(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	for name, open := range map[string][]string{
		"insert":           {`BEGIN`, `INSERT INTO accounts VALUES (100)`},
		"serializable":     {`BEGIN ISOLATION LEVEL SERIALIZABLE`, `DELETE FROM scratch`},
		"savepoint":        {`BEGIN`, `SAVEPOINT a`, `UPDATE accounts SET balance = 1 WHERE id = 1`, `RELEASE a`},
		"through the root": {`BEGIN`, `INSERT INTO events (kind) VALUES (2)`},
		"leaf only":        {`BEGIN`, `INSERT INTO events_b_leaf (kind) VALUES (2)`},
		"child by parent":  {`BEGIN`, `UPDATE animals SET legs = legs`},
		"truncate":         {`BEGIN`, `TRUNCATE scratch`},
		"function":         {`BEGIN`, `SELECT note(1)`},
		"explicit lock":    {`BEGIN`, `LOCK TABLE scratch IN ROW EXCLUSIVE MODE`},
	} {
		t.Run(name, func(t *testing.T) {
			app := pgtest.Connect(t, f.app)
			for _, sql := range open {
				mustExec(t, app, sql)
			}
			f.arm(t, name, time.Minute)
			done := startBarrier(t.Context(), f.gate)
			f.blocked(t, done, 1)
			mustExec(t, app, `COMMIT`)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if err := f.gate.Disarm(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Many locks overflow the fast path's slots into the shared table; both must be seen.
func TestBarrierSeesLocksBeyondTheFastPath(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	mustExec(t, app, `BEGIN`)
	mustExec(t, app, `SELECT FROM pg_class, pg_attribute, pg_proc, pg_type, pg_index, pg_namespace, pg_constraint, events, animals LIMIT 0`)
	mustExec(t, app, `UPDATE accounts SET balance = 3 WHERE id = 3`)
	var fast bool
	const lockSQL = `SELECT bool_or(fastpath) FROM pg_locks WHERE relation = 'accounts'::regclass AND mode = 'RowExclusiveLock'`
	if err := app.QueryRow(t.Context(), lockSQL).Scan(&fast); err != nil || fast {
		t.Fatalf("the lock is in the fast path (%v): take more locks before it", err)
	}
	f.arm(t, "x", time.Minute)
	done := startBarrier(t.Context(), f.gate)
	f.blocked(t, done, 1)
	mustExec(t, app, `ROLLBACK`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestBarrierWaitsForPreparedTransactionsAndNamesThem(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	mustExec(t, app, `BEGIN`)
	mustExec(t, app, `INSERT INTO scratch VALUES (42)`)
	f.arm(t, "x", time.Minute)
	// Prepared only while the barrier already waits: it goes on under another name.
	done := startBarrier(t.Context(), f.gate)
	f.blocked(t, done, 1)
	mustExec(t, app, `PREPARE TRANSACTION 'payment 7'`)
	f.blocked(t, done, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := f.gate.Barrier(ctx)
	contains(t, err, `prepared transaction "payment 7"`, roleOf(t, f.app), "public.scratch", "ROLLBACK PREPARED")
	mustExec(t, app, `COMMIT PREPARED 'payment 7'`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestBarrierNamesTheHolder(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	mustExec(t, app, `SET application_name = 'web.1'`)
	mustExec(t, app, `BEGIN`)
	mustExec(t, app, `INSERT INTO entries (account, note) VALUES (1, 'hunter2')`)
	f.arm(t, "x", time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := f.gate.Barrier(ctx)
	contains(t, err, "web.1", roleOf(t, f.app), "idle in transaction", "public.entries", "pg_terminate_backend")
	var be *BlockedError
	if !errors.As(err, &be) || len(be.Holders) != 1 || be.Holders[0].PID != int32(app.PgConn().PID()) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %#v", err)
	}
	for _, leak := range []string{"hunter2", "INSERT"} {
		if err != nil && strings.Contains(err.Error(), leak) {
			t.Errorf("the error shows the query: %v", err)
		}
	}
}

// Readers, row lockers, maintenance, writers of other tables and our own sessions are no reason to wait.
func TestBarrierIgnoresWhoCannotWrite(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	for _, sql := range []string{`SELECT * FROM accounts`, `SELECT * FROM accounts FOR UPDATE`, `INSERT INTO ungated VALUES (1)`} {
		c := pgtest.Connect(t, f.app)
		mustExec(t, c, `BEGIN`)
		mustExec(t, c, sql)
	}
	analyze := pgtest.Connect(t, f.owner)
	mustExec(t, analyze, `BEGIN`)
	mustExec(t, analyze, `ANALYZE accounts`)
	own, err := postgres.Connect(t.Context(), f.owner, postgres.Identity{Migration: "m", Pair: "p"}, "apply")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = own.Close(context.Background()) })
	mustExec(t, own, `BEGIN`)
	mustExec(t, own, `INSERT INTO public.scratch VALUES (1)`)
	f.arm(t, "x", time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := f.gate.Barrier(ctx); err != nil {
		t.Fatal(err)
	}
	// The name alone excuses nobody: it must be our role too.
	liar := pgtest.Connect(t, f.app)
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustExec(t, liar, `SET application_name = 'replicator/m/p/apply/e1'`)
	mustExec(t, liar, `BEGIN`)
	mustExec(t, liar, `INSERT INTO scratch VALUES (2)`)
	f.arm(t, "y", time.Minute)
	done := startBarrier(t.Context(), f.gate)
	f.blocked(t, done, 1)
	mustExec(t, liar, `ROLLBACK`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A transaction whose snapshot is older than the arming meets the armed gate all the same, whatever it did before.
func TestOldSnapshotsMeetTheArmedGate(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	warm := `INSERT INTO scratch VALUES (1)`
	for _, begin := range []string{`BEGIN ISOLATION LEVEL REPEATABLE READ`, `BEGIN ISOLATION LEVEL SERIALIZABLE`, `BEGIN`} {
		app := pgtest.Connect(t, f.app)
		mustExec(t, app, warm) // the disarmed function is compiled and cached in this session, its statements prepared
		mustExec(t, app, `SELECT note(2)`)
		mustExec(t, app, begin)
		mustExec(t, app, `SELECT count(*) FROM scratch`)
		f.arm(t, "x", time.Minute)
		if err := f.gate.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantRefused(t, app, warm)
		mustExec(t, app, `ROLLBACK`)
		wantRefused(t, app, `SELECT note(2)`)
		// Renewed and shortened from within the snapshot's life: the session reads the deadline of now.
		mustExec(t, app, begin)
		mustExec(t, app, `SELECT 1`)
		f.arm(t, "x", time.Second)
		over := time.Now().Add(1010 * time.Millisecond)
		f.arm(t, "x", time.Minute)
		eventually(t, "the first deadline is over", func() bool {
			var past bool
			err := f.pool.QueryRow(t.Context(), `SELECT clock_timestamp() > $1`, over).Scan(&past)
			return err == nil && past
		})
		wantRefused(t, app, warm)
		mustExec(t, app, `ROLLBACK`)
		if err := f.gate.Disarm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// The control of the whole idea: without the barrier a write does arrive after the arming.
func TestArmingAloneIsNoBarrier(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	app := pgtest.Connect(t, f.app)
	err := pgx.BeginFunc(t.Context(), app, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `INSERT INTO scratch VALUES (99)`); err != nil {
			return err
		}
		f.arm(t, "x", time.Minute)
		return nil
	})
	if err != nil {
		t.Fatalf("the open writer should have committed: %v", err)
	}
}
