package gate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// writers hammers the fixture's tables with every kind of transaction that can carry a write.
type writers struct {
	committed, refused atomic.Int64
}

// transactions are lists of statements; %d is a number never used before, %a an account, %p a pause in seconds.
var transactions = []func(n int64, account int, pause float64) []string{
	func(n int64, a int, _ float64) []string {
		return []string{fmt.Sprintf(`INSERT INTO entries (account, note) VALUES (%d, 'x')`, a)}
	},
	func(n int64, a int, _ float64) []string {
		return []string{fmt.Sprintf(`UPDATE accounts SET balance = balance + 1 WHERE id = %d`, a)}
	},
	func(n int64, a int, p float64) []string {
		return []string{`BEGIN`, fmt.Sprintf(`INSERT INTO scratch VALUES (%d)`, a), `SAVEPOINT s`, `INSERT INTO events (kind) VALUES (1)`,
			fmt.Sprintf(`SELECT pg_sleep(%f)`, p), `ROLLBACK TO s`, `UPDATE animals SET legs = legs + 1`, `COMMIT`}
	},
	func(n int64, a int, p float64) []string {
		return []string{`BEGIN`, `INSERT INTO events (kind) VALUES (1), (2)`, fmt.Sprintf(`SELECT pg_sleep(%f)`, p),
			fmt.Sprintf(`PREPARE TRANSACTION 'w%d'`, n), fmt.Sprintf(`COMMIT PREPARED 'w%d'`, n)}
	},
	func(n int64, a int, p float64) []string {
		return []string{`BEGIN ISOLATION LEVEL REPEATABLE READ`, `SELECT count(*) FROM accounts`, fmt.Sprintf(`SELECT pg_sleep(%f)`, p),
			`INSERT INTO audit VALUES (1)`, `UPDATE events SET note = 'x' WHERE id % 7 = 0`, `COMMIT`}
	},
	func(n int64, a int, p float64) []string {
		return []string{`BEGIN ISOLATION LEVEL SERIALIZABLE`, `SELECT count(*) FROM scratch`, fmt.Sprintf(`SELECT note(%d)`, a), fmt.Sprintf(`SELECT pg_sleep(%f)`, p), `COMMIT`}
	},
	func(n int64, a int, _ float64) []string { return []string{fmt.Sprintf(`SELECT note(%d)`, a)} },
	func(n int64, a int, _ float64) []string {
		return []string{`WITH x AS (INSERT INTO audit VALUES (2) RETURNING n) UPDATE birds SET legs = legs + 1 WHERE EXISTS (SELECT FROM x)`}
	},
	func(n int64, a int, _ float64) []string {
		return []string{fmt.Sprintf(`INSERT INTO accounts VALUES (%d, 0) ON CONFLICT (id) DO UPDATE SET balance = accounts.balance + 1`, a)}
	},
	func(n int64, a int, p float64) []string {
		return []string{`BEGIN`, fmt.Sprintf(`INSERT INTO ungated VALUES (%d)`, n), fmt.Sprintf(`SELECT pg_sleep(%f)`, p), `COMMIT`}
	},
	func(n int64, a int, _ float64) []string { return []string{`TRUNCATE scratch`} },
	func(n int64, a int, _ float64) []string {
		return []string{`UPDATE events SET kind = 3 - kind WHERE id = (SELECT max(id) FROM events)`}
	},
	func(n int64, a int, _ float64) []string {
		return []string{fmt.Sprintf(`INSERT INTO accounts VALUES (%d)`, 1000+n), fmt.Sprintf(`INSERT INTO entries (account) VALUES (%d)`, 1000+n), fmt.Sprintf(`DELETE FROM accounts WHERE id = %d`, 1000+n)}
	},
	func(n int64, a int, _ float64) []string { return []string{`COPY`} },
}

var serial atomic.Int64

func (w *writers) run(ctx context.Context, conn *pgx.Conn, rng *rand.Rand) error {
	for ctx.Err() == nil {
		n := serial.Add(1)
		list := transactions[rng.IntN(len(transactions))](n, 1+rng.IntN(50), rng.Float64()*0.02)
		var err error
		for _, sql := range list {
			// Ended by the server, not by the context: a session cut off in the middle would prove nothing.
			if sql == `COPY` {
				_, err = conn.CopyFrom(context.WithoutCancel(ctx), pgx.Identifier{"scratch"}, []string{"n"}, pgx.CopyFromRows([][]any{{1}, {2}}))
			} else {
				_, err = conn.Exec(context.WithoutCancel(ctx), sql)
			}
			if err != nil {
				break
			}
		}
		switch code := postgres.Code(err); {
		case err == nil:
			w.committed.Add(1)
		case code == postgres.CodeReadOnly:
			w.refused.Add(1)
		case code == postgres.CodeSerializationFailure, code == postgres.CodeDeadlock, code == "23503", code == "23505":
		default:
			return fmt.Errorf("%v: %w", list, err)
		}
		if conn.PgConn().TxStatus() != 'I' {
			if _, err := conn.Exec(context.WithoutCancel(ctx), `ROLLBACK`); err != nil {
				return err
			}
		}
	}
	return nil
}

