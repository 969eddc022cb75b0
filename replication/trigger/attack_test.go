package trigger_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/trigger"
)

// ledger holds what balances at every transaction's end and at no other time.
const ledger = `
CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, touched int NOT NULL DEFAULT 0);
CREATE TABLE entries (id bigserial PRIMARY KEY, account int NOT NULL, amount bigint NOT NULL, note text);
CREATE TABLE generation (n int PRIMARY KEY, gen bigint NOT NULL);
CREATE TABLE seats (who int PRIMARY KEY, seat int NOT NULL UNIQUE);
CREATE TABLE piles (name text, size int);
CREATE SEQUENCE gens;
INSERT INTO accounts SELECT i, 0 FROM generate_series(1, 100) i;
INSERT INTO generation SELECT i, 0 FROM generate_series(1, 10) i;
INSERT INTO seats SELECT i, i FROM generate_series(1, 12) i;
INSERT INTO piles SELECT 'p', 10 FROM generate_series(1, 10) i;
`

// balances is empty for a state that some transaction boundary had.
const balances = `
SELECT concat_ws(', ',
  CASE WHEN (SELECT sum(balance) FROM public.accounts) <> 0 THEN 'the balances' END,
  (SELECT 'account ' || min(a.id) || ' against its entries' FROM public.accounts a LEFT JOIN (SELECT account, sum(amount) s FROM public.entries GROUP BY 1) e ON e.account = a.id
   WHERE a.balance <> coalesce(e.s, 0) HAVING count(*) > 0),
  (SELECT 'generations ' || count(*) || '/' || count(DISTINCT gen) FROM public.generation HAVING count(*) <> 10 OR count(DISTINCT gen) <> 1),
  (SELECT 'seats ' || count(*) || '/' || sum(seat) FROM public.seats HAVING count(*) <> 12 OR sum(seat) <> 78),
  (SELECT 'piles ' || sum(size) FROM public.piles HAVING sum(size) <> 100))`

// attacker writes random transactions until ctx ends.
type attacker struct {
	r         *rand.Rand
	conn      *pgx.Conn
	n         int
	committed *atomic.Int64
}

func (a *attacker) run(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		err := a.transaction(ctx)
		switch code := postgres.Code(err); {
		case err == nil:
			a.committed.Add(1)
			continue
		case ctx.Err() != nil:
		case code == "23505", code == "40P01", code == "40001", code == "55P03":
		default:
			t.Errorf("write: %v", err)
			return
		}
		if _, err := a.conn.Exec(context.WithoutCancel(ctx), "ROLLBACK"); err != nil {
			t.Errorf("roll back: %v", err)
			return
		}
	}
}

func (a *attacker) transaction(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx) // an interrupted statement would break the connection
	script := []string{[]string{"BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"}[a.r.IntN(2)], "SET LOCAL lock_timeout = '40ms'"}
	for range 1 + a.r.IntN(1+a.r.IntN(8)) {
		step := a.step()
		switch a.r.IntN(12) {
		case 0:
			script = append(script, "SAVEPOINT s")
			script = append(script, step...)
			script = append(script, "ROLLBACK TO s")
		case 1:
			script = append(script, "SAVEPOINT s")
			script = append(script, step...)
			script = append(script, "RELEASE s")
		case 2:
			script = append(script, step...)
			script = append(script, fmt.Sprintf("SELECT pg_sleep(%f)", a.r.Float64()*0.02))
		default:
			script = append(script, step...)
		}
	}
	for _, sql := range script {
		if _, err := a.conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	switch a.r.IntN(10) {
	case 0:
		_, err := a.conn.Exec(ctx, "ROLLBACK")
		return err
	case 1:
		a.n++
		gid := fmt.Sprintf("attack %d %d", a.conn.PgConn().PID(), a.n)
		if _, err := a.conn.Exec(ctx, "PREPARE TRANSACTION '"+gid+"'"); err != nil {
			if postgres.Code(err) == "53200" || strings.Contains(err.Error(), "maximum number of prepared") {
				return nil
			}
			return err
		}
		if _, err := a.conn.Exec(ctx, fmt.Sprintf("SELECT pg_sleep(%f)", a.r.Float64()*0.05)); err != nil {
			return err
		}
		_, err := a.conn.Exec(ctx, []string{"COMMIT", "ROLLBACK"}[a.r.IntN(2)]+" PREPARED '"+gid+"'")
		return err
	}
	_, err := a.conn.Exec(ctx, "COMMIT")
	return err
}

