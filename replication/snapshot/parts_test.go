package snapshot

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
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/logical"
)

// inParts describes a table so that it is copied in parts, whatever its real size is.
func (w *world) inParts(name string) replication.Table {
	t := w.table(name)
	t.Pages, t.Bytes = 40, 40*8192
	return t
}

// Parts of tables that are written to, copied by several sessions, plus the stream make the source's contents: all parts see one state.
func TestSeamInParts(t *testing.T) {
	s := pgtest.Seed(t)
	names := []string{"a", "b"}
	w := newWorld(t, names, nil)
	pgtest.Exec(t, w.source, "INSERT INTO a SELECT i, 0, repeat('x', 40) FROM generate_series(1000, 6000) i; INSERT INTO b SELECT i, 0, repeat('y', 40) FROM generate_series(1000, 3000) i")
	public := []replication.TableName{{Schema: "public", Name: "a"}, {Schema: "public", Name: "b"}}
	if err := logical.EnsurePublication(w.ctx(), w.pool, "replicator_test", public); err != nil {
		t.Fatal(err)
	}
	lsn, err := logical.CreateSlot(w.ctx(), w.source, w.id, w.pool, "replicator_test", nil)
	if err != nil {
		t.Fatal(err)
	}
	writing, stop := context.WithCancel(context.Background())
	releasing, stopReleasing := context.WithCancel(context.Background())
	var wg, rg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() { w.write(writing, names, s+uint64(i)) })
	}
	rg.Go(func() { w.release(releasing) })
	finish := sync.OnceFunc(func() { stop(); wg.Wait(); stopReleasing(); rg.Wait() })
	defer finish()
	var mu sync.Mutex
	seams := map[replication.TableName]replication.Seam{}
	target := w.target(names)
	if err := Copy(w.ctx(), Options{SourceURL: w.source, TargetURL: target, ID: w.id, Workers: 4, PartBytes: 8192,
		Started: func(_ context.Context, t replication.Table, s replication.Seam) error {
			mu.Lock()
			defer mu.Unlock()
			seams[t.Name] = s
			return nil
		},
		Finished: func(*pgx.Batch, replication.Table, int64, int64, string) {},
		Progress: func(replication.Table, int64, int64) {},
	}, []replication.Table{w.inParts("a"), w.inParts("b")}); err != nil {
		t.Fatal(err)
	}
	finish()
	pool, err := pgxpool.New(w.ctx(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	m := model{}
	for _, n := range names {
		m[n] = rowsOf(t, pool, n)
	}
	if _, err := w.pool.Exec(w.ctx(), "INSERT INTO replicator.heartbeat (id, token) VALUES (1, 'end')"); err != nil {
		t.Fatal(err)
	}
	source := logical.NewSource(logical.Options{URL: w.source, ID: w.id, Slot: "replicator_test", Publication: "replicator_test", Seams: seams})
	w.read(source, logical.FormatPosition(lsn), "0/0", "end", func(c replication.Change) {
		if err := m.apply(c); err != nil {
			t.Error(err)
		}
	})
	for _, n := range names {
		if want := rowsOf(t, w.pool, n); fmt.Sprint(m[n]) != fmt.Sprint(want) {
			t.Errorf("%s has %d rows, want %d", n, len(m[n]), len(want))
		}
	}
}

// A copy in parts that is cut at any moment, by the process's end or by either server, is repeated table by table: no row is missing, none is
// there twice, what was finished isn't touched again, and a table's jobs follow its copy.
func TestCutCopyInParts(t *testing.T) {
	s := pgtest.Seed(t)
	r := rand.New(rand.NewPCG(s, 5))
	names := []string{"a", "b", "c"}
	w := newWorld(t, names, nil)
	target := pgtest.Shared(t).Database(t)
	for i, n := range names {
		pgtest.Exec(t, w.source, fmt.Sprintf("INSERT INTO %s SELECT i, %d, repeat(md5(i::text), 8) FROM generate_series(1000, %d) i", n, i, 9000-i*2500))
		pgtest.Exec(t, target, "CREATE TABLE "+n+" (id int, n bigint, v text)") // no key would notice a row that comes twice
	}
	var mu sync.Mutex
	finished := map[string]int{}
	done, cuts := map[string]bool{}, 0
	for attempt := 0; len(done) < len(names); attempt++ {
		if attempt > 40 {
			t.Fatalf("finished %v in %d attempts", finished, attempt)
		}
		var left []replication.Table
		for _, n := range names {
			if !done[n] {
				left = append(left, w.inParts(n))
			}
		}
		ctx, cancel := context.WithCancel(w.ctx())
		var bytes atomic.Int64
		at := r.Int64N(3 << 20)
		how := r.IntN(3)
		if attempt > 10 {
			at = 1 << 40
		}
		cut := sync.OnceFunc(func() {
			const terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'replicator/m/p/copy/%' AND datname = current_database()"
			switch how {
			case 0:
				cancel()
			case 1:
				pgtest.Exec(t, w.source, terminate)
			case 2:
				pgtest.Exec(t, target, terminate)
			}
		})
		err := Copy(ctx, Options{SourceURL: w.source, TargetURL: target, ID: w.id, Workers: 3, PartBytes: 8192,
			Started: func(context.Context, replication.Table, replication.Seam) error { return nil },
			Finished: func(_ *pgx.Batch, t replication.Table, _, _ int64, _ string) {
				mu.Lock()
				defer mu.Unlock()
				finished[t.Name.Name]++
			},
			Then: func(t replication.Table) Chain {
				mu.Lock()
				defer mu.Unlock()
				done[t.Name.Name] = true
				return Chain{{func(ctx context.Context, target *pgx.Conn) error {
					_, err := target.Exec(ctx, "CREATE INDEX IF NOT EXISTS "+t.Name.Name+"_id ON "+t.Name.Quoted()+" (id)")
					return err
				}}}
			},
			Progress: func(_ replication.Table, _, n int64) {
				if bytes.Add(n) > at {
					cut()
				}
			},
		}, left)
		cancel()
		if err != nil {
			cuts++
			if how != 0 && !postgres.IsTransient(err) && !errors.Is(err, context.Canceled) {
				t.Fatalf("attempt %d: %v", attempt, err)
			}
		}
	}
	if cuts == 0 {
		t.Errorf("nothing was cut: %v", finished)
	}
	there := pgtest.Connect(t, target)
	for _, n := range names {
		const sql = "SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)::numeric) FROM public.%s t"
		var a, z string
		if err := w.pool.QueryRow(w.ctx(), fmt.Sprintf(sql, n)).Scan(&a); err != nil {
			t.Fatal(err)
		}
		if err := there.QueryRow(w.ctx(), fmt.Sprintf(sql, n)).Scan(&z); err != nil {
			t.Fatal(err)
		}
		if a != z {
			t.Errorf("%s: the source has %s, the target %s, after %d cuts", n, a, z, cuts)
		}
	}
}

// Somebody who waits for an exclusive lock makes everybody queue who comes after; the copy goes on all the same, since its leader has the lock.
func TestPartsBehindAnExclusiveLock(t *testing.T) {
	w := newWorld(t, []string{"a"}, nil)
	pgtest.Exec(t, w.source, "INSERT INTO a SELECT i, 0, repeat('x', 40) FROM generate_series(1000, 6000) i")
	target := w.target([]string{"a"})
	locking := make(chan error, 1)
	err := Copy(w.ctx(), Options{SourceURL: w.source, TargetURL: target, ID: w.id, Workers: 3, PartBytes: 8192,
		Started: func(ctx context.Context, _ replication.Table, _ replication.Seam) error {
			conn := pgtest.Connect(t, w.source)
			go func() {
				_, err := conn.Exec(context.WithoutCancel(ctx), "ALTER TABLE a ADD COLUMN later int")
				locking <- err
			}()
			for waiting := 0; waiting == 0; {
				if err := w.pool.QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE relation = 'public.a'::regclass AND NOT granted").Scan(&waiting); err != nil {
					return err
				}
			}
			return nil
		},
		Finished: func(*pgx.Batch, replication.Table, int64, int64, string) {},
		Progress: func(replication.Table, int64, int64) {},
	}, []replication.Table{w.inParts("a")})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-locking; err != nil {
		t.Errorf("the ALTER TABLE: %v", err)
	}
	var n int
	if err := pgtest.Connect(t, target).QueryRow(w.ctx(), "SELECT count(*) FROM a").Scan(&n); err != nil || n != 40+5001 {
		t.Errorf("%d rows, %v", n, err)
	}
}

