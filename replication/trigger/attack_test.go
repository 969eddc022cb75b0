package trigger_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
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

// tally counts what the attackers did, by kind, so that an attack which leaves one out is no success.
type tally struct {
	committed, rolledBack, refused           atomic.Int64 // transactions; refused: by a conflict, then rolled back
	prepared, preparedRolledBack             atomic.Int64
	savepointsRolledBack, savepointsKept     atomic.Int64
	early                                    atomic.Int64 // took their id at the beginning and wrote later
	windows, amongOthers, restarts, recopied int
	scanned                                  int // restarts with some table scanned
}

func (c *tally) String() string {
	return fmt.Sprintf("%d transactions committed (%d of them prepared first, %d with an id taken before the first write), %d rolled back (%d prepared), %d refused by conflicts; %d savepoints rolled back, %d released; %d boundaries checked, %d of them with transactions open that ended later; %d restarts, %d of them with tables that were scanned, %d copies of one table",
		c.committed.Load(), c.prepared.Load(), c.early.Load(), c.rolledBack.Load(), c.preparedRolledBack.Load(), c.refused.Load(), c.savepointsRolledBack.Load(), c.savepointsKept.Load(),
		c.windows, c.amongOthers, c.restarts, c.scanned, c.recopied)
}

// lacking names the first kind of which there was none.
func (c *tally) lacking() string {
	for _, k := range []struct {
		what string
		n    int64
	}{
		{"transaction that was rolled back", c.rolledBack.Load()}, {"prepared transaction", c.prepared.Load()}, {"prepared transaction that was rolled back", c.preparedRolledBack.Load()},
		{"savepoint that was rolled back", c.savepointsRolledBack.Load()}, {"savepoint that was released", c.savepointsKept.Load()}, {"early transaction id", c.early.Load()},
		{"window among open transactions", int64(c.amongOthers)}, {"restart", int64(c.restarts)},
	} {
		if k.n == 0 {
			return k.what
		}
	}
	return ""
}

// little tells of what too little has happened, empty if it is enough.
func (c *tally) little() string {
	switch what := c.lacking(); {
	case what != "":
		return "no " + what
	case c.committed.Load() < 100:
		return "less than 100 transactions"
	case c.windows < 5:
		return "less than 5 windows"
	}
	return ""
}

// attacker writes random transactions until ctx ends.
type attacker struct {
	r     *rand.Rand
	conn  *pgx.Conn
	n     int
	count *tally
}

