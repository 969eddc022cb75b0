package snapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/state"
)

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

var everySession = map[string]string{ // sessions that don't ask for it don't wait for the standby
	"synchronous_standby_names": "nobody", "synchronous_commit": "local", "max_replication_slots": "80", "max_prepared_transactions": "30", "deadlock_timeout": "50ms",
}

// newWorld makes it with the tables. owner, if not nil, makes the role that they belong to; otherwise it is the superuser.
func newWorld(t *testing.T, tables []string, owner func(*pgtest.Server, pgtest.TB, string) string) *world {
	t.Helper()
	w := &world{t: t, server: pgtest.Start(t, pgtest.Options{Settings: everySession}), id: postgres.Identity{Migration: "m", Pair: "p", Epoch: 1}}
	w.source = w.server.Database(t)
	if owner != nil {
		w.source = owner(w.server, t, w.source)
	}
	for _, n := range tables {
		pgtest.Exec(t, w.source, fmt.Sprintf("CREATE TABLE %s (id int PRIMARY KEY, n bigint, v text); ALTER TABLE %[1]s REPLICA IDENTITY FULL; INSERT INTO %[1]s SELECT i, 0, 'v' FROM generate_series(1, 40) i", n))
	}
	var err error
	if w.pool, err = pgxpool.New(w.ctx(), w.source); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.pool.Close)
	if err := state.Ensure(w.ctx(), w.pool); err != nil {
		t.Fatal(err)
	}
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

func rowsOf(t *testing.T, pool *pgxpool.Pool, table string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found, err := pool.Query(ctx, "SELECT id::text, t::text FROM public."+table+" t")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var id, row string
	if _, err := pgx.ForEachRow(found, []any{&id, &row}, func() error { out[id] = row; return nil }); err != nil {
		t.Fatal(err)
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
		Finished: func(*pgx.Batch, replication.Table, int64, int64, string) {},
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