// step is something that leaves the ledger balanced.
func (a *attacker) step() []string {
	r := a.r
	switch r.IntN(14) {
	case 0: // hot rows
		return []string{"UPDATE accounts SET touched = touched + 1 WHERE id = 1"}
	case 1:
		return []string{fmt.Sprintf("DELETE FROM entries e USING (SELECT account, sum(amount) s, array_agg(id) ids FROM (SELECT * FROM entries WHERE account = %d ORDER BY id LIMIT 5 FOR UPDATE) x GROUP BY 1) o WHERE e.id = ANY (o.ids) AND o.s = 0", 1+r.IntN(100))}
	case 2:
		return []string{"UPDATE entries SET note = repeat(md5(random()::text), 100) WHERE id IN (SELECT id FROM entries ORDER BY id DESC LIMIT 3)"}
	case 3: // entries get other keys
		return []string{fmt.Sprintf("UPDATE entries SET id = nextval('entries_id_seq') WHERE id IN (SELECT id FROM entries WHERE account = %d LIMIT 2)", 1+r.IntN(100))}
	case 4:
		if r.IntN(6) > 0 {
			return []string{"SELECT 1"}
		}
		return []string{"TRUNCATE generation", "INSERT INTO generation SELECT i, currval('gens') FROM generate_series(1, 10) i, nextval('gens') g"}
	case 5:
		if r.IntN(3) > 0 {
			return []string{"SELECT 1"}
		}
		return []string{"UPDATE generation SET gen = (SELECT nextval('gens'))"}
	case 6: // a unique value passes from row to row
		x, y := 1+r.IntN(12), 1+r.IntN(12)
		if x == y {
			return []string{"SELECT 1"}
		}
		return []string{fmt.Sprintf("SELECT FROM seats WHERE who IN (%d, %d) ORDER BY who FOR UPDATE", x, y), fmt.Sprintf("UPDATE seats SET seat = -seat WHERE who = %d", x),
			fmt.Sprintf("UPDATE seats SET seat = s.seat FROM (SELECT -seat AS seat FROM seats WHERE who = %d) s WHERE who = %d AND false", x, y),
			fmt.Sprintf("WITH o AS (SELECT max(seat) FILTER (WHERE who = %d) y, -min(seat) FILTER (WHERE who = %d) x FROM seats WHERE who IN (%d, %d)) UPDATE seats SET seat = -1000 - o.x FROM o WHERE who = %d", y, x, x, y, y),
			fmt.Sprintf("UPDATE seats SET seat = 78 - (SELECT sum(seat) FROM seats WHERE who NOT IN (%d, %d)) - (SELECT -1000 - seat FROM seats WHERE who = %d) WHERE who = %d", x, y, y, x),
			fmt.Sprintf("UPDATE seats SET seat = 78 - (SELECT sum(seat) FROM seats WHERE who <> %d) WHERE who = %d", y, y)}
	case 7: // a row is replaced under its key
		k := 1 + r.IntN(12)
		return []string{fmt.Sprintf("WITH d AS (DELETE FROM seats WHERE who = %d RETURNING *) INSERT INTO seats SELECT who + 100, seat FROM d", k),
			fmt.Sprintf("UPDATE seats SET who = who - 100 WHERE who = %d", k+100)}
	case 8: // equal rows without key
		return []string{"INSERT INTO piles VALUES ('p', 10)", "DELETE FROM piles WHERE ctid IN (SELECT ctid FROM piles LIMIT 1 FOR UPDATE SKIP LOCKED) AND size = 10 AND (SELECT sum(size) FROM piles) > 100", "DELETE FROM piles WHERE false"}
	default: // a transfer
		from, to, amount := 1+r.IntN(100), 1+r.IntN(100), 1+r.IntN(100)
		if from > to {
			from, to = to, from // in one order, or everybody deadlocks
			amount = -amount
		}
		return []string{fmt.Sprintf("UPDATE accounts SET balance = balance - %d WHERE id = %d", amount, from), fmt.Sprintf("UPDATE accounts SET balance = balance + %d WHERE id = %d", amount, to),
			fmt.Sprintf("INSERT INTO entries (account, amount) VALUES (%d, %d), (%d, %d)", from, -amount, to, amount)}
	}
}