// contentsSQL changes with every committed write: rows with the transaction that made them, and where they lie.
const contentsSQL = `
SELECT md5(string_agg(x, ';' ORDER BY x)) FROM (
  SELECT 'a' || xmin || ctid || a::text x FROM accounts a UNION ALL SELECT 'e' || xmin || ctid || id FROM entries
  UNION ALL SELECT 'v' || tableoid || xmin || ctid FROM events UNION ALL SELECT 'n' || tableoid || xmin || ctid || n::text FROM animals n
  UNION ALL SELECT 's' || xmin || ctid || n FROM scratch UNION ALL SELECT 'u' || xmin || ctid FROM audit
  UNION ALL SELECT 't' || pg_relation_filenode('scratch')) y`

func contents(t *testing.T, c *pgx.Conn) string {
	t.Helper()
	var s string
	if err := c.QueryRow(t.Context(), contentsSQL).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *writers) start(t *testing.T, f *fixture, n int, seed uint64) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	for i := range n {
		conn := pgtest.Connect(t, f.app)
		g.Go(func() error { return w.run(ctx, conn, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	return func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("writer: %v", err)
		}
	}
}

// After Barrier has returned not one write is committed until the gate opens, whatever the writers do.
func TestNothingPassesTheBarrier(t *testing.T) {
	f := newFixture(t)
	attackBarrier(t, f, 25)
}

// The oldest and the newest supported server lock, invalidate and compile differently inside; the outcome may not.
func TestNothingPassesTheBarrierOnOtherVersions(t *testing.T) {
	for _, version := range []int{13, 18} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			attackBarrier(t, newFixtureOn(t, pgtest.Start(t, pgtest.Options{Version: version})), 8)
		})
	}
}

func attackBarrier(t *testing.T, f *fixture, rounds int) {
	f.install(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var w writers
	stop := w.start(t, f, 8, seed)
	defer stop()
	look := pgtest.Connect(t, f.owner)
	rng := rand.New(rand.NewPCG(seed, 99))
	var slowest time.Duration
	for round := range rounds {
		token := fmt.Sprintf("attempt %d", round)
		start := w.committed.Load()
		eventually(t, "writers write", func() bool { return w.committed.Load() > start+int64(rng.IntN(40)) })
		began := time.Now()
		f.arm(t, token, time.Minute)
		slowest = max(slowest, time.Since(began))
		if err := f.gate.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		before, refused := contents(t, look), w.refused.Load()
		if round%2 == 0 {
			f.arm(t, token, time.Minute) // a renewal changes nothing
		}
		eventually(t, "writers are refused", func() bool { return w.refused.Load() > refused+60 })
		if round%5 == 4 {
			f.arm(t, token, 0)
		}
		if after := contents(t, look); after != before {
			t.Fatalf("round %d: the contents changed after the barrier", round)
		}
		if err := f.gate.Disarm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d committed, %d refused, slowest arming %v", w.committed.Load(), w.refused.Load(), slowest)
}

// Renewals leave no hole: the deadline is replaced thousands of times while writers spin, and not one gets through. Each deadline
// lies so near that a renewal which opened the gate for an instant, or let the old deadline pass, would show.
func TestRenewalsLeaveNoHole(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	look := pgtest.Connect(t, f.owner)
	f.arm(t, "x", 10*time.Second)
	if err := f.gate.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := contents(t, look)
	var w writers
	stop := w.start(t, f, 4, seed)
	const renewals = 3000
	for i := range renewals {
		if err := f.gate.Arm(t.Context(), "x", 10*time.Second+time.Duration(i)); err != nil {
			t.Error(err)
			break
		}
	}
	f.arm(t, "x", 0)
	stop()
	if after := contents(t, look); after != before {
		t.Error("a write passed during renewals")
	}
	if w.refused.Load() < renewals/10 {
		t.Errorf("only %d writes were tried", w.refused.Load())
	}
	t.Logf("%d refused during %d renewals", w.refused.Load(), renewals)
}

// Two processes that renew, install and disarm at once disturb neither each other nor the application.
func TestConcurrentChangesAreSerialised(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	f.arm(t, "x", time.Minute)
	other := New(newPool(t, f.owner), nil)
	var g errgroup.Group
	for _, gate := range []*Gate{f.gate, other, f.gate} {
		g.Go(func() error {
			for range 100 {
				if err := errors.Join(gate.Arm(t.Context(), "x", time.Minute), gate.Install(t.Context(), f.tables)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if s, err := f.gate.State(t.Context()); err != nil || !s.Armed || !s.HeldBy("x") {
		t.Fatalf("state %+v %v", s, err)
	}
}