// Rows of all sizes go through the pipe as they are; the source's and the target's errors come out of it as themselves.
func TestPipe(t *testing.T) {
	server := pgtest.Shared(t)
	a, z := pgtest.Connect(t, server.Database(t)), pgtest.Connect(t, server.Database(t))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := z.Exec(ctx, "CREATE TABLE rows (id int CHECK (id < 10000), v text)"); err != nil {
		t.Fatal(err)
	}
	const rows = "SELECT i AS id, repeat(chr(97 + i %% 26), (i::bigint * i * 7919 %% %d)::int) AS v FROM generate_series(0, %d) i"
	for _, c := range []struct{ size, last int }{{1, 0}, {1, 9000}, {200, 9000}, {400000, 60}} {
		for _, form := range []string{"binary", "text"} {
			sql := fmt.Sprintf(rows, c.size, c.last)
			moved := 0
			n, err := pipe(ctx, a.PgConn(), z.PgConn(), "COPY ("+sql+") TO STDOUT (FORMAT "+form+")", "COPY rows FROM STDIN (FORMAT "+form+")", func(n int) { moved += n })
			if err != nil || n != int64(c.last)+1 || moved == 0 {
				t.Fatalf("%v in %s: %d rows, %d bytes: %v", c, form, n, moved, err)
			}
			var equal bool
			if err := z.QueryRow(ctx, "WITH gone AS (DELETE FROM rows RETURNING *) SELECT NOT EXISTS ((TABLE gone EXCEPT ALL "+sql+") UNION ALL ("+sql+" EXCEPT ALL TABLE gone))").Scan(&equal); err != nil || !equal {
				t.Errorf("%v in %s: the rows differ: %v", c, form, err)
			}
		}
	}
	for _, c := range []struct{ out, in, code, says string }{
		{"(SELECT i, repeat('x', 100 / (9000 - i)) FROM generate_series(1, 20000) i)", "rows", "22012", "read from the source"},
		{"(SELECT i, repeat('x', 2000) FROM generate_series(1, 1000000) i)", "rows", "23514", "write to the target"},
		{"(SELECT 1, 'x')", "nothing", "42P01", "write to the target"},
		{"nothing", "rows", "42P01", "read from the source"},
	} {
		from, to := pgtest.Connect(t, server.Database(t)), pgtest.Connect(t, z.Config().ConnString())
		_, err := pipe(ctx, from.PgConn(), to.PgConn(), "COPY "+c.out+" TO STDOUT", "COPY "+c.in+" FROM STDIN", func(int) {})
		if postgres.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s into %s: %v, want %s", c.out, c.in, err, c.code)
		}
		from.Close(ctx)
		to.Close(ctx)
	}
	var n int
	if err := z.QueryRow(ctx, "SELECT count(*) FROM rows").Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows are left (%v)", n, err)
	}
	ending, end := context.WithCancel(ctx)
	if _, err := pipe(ending, a.PgConn(), z.PgConn(), "COPY (SELECT i, 'x' FROM generate_series(1, 9000) i, generate_series(1, 10000)) TO STDOUT", "COPY rows FROM STDIN", func(int) { end() }); !errors.Is(err, context.Canceled) {
		t.Errorf("ended from outside: %v", err)
	}
	a.Close(ctx) // a server in the middle of a copy that nobody reads holds up DROP DATABASE
	z.Close(ctx)
}