func (a *attacker) run(ctx context.Context, t *testing.T) {
	for ctx.Err() == nil {
		err := a.transaction(ctx)
		switch code := postgres.Code(err); {
		case err == nil:
			continue
		case ctx.Err() != nil:
		case code == "23505", code == "40P01", code == "40001", code == "55P03":
			a.count.refused.Add(1)
		case code == "22012", code == "53200", code == "57014": // not all locked; too many are prepared; a lock_timeout that fires just when the lock is given
			a.count.refused.Add(1)
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
	var early, back, kept int64
	if a.r.IntN(6) == 0 { // commits far out of the order of ids
		early = 1
		script = append(script, "SELECT pg_current_xact_id()", a.nap(0.03))
	}
	for range 1 + a.r.IntN(1+a.r.IntN(8)) {
		step := a.step()
		switch a.r.IntN(12) {
		case 0:
			back++
			script = append(script, "SAVEPOINT s")
			script = append(script, step...)
			script = append(script, "ROLLBACK TO s")
		case 1:
			kept++
			script = append(script, "SAVEPOINT s")
			script = append(script, step...)
			script = append(script, "RELEASE s")
		case 2:
			script = append(script, step...)
			script = append(script, a.nap(0.02))
		default:
			script = append(script, step...)
		}
	}
	run := func(sql ...string) error {
		for _, s := range sql {
			if _, err := a.conn.Exec(ctx, s); err != nil {
				return err
			}
		}
		return nil
	}
	if err := run(script...); err != nil {
		return err
	}
	end, counted := []string{"COMMIT"}, []*atomic.Int64{&a.count.committed}
	switch a.r.IntN(10) {
	case 0:
		end, counted = []string{"ROLLBACK"}, []*atomic.Int64{&a.count.rolledBack}
	case 1:
		a.n++
		gid := fmt.Sprintf("'attack %d %d'", a.conn.PgConn().PID(), a.n)
		end = []string{"PREPARE TRANSACTION " + gid, a.nap(0.05)}
		if a.r.IntN(3) == 0 {
			end, counted = append(end, "ROLLBACK PREPARED "+gid), []*atomic.Int64{&a.count.rolledBack, &a.count.preparedRolledBack}
		} else {
			end, counted = append(end, "COMMIT PREPARED "+gid), append(counted, &a.count.prepared)
		}
	}
	if err := run(end...); err != nil {
		return err
	}
	for _, c := range counted {
		c.Add(1)
	}
	a.count.early.Add(early)
	a.count.savepointsRolledBack.Add(back)
	a.count.savepointsKept.Add(kept)
	return nil
}

// bothLocked locks two seats and divides by zero if it gets only one: FOR UPDATE overlooks a row that is deleted and inserted anew by
// whom it waited for.
func bothLocked(x, y int) string {
	return fmt.Sprintf("SELECT 1 / (count(*) / 2) FROM (SELECT FROM seats WHERE who IN (%d, %d) ORDER BY who FOR UPDATE) locked", x, y)
}

// nap is a statement that takes up to the given seconds.
func (a *attacker) nap(most float64) string {
	return fmt.Sprintf("SELECT pg_sleep(%f)", a.r.Float64()*most)
}

// step is something that leaves the ledger balanced.
func (a *attacker) step() []string {
	r := a.r
	switch r.IntN(14) {
	case 0: // hot rows
		return []string{"UPDATE accounts SET touched = touched + 1 WHERE id = 1"}
	case 1: // divides by zero if one of the locked entries had got another key, by which the statement's snapshot doesn't find it
		return []string{fmt.Sprintf("WITH o AS (SELECT array_agg(id) ids FROM (SELECT * FROM entries WHERE account = %d ORDER BY id LIMIT 5 FOR UPDATE) x HAVING sum(amount) = 0), "+
			"d AS (DELETE FROM entries e USING o WHERE e.id = ANY (o.ids) RETURNING 1) SELECT 1 / ((SELECT count(*) FROM d) = coalesce((SELECT cardinality(ids) FROM o), 0))::int", 1+r.IntN(100))}
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
		return []string{bothLocked(x, y), fmt.Sprintf("UPDATE seats SET seat = -seat WHERE who = %d", x),
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
	runs, length := 1, 8*time.Second
	if soak() {
		runs, length = 10, time.Minute
	}
	for range runs {
		s := pgtest.Seed(t)
		t.Run(fmt.Sprint(s), func(t *testing.T) { attack(t, s, length, 16) })
	}
}

func attack(t *testing.T, seed uint64, length time.Duration, writers int) {
	r := rand.New(rand.NewPCG(seed, 0))
	f := newFixture(t, ledger)
	f.o.RotateBytes, f.o.UpkeepEvery = 64<<10, 50*time.Millisecond
	f.o.IdleMax = 10 * time.Millisecond // bounds the pause between windows too: as many boundaries as there can be
	f.o.Limits = trigger.DefaultLimits
	if r.IntN(2) == 0 {
		f.o.Limits = trigger.Limits{Changes: 50, Bytes: 64 << 10}
	}
	f.o.Limits.Early = 1 + r.IntN(60)
	f.o.Scanning = trigger.Scanning{Bytes: 8 << 10 << r.IntN(4), Updates: 1, Tables: 1 + r.IntN(4)}
	f.install()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	count := &tally{}
	for i := range writers {
		a := &attacker{r: rand.New(rand.NewPCG(seed, uint64(i+1))), conn: pgtest.Connect(t, f.source), count: count}
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
	unbalanced := errors.New("the target shows a state that the source never had")
	applied := func(b *replication.Batch) error {
		count.windows++
		if openAt(b.Position) > 0 {
			count.amongOthers++
		}
		var wrong string
		if err := check.QueryRow(context.Background(), balances).Scan(&wrong); err != nil {
			return err
		}
		if wrong != "" {
			var there string // an attack that doesn't balance is no finding
			err := f.pool.QueryRow(context.Background(), balances).Scan(&there)
			return errors.Join(fmt.Errorf("%w after %s: %s (the source, now: %q)", unbalanced, b.Position, wrong, there), err)
		}
		return nil
	}
	ends := time.Now().Add(length)
	for time.Now().Before(ends) || (count.little() != "" && time.Now().Before(ends.Add(3*length))) { // a slow machine takes longer until enough has happened
		s := f.start(applied)
		lasts := time.Duration(r.IntN(1200)) * time.Millisecond
		if time.Now().After(ends) {
			lasts += 5 * time.Second // so slow a machine may need that for one window behind sixteen writers' locks
		}
		<-time.After(lasts)
		if r.IntN(3) == 0 {
			pgtest.Exec(t, f.super, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'replicator/%/capture/%' AND datname = current_database()`)
		}
		if r.IntN(4) == 0 { // one table is copied again
			if err := s.stop(); err != nil && !postgres.IsTransient(err) {
				t.Fatal(err)
			}
			f.copy(f.tables[r.IntN(len(f.tables)):][:1])
			count.recopied++
		}
		if err := s.stop(); err != nil && !postgres.IsTransient(err) {
			t.Fatalf("the stream ended: %v", err)
		}
		count.restarts++
		var scanned bool
		if err := f.pool.QueryRow(f.ctx(), `SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'replicator_capture' AND tgattr <> '')`).Scan(&scanned); err != nil {
			t.Fatal(err)
		}
		if scanned {
			count.scanned++
		}
	}
	cancel()
	wg.Wait()
	s := f.start(applied)
	s.caughtUp()
	f.equal()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	t.Log(count)
	if what := count.little(); what != "" {
		t.Errorf("too little happened: %s", what)
	}
}

// openAt is how many transactions were open at a position among those that had ended.
func openAt(p replication.Position) int {
	var at struct{ Snapshot string }
	if err := json.Unmarshal([]byte(p), &at); err != nil {
		return 0
	}
	s, err := replication.ParseSnapshot(at.Snapshot)
	if err != nil {
		return 0
	}
	return len(s.Xip)
}
