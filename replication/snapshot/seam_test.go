package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/logical"
)

// seed is printed by every random test, and can be set to repeat one.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64() % 1e9
	if v := os.Getenv("REPLICATOR_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatalf("REPLICATOR_SEED: %v", err)
		}
		s = n
	}
	t.Logf("seed %d (repeat with REPLICATOR_SEED=%d)", s, s)
	return s
}

// rounds is how often each table is copied.
func rounds() int {
	if os.Getenv("REPLICATOR_SOAK") != "" {
		return 60
	}
	return 6
}

// world is a source whose commits may hang between the write-ahead log and visibility, since it waits for a standby that doesn't exist.
type world struct {
	t      *testing.T
	server *pgtest.Server
	source string
	pool   *pgxpool.Pool
	id     postgres.Identity
}

func newWorld(t *testing.T, tables []string) *world {
	t.Helper()
	// Sessions that don't ask for it don't wait for the standby.
	w := &world{t: t, server: pgtest.Start(t, pgtest.Options{Settings: map[string]string{
		"synchronous_standby_names": "nobody", "synchronous_commit": "local", "max_replication_slots": "80", "max_prepared_transactions": "30", "deadlock_timeout": "50ms",
	}}), id: postgres.Identity{Migration: "m", Pair: "p", Epoch: 1}}
	w.source = w.server.Database(t)
	pgtest.Exec(t, w.source, "CREATE SCHEMA replicator; CREATE TABLE replicator.heartbeat (id int PRIMARY KEY, token text)")
	for _, n := range tables {
		pgtest.Exec(t, w.source, fmt.Sprintf("CREATE TABLE %s (id int PRIMARY KEY, n bigint, v text); ALTER TABLE %[1]s REPLICA IDENTITY FULL; INSERT INTO %[1]s SELECT i, 0, 'v' FROM generate_series(1, 40) i", n))
	}
	var err error
	if w.pool, err = pgxpool.New(w.ctx(), w.source); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.pool.Close)
	return w
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

// write runs random transactions until ctx ends: long ones, with savepoints, prepared ones, some whose commit hangs, truncations, rewrites.
func (w *world) write(ctx context.Context, tables []string, s uint64) {
	r := rand.New(rand.NewPCG(s, 7))
	always := context.WithoutCancel(ctx)
	conn, err := pgx.Connect(always, w.source)
	if err != nil {
		w.t.Errorf("connect the writer: %v", err)
		return
	}
	defer conn.Close(always)
	run := func(sql string) error {
		_, err := conn.PgConn().Exec(always, sql).ReadAll()
		return err
	}
	for n := 0; ctx.Err() == nil; n++ {
		table := tables[r.IntN(len(tables))]
		id := 1 + r.IntN(60)
		sql := []string{"BEGIN", "SET LOCAL lock_timeout = '300ms'"}
		for range 1 + r.IntN(4) {
			switch k := r.IntN(40); {
			case k == 0:
				sql = append(sql, "TRUNCATE "+table)
			case k == 1: // rewrites the table, and streams nothing
				sql = append(sql, fmt.Sprintf("ALTER TABLE %s ALTER n TYPE bigint USING n + 0, ALTER v TYPE varchar(%d)", table, 50+n%100))
			case k < 12:
				sql = append(sql, fmt.Sprintf("INSERT INTO %s SELECT i, 1, 'n' FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING", table, id, id+r.IntN(5)))
			case k < 16:
				sql = append(sql, fmt.Sprintf("DELETE FROM %s WHERE id = %d", table, id))
			case k < 18:
				sql = append(sql, fmt.Sprintf("SAVEPOINT s; UPDATE %s SET n = -1 WHERE id = %d; ROLLBACK TO s", table, id))
			case k < 20:
				sql = append(sql, fmt.Sprintf("SAVEPOINT s; UPDATE %s SET n = n + 1 WHERE id < %d; RELEASE s", table, id))
			case k < 23:
				sql = append(sql, fmt.Sprintf("SELECT pg_sleep(%f)", r.Float64()/8))
			default:
				sql = append(sql, fmt.Sprintf("UPDATE %s SET n = n + 1 WHERE id = %d", table, id))
			}
		}
		gid := ""
		switch r.IntN(12) {
		case 0:
			sql = append(sql, "ROLLBACK")
		case 1:
			gid = fmt.Sprintf("'replicator_%d_%d'", s, n)
			sql = append(sql, "PREPARE TRANSACTION "+gid)
		case 2:
			sql = append(sql, "SET LOCAL synchronous_commit = on", "COMMIT")
		default:
			sql = append(sql, "COMMIT")
		}
		err := run(strings.Join(sql, "; "))
		if err == nil && gid != "" {
			err = run("SELECT pg_sleep(0.05)")
			if err == nil {
				err = run("COMMIT PREPARED " + gid)
			}
		}
		if err != nil {
			switch postgres.Code(err) {
			case "40P01", "55P03", "55006", "57014":
			default:
				w.t.Errorf("write: %v", err)
				return
			}
			if err := run("ROLLBACK"); err != nil {
				w.t.Errorf("roll back: %v", err)
				return
			}
		}
	}
}