// Whatever transactions do at once, the target shows only states that the source had at a transaction's end, across restarts and copies
// made meanwhile, and equals it at the end.
func TestConcurrentWriters(t *testing.T) {
	runs, length, writers := 1, 8*time.Second, 12
	if soak() {
		runs, length, writers = 10, time.Minute, 16
	}
	for range runs {
		s := seed(t)
		t.Run(fmt.Sprint(s), func(t *testing.T) { attack(t, s, length, writers) })
	}
}

func attack(t *testing.T, seed uint64, length time.Duration, writers int) {
	r := rand.New(rand.NewPCG(seed, 0))
	f := newFixture(t, ledger)
	f.o.RotateBytes, f.o.UpkeepEvery = 64<<10, 50*time.Millisecond
	if r.IntN(2) == 0 {
		f.o.Limits = trigger.Limits{Changes: 50, Bytes: 64 << 10}
	}
	f.install()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var committed atomic.Int64
	for i := range writers {
		a := &attacker{r: rand.New(rand.NewPCG(seed, uint64(i+1))), conn: pgtest.Connect(t, f.source), committed: &committed}
		wg.Go(func() { a.run(ctx, t) })
	}
	defer wg.Wait()
	defer cancel()
	f.note()
	f.copy(f.tables)
	check, err := pgx.Connect(t.Context(), f.target)
	if err != nil {
		t.Fatal(err)
	}
	defer check.Close(context.Background())
	windows := 0
	unbalanced := errors.New("the target shows a state that the source never had")
	applied := func(b *replication.Batch) error {
		windows++
		var wrong string
		if err := check.QueryRow(context.Background(), balances).Scan(&wrong); err != nil {
			return err
		}
		if wrong != "" {
			return fmt.Errorf("%w after %s: %s", unbalanced, b.Position, wrong)
		}
		return nil
	}
	ends := time.Now().Add(length)
	restarts := 0
	for time.Now().Before(ends) {
		s := f.start(applied)
		<-time.After(time.Duration(r.IntN(1200)) * time.Millisecond)
		if r.IntN(3) == 0 {
			pgtest.Exec(t, f.super, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'replicator/%/capture/%' AND datname = current_database()`)
		}
		if r.IntN(4) == 0 { // one table is copied again
			if err := s.stop(); err != nil && !postgres.IsTransient(err) {
				t.Fatal(err)
			}
			f.copy(f.tables[r.IntN(len(f.tables)):][:1])
		}
		if err := s.stop(); err != nil && !postgres.IsTransient(err) {
			t.Fatalf("the stream ended: %v", err)
		}
		restarts++
	}
	cancel()
	wg.Wait()
	s := f.start(applied)
	s.caughtUp()
	f.equal()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	var turned int
	if err := f.pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_proc WHERE prosrc LIKE '%"slot":1}%'`).Scan(&turned); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d transactions, %d windows, %d restarts, %d logs in their second table", committed.Load(), windows, restarts, turned)
	if committed.Load() < 100 || windows < 5 {
		t.Errorf("too little happened: %d transactions, %d windows", committed.Load(), windows)
	}
}
