package gate

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// tolerable is how long an application's statement may take beside us. It is far above what one needs and far below what queueing
// behind a lock would cost (these tests hold their locks for as long as they last).
const tolerable = 900 * time.Millisecond

// stampede runs an application's statement over and over until stop is closed and returns the longest time one took.
func stampede(ctx context.Context, c *pgx.Conn, sql string, stop <-chan struct{}) <-chan result {
	out := make(chan result, 1)
	go func() {
		var r result
		for {
			began := time.Now()
			_, err := c.Exec(ctx, sql)
			r.longest = max(r.longest, time.Since(began))
			r.count++
			if err != nil && postgres.Code(err) != postgres.CodeReadOnly {
				r.err = err
			}
			select {
			case <-stop:
				out <- r
				return
			default:
			}
		}
	}()
	return out
}

type result struct {
	longest time.Duration
	count   int
	err     error
}

func (r result) check(t *testing.T) {
	t.Helper()
	if r.err != nil || r.longest > tolerable {
		t.Errorf("the application waited up to %v in %d statements, error %v", r.longest, r.count, r.err)
	}
	t.Logf("application: %d statements, longest %v", r.count, r.longest)
}

// Arming, renewing and disarming lock no table: neither a long reader nor a long writer delays them, and nobody queues behind them.
func TestArmingQueuesNobody(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	for _, sql := range []string{`SELECT * FROM accounts, scratch`, `INSERT INTO accounts VALUES (200)`} {
		c := pgtest.Connect(t, f.app)
		mustExec(t, c, `BEGIN`)
		mustExec(t, c, sql)
	}
	stop := make(chan struct{})
	reads := stampede(t.Context(), pgtest.Connect(t, f.app), `SELECT * FROM accounts`, stop)
	writes := stampede(t.Context(), pgtest.Connect(t, f.app), `UPDATE accounts SET balance = 1 WHERE id = 1`, stop)
	var slowest time.Duration
	for range 200 {
		began := time.Now()
		f.arm(t, "x", time.Minute)
		if err := f.gate.Disarm(t.Context()); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
	}
	close(stop)
	(<-reads).check(t)
	(<-writes).check(t)
	t.Logf("slowest arming and disarming: %v", slowest)
	if slowest > tolerable {
		t.Errorf("arming and disarming took up to %v", slowest)
	}
}

// Installing beside a long writer waits for it without the application waiting with us; the other tables don't wait for the busy one.
func TestInstallDoesNotQueueTheApplication(t *testing.T) {
	f := newFixture(t)
	long := pgtest.Connect(t, f.app)
	mustExec(t, long, `BEGIN`)
	mustExec(t, long, `UPDATE accounts SET balance = 2 WHERE id = 2`)
	stop := make(chan struct{})
	writes := stampede(t.Context(), pgtest.Connect(t, f.app), `UPDATE accounts SET balance = 1 WHERE id = 1`, stop)
	done := make(chan error, 1)
	go func() { done <- f.gate.Install(t.Context(), f.tables) }()
	eventually(t, "all tables but the busy one are gated", func() bool {
		s, err := f.gate.State(t.Context())
		return err == nil && len(s.Missing(f.tables)) == 1 && s.Missing(f.tables)[0].Name == "accounts"
	})
	// Long enough for several rounds: the transaction has become too old to queue behind.
	eventually(t, "the long transaction is old", func() bool {
		h, err := f.gate.olderThan(t.Context(), 2*time.Second)
		return err == nil && h
	})
	select {
	case err := <-done:
		t.Fatalf("Install returned %v beside a writer", err)
	default:
	}
	mustExec(t, long, `COMMIT`)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(stop)
	(<-writes).check(t)
}

func (g *Gate) olderThan(ctx context.Context, d time.Duration) (old bool, err error) {
	err = g.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND clock_timestamp() - xact_start > $1)`, d).Scan(&old)
	return old, err
}

// A reader is no obstacle to installing, and to uninstalling one that must be neither forced nor joined by the application.
func TestLongReader(t *testing.T) {
	f := newFixture(t)
	reader := pgtest.Connect(t, f.app)
	mustExec(t, reader, `BEGIN ISOLATION LEVEL REPEATABLE READ`)
	mustExec(t, reader, `SELECT * FROM accounts`)
	f.install(t)
	f.arm(t, "x", time.Minute)
	if err := f.gate.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.gate.Disarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	reads := stampede(t.Context(), pgtest.Connect(t, f.app), `SELECT * FROM accounts`, stop)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	err := f.gate.Uninstall(ctx)
	contains(t, err, "public.accounts", "still busy", "what is done stays done")
	if s, err := f.gate.State(t.Context()); err != nil || len(s.Tables) != 1 || !s.Installed {
		t.Errorf("state %+v %v, want the busy table only", s, err)
	}
	mustExec(t, reader, `COMMIT`)
	if err := f.gate.Uninstall(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(stop)
	(<-reads).check(t)
}

// An uninterrupted run of short writers gives CREATE TRIGGER no free moment to find, only one to wait for.
func TestInstallAmongShortWriters(t *testing.T) {
	f := newFixture(t)
	var w writers
	stop := w.start(t, f, 6, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := f.gate.Install(ctx, f.tables)
	stop()
	if err != nil {
		t.Fatal(err)
	}
	for n := range strings.SplitSeq("accounts entries events", " ") {
		if s, err := f.gate.State(t.Context()); err != nil || len(s.Missing(names(n))) > 0 {
			t.Errorf("%s isn't gated: %v", n, err)
		}
	}
}