// release lets commits that wait for the standby go on, each after a while, until ctx ends.
func (w *world) release(ctx context.Context) {
	tick := time.NewTicker(600 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		// A commit that is cancelled while it waits has happened ("synchronous_commit").
		if _, err := w.pool.Exec(context.WithoutCancel(ctx), "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"); err != nil {
			w.t.Errorf("release: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

func (w *world) flushLSN() (lsn string) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.ctx(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&lsn); err != nil {
		w.t.Fatal(err)
	}
	return lsn
}

// read hears the stream from a place until one beyond the other, or until the token; it returns the place reached.
func (w *world) read(src *logical.Source, from, to replication.Position, token string, each func(replication.Change)) replication.Position {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan *replication.Batch), make(chan error, 1)
	go func() { done <- src.Stream(ctx, from, out) }()
	defer func() { cancel(); <-done }()
	for {
		select {
		case err := <-done:
			done <- nil
			w.t.Fatalf("the stream ended: %v", err)
		case b := <-out:
			for _, c := range b.Changes {
				each(c)
			}
			reached, err := src.Reached(b.Position, to)
			if err != nil {
				w.t.Fatal(err)
			}
			if (token != "" && b.Token() == token) || (token == "" && b.Last && reached) {
				return b.Position
			}
		}
	}
}

// model is the rows of the tables as a copy and the stream after it make them.
type model map[string]map[string]bool

func (m model) apply(c replication.Change) error {
	if c.Op == replication.Truncate {
		for _, r := range c.Truncated {
			if m[r.Name.Name] != nil {
				clear(m[r.Name.Name])
			}
		}
		return nil
	}
	rows := m[c.Relation.Name.Name]
	if rows == nil {
		return nil
	}
	if c.Old != nil {
		old := text(c.Old)
		if !rows[old] {
			return fmt.Errorf("%s of %s: the row %s isn't there: an earlier change was lost", c.Op, c.Relation.Name, old)
		}
		delete(rows, old)
	}
	if c.New != nil {
		if rows[text(c.New)] {
			return fmt.Errorf("%s of %s: the row %s is there already: a change came twice", c.Op, c.Relation.Name, text(c.New))
		}
		rows[text(c.New)] = true
	}
	return nil
}

func text(values []replication.Value) string {
	var s []string
	for _, v := range values {
		s = append(s, string(v.Data))
	}
	return "(" + strings.Join(s, ",") + ")"
}

func rowsOf(t *testing.T, pool *pgxpool.Pool, table string) map[string]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := pool.Query(ctx, "SELECT t::text FROM public."+table+" t")
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, s := range all {
		out[s] = true
	}
	return out
}

func (w *world) table(name string) replication.Table {
	return replication.Table{Name: replication.TableName{Schema: "public", Name: name}, Columns: []replication.Column{
		{Name: "id", TypeOID: 23, TypeMod: -1, Type: "integer"}, {Name: "n", TypeOID: 20, TypeMod: -1, Type: "bigint"}, {Name: "v", TypeOID: 25, TypeMod: -1, Type: "text"},
	}}
}

// target makes the tables in a database of its own.
func (w *world) target(names []string) string {
	w.t.Helper()
	target := pgtest.Shared(w.t).Database(w.t)
	for _, n := range names {
		pgtest.Exec(w.t, target, "CREATE TABLE "+n+" (id int PRIMARY KEY, n bigint, v text)")
	}
	return target
}

// copy copies the tables into the target and returns their seams and rows.
func (w *world) copy(target string, names []string) (map[replication.TableName]replication.Seam, model) {
	w.t.Helper()
	var tables []replication.Table
	for _, n := range names {
		tables = append(tables, w.table(n))
	}
	var mu sync.Mutex
	seams := map[replication.TableName]replication.Seam{}
	err := Copy(w.ctx(), Options{SourceURL: w.source, TargetURL: target, ID: w.id, Workers: 2,
		Started: func(_ context.Context, t replication.Table, s replication.Seam) error {
			mu.Lock()
			defer mu.Unlock()
			seams[t.Name] = s
			return nil
		},
		Finished: func(context.Context, pgx.Tx, replication.Table, int64, int64) error { return nil },
		Progress: func(replication.Table, int64, int64) {},
	}, tables)
	if err != nil {
		w.t.Fatalf("copy: %v", err)
	}
	pool, err := pgxpool.New(w.ctx(), target)
	if err != nil {
		w.t.Fatal(err)
	}
	defer pool.Close()
	m := model{}
	for _, n := range names {
		m[n] = rowsOf(w.t, pool, n)
	}
	return seams, m
}

// The seam: copies of tables that are written to in every manner, taken again and again, some published only just before, each plus the
// stream from where it stood when the copy began, make the source's contents, with no change lost and none twice.
func TestSeam(t *testing.T) {
	s := seed(t)
	early := []string{"a", "b"}
	var late []string
	for i := range rounds() {
		late = append(late, fmt.Sprintf("late%d", i))
	}
	all := slices.Concat(early, late)
	w := newWorld(t, all)
	named := func(names []string) (out []replication.TableName) {
		for _, n := range names {
			out = append(out, replication.TableName{Schema: "public", Name: n})
		}
		return out
	}
	if err := logical.EnsurePublication(w.ctx(), w.pool, "replicator_test", named(early)); err != nil {
		t.Fatal(err)
	}
	type round struct {
		slot  string
		at    replication.Position
		seams map[replication.TableName]replication.Seam
		rows  model
	}
	done := make([]round, rounds())
	for i := range done {
		done[i].slot = fmt.Sprintf("replicator_test_%d", i)
		lsn, err := logical.CreateSlot(w.ctx(), w.source, w.id, w.pool, done[i].slot, nil)
		if err != nil {
			t.Fatal(err)
		}
		done[i].at = logical.FormatPosition(lsn)
	}
	writing, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() { w.write(writing, all, s+uint64(i)) })
	}
	releasing, stopReleasing := context.WithCancel(context.Background())
	var rg sync.WaitGroup
	rg.Go(func() { w.release(releasing) })
	finish := sync.OnceFunc(func() { stop(); wg.Wait(); stopReleasing(); rg.Wait() })
	defer finish()
	source := func(d round) *logical.Source {
		return logical.NewSource(logical.Options{URL: w.source, ID: w.id, Slot: d.slot, Publication: "replicator_test", Seams: d.seams})
	}
	for i := range done {
		d := &done[i]
		names := append(slices.Clone(early), late[i])
		target := w.target(names) // before all else: between the steps below no time may pass
		// The stream has passed commits that the copy's snapshot may not see yet, and transactions are open whose changes from before the
		// publication it will never carry.
		d.at = w.read(source(*d), d.at, replication.Position(w.flushLSN()), "", func(replication.Change) {})
		if err := logical.EnsurePublication(w.ctx(), w.pool, "replicator_test", named(slices.Concat(early, late[:i+1]))); err != nil {
			t.Fatal(err)
		}
		d.seams, d.rows = w.copy(target, names)
	}
	finish()
	if t.Failed() {
		return
	}
	if _, err := w.pool.Exec(w.ctx(), "INSERT INTO replicator.heartbeat VALUES (1, 'end')"); err != nil {
		t.Fatal(err)
	}
	for i, d := range done {
		changes := 0
		w.read(source(d), d.at, "0/0", "end", func(c replication.Change) {
			changes++
			if err := d.rows.apply(c); err != nil {
				t.Errorf("round %d: %v", i, err)
			}
		})
		for name, got := range d.rows {
			want := rowsOf(t, w.pool, name)
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("round %d: %s has %d rows, want %d", i, name, len(got), len(want))
			}
		}
		t.Logf("round %d: %d changes", i, changes)
	}
}

// A transaction that was open before holds the copy up and is named, a prepared one too; one that comes later doesn't.
func TestHorizonNamesItsHolders(t *testing.T) {
	w := newWorld(t, []string{"a"})
	conn := pgtest.Connect(t, w.source+"&application_name=slowpoke")
	if _, err := conn.Exec(w.ctx(), "BEGIN; INSERT INTO a VALUES (1000, 0, 'open')"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var heard []string
	said := func(what string) bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(strings.Join(heard, "\n"), what)
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); <-time.After(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %s", what)
			}
		}
	}
	looking, err := postgres.Connect(w.ctx(), w.source, w.id, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer looking.Close(w.ctx())
	done := make(chan error, 1)
	go func() {
		_, err := Horizon(w.ctx(), looking, func(s string) { mu.Lock(); defer mu.Unlock(); heard = append(heard, s) })
		done <- err
	}()
	until("word of the open transaction", func() bool { return said("slowpoke") })
	later := pgtest.Connect(t, w.source+"&application_name=latecomer")
	if _, err := later.Exec(w.ctx(), "BEGIN; INSERT INTO a VALUES (1001, 0, 'later')"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(w.ctx(), "PREPARE TRANSACTION 'replicator_slow'"); err != nil {
		t.Fatal(err)
	}
	until("word of the prepared transaction", func() bool { return said("prepared transaction 'replicator_slow'") })
	if _, err := conn.Exec(w.ctx(), "ROLLBACK PREPARED 'replicator_slow'"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if said("latecomer") || heard[len(heard)-1] != "" {
		t.Errorf("heard %q", heard)
	}
}

// A copy that fails in the middle leaves the target's table as it was and can be repeated.
func TestFailedCopyLeavesNothing(t *testing.T) {
	w := newWorld(t, []string{"a"})
	target := pgtest.Shared(t).Database(t)
	pgtest.Exec(t, target, "CREATE TABLE a (id int CHECK (id < 40), n bigint, v text); INSERT INTO a VALUES (-1, 0, 'before')")
	finished := 0
	o := Options{SourceURL: w.source, TargetURL: target, ID: w.id, Workers: 1,
		Started:  func(context.Context, replication.Table, replication.Seam) error { return nil },
		Finished: func(context.Context, pgx.Tx, replication.Table, int64, int64) error { finished++; return nil },
		Progress: func(replication.Table, int64, int64) {},
	}
	err := Copy(w.ctx(), o, []replication.Table{w.table("a")})
	if postgres.Code(err) != "23514" || finished != 0 {
		t.Fatalf("finished %d: %v", finished, err)
	}
	pool, err := pgxpool.New(w.ctx(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if got := rowsOf(t, pool, "a"); len(got) != 1 || !got["(-1,0,before)"] {
		t.Fatalf("left %v", got)
	}
	var idle int
	if err := w.pool.QueryRow(w.ctx(), "SELECT count(*) FROM pg_locks WHERE mode = 'AccessShareLock' AND relation = 'a'::regclass").Scan(&idle); err != nil || idle != 0 {
		t.Errorf("%d locks are left on the source (%v)", idle, err)
	}
	pgtest.Exec(t, target, "ALTER TABLE a DROP CONSTRAINT a_id_check")
	if err := Copy(w.ctx(), o, []replication.Table{w.table("a")}); err != nil || finished != 1 {
		t.Fatal(err)
	}
	if got := rowsOf(t, pool, "a"); len(got) != 40 {
		t.Errorf("%d rows", len(got))
	}
}
