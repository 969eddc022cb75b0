package pair

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// fixture is a pair between two databases of the shared server.
type fixture struct {
	t              *testing.T
	source, target string
	super          string // the source's superuser, where a test needs one
	workers        int
	paused         bool     // the pair begins so
	guard          [2]int64 // what may be retained: warning, limit
	filter         schema.Filter
	migration      string
	capture        string
	watch          time.Duration
	pair           *Pair
	epoch          int64
	done           chan error // what Run returned
	deposed        bool       // Run ends because another process leads
	stop           func()
	log            *slog.Logger // the test's, if nil
	horizon        time.Duration
	asking         map[string]*pgx.Conn // by URL, for ask
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	s := pgtest.Shared(t)
	return &fixture{t: t, source: s.Database(t), target: s.Database(t), migration: newMigration(), watch: time.Second}
}

func newMigration() string { return "m" + strconv.FormatUint(rand.Uint64()%1e9, 10) }

// soak tells whether random tests do all that they can.
func soak() bool { return os.Getenv("REPLICATOR_SOAK") != "" }

// everyCapture runs a test once for each capture, with the roles that it is made for: a role that may replicate and one like Heroku's.
func everyCapture(t *testing.T, test func(t *testing.T, f *fixture)) {
	t.Run(Logical, func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.capture = Logical
		s := pgtest.Shared(t)
		f.source, f.target = s.LogicalOwner(t, f.source), s.LogicalOwner(t, f.target)
		test(t, f)
	})
	t.Run(Trigger, func(t *testing.T) {
		t.Parallel()
		f := newFixture(t)
		f.capture = Trigger
		s := pgtest.Shared(t)
		f.source, f.target = s.HerokuOwner(t, f.source), s.RDSMaster(t, f.target)
		test(t, f)
	})
}

// lead makes a pair under a new lead.
func (f *fixture) lead(ctx context.Context) *state.Lead {
	f.t.Helper()
	pool, err := postgres.Pool(ctx, f.target, postgres.Identity{Migration: f.migration}, "test", 1)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := state.Ensure(ctx, pool); err != nil {
		f.t.Fatal(err)
	}
	pool.Close()
	lead, err := state.TakeLead(ctx, f.target, f.migration, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	f.epoch = lead.Epoch
	if f.log == nil {
		f.log = slog.New(slog.NewTextHandler(testWriter{f.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	f.pair = New(Options{Migration: f.migration, Name: "main", SourceURL: f.source, TargetURL: f.target, Epoch: lead.Epoch, Capture: f.capture, CopyWorkers: f.workers, Paused: f.paused, WatchEvery: f.watch, HorizonWarning: f.horizon,
		RetainedWarning: f.guard[0], RetainedLimit: f.guard[1], Filter: f.filter, Log: f.log})
	return lead
}

// start runs the pair as a new leader would.
func (f *fixture) start(reverse bool) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	lead := f.lead(ctx)
	p := f.pair
	done := make(chan error, 1)
	f.done = done
	go func() { done <- p.Run(ctx, reverse) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) && (!f.deposed || !errors.Is(err, replication.ErrDeposed)) {
			f.t.Errorf("Run returned %v", err)
		}
		lead.Release(context.Background())
	})
	f.t.Cleanup(f.stop)
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(p[:len(p)-1]))
	return len(p), nil
}

// until waits for a condition of the pair's status.
func (f *fixture) until(what string, d time.Duration, ok func(Status) bool) {
	f.t.Helper()
	deadline := time.Now().Add(d)
	for !ok(f.pair.Status()) {
		if time.Now().After(deadline) {
			f.t.Fatalf("no %s within %v: %+v", what, d, f.pair.Status())
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (f *fixture) streaming() {
	f.t.Helper()
	f.until("streaming", time.Minute, func(s Status) bool { return s.Phase == Streaming })
}

// openTransaction begins a transaction on the source that has written to the small schema's t; commit ends it.
func (f *fixture) openTransaction() (commit func() error) {
	f.t.Helper()
	conn := pgtest.Connect(f.t, f.source)
	if _, err := conn.Exec(f.ctx(), "BEGIN; UPDATE t SET v = 'open' WHERE id = 1"); err != nil {
		f.t.Fatal(err)
	}
	return func() error { _, err := conn.Exec(context.Background(), "COMMIT"); return err }
}

// hints are those of all problems.
func (f *fixture) hints() (all string) {
	for _, p := range f.pair.Status().Problems {
		all += p.Hint
	}
	return all
}

// ask reads one value, in a session that is kept for it.
func ask[T any](f *fixture, url, sql string, args ...any) (out T) {
	f.t.Helper()
	conn := f.asking[url]
	if conn == nil || conn.IsClosed() {
		if f.asking == nil {
			f.asking = map[string]*pgx.Conn{}
		}
		conn = pgtest.Connect(f.t, url)
		f.asking[url] = conn
	}
	// Without prepared statements, which would outlive what they name.
	if err := conn.QueryRow(f.ctx(), sql, slices.Concat([]any{pgx.QueryExecModeExec}, args)...).Scan(&out); err != nil {
		f.t.Fatal(err)
	}
	return out
}

// ctx bounds one call.
func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	f.t.Cleanup(cancel)
	return ctx
}

// equal verifies both sides through the running pair.
func (f *fixture) equal() {
	f.t.Helper()
	report, err := f.pair.VerifyNow(f.ctx(), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	if report.Mismatches != 0 || len(report.Tables) == 0 {
		for _, r := range report.Tables {
			if !r.Equal {
				f.t.Errorf("%s: %d rows against %d: %+v", r.Table, r.SourceRows, r.TargetRows, r.Differences)
			}
		}
		f.t.Fatalf("%d differences in %d tables", report.Mismatches, len(report.Tables))
	}
}

const variedSchema = `
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TABLE plain (id bigserial PRIMARY KEY, v text, n numeric(12, 3), m mood, p positive, a int[], at timestamptz DEFAULT now(), big text, j jsonb);
ALTER TABLE plain ALTER big SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX plain_n ON plain (n);
CREATE TABLE composite (a int, b text, v bytea, PRIMARY KEY (b, a));
CREATE TABLE keyless (a int, v text, f float8, j json);
CREATE TABLE always (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, doubled int GENERATED ALWAYS AS (length(v) * 2) STORED);
CREATE TABLE "Odd ""name" ("Key col" uuid PRIMARY KEY DEFAULT gen_random_uuid(), "select" text);
CREATE TABLE parts (id int, at date NOT NULL, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE parts_b PARTITION OF parts FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE TABLE child (id int PRIMARY KEY, plain_id bigint REFERENCES plain ON DELETE CASCADE, v text);
CREATE TABLE touched (id int PRIMARY KEY, n int);
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.touched VALUES (NEW.id, 1) ON CONFLICT (id) DO UPDATE SET n = public.touched.n + 1; RETURN NEW; END $$;
CREATE TRIGGER touch AFTER INSERT OR UPDATE ON child FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TABLE uniquekey (x int, y int NOT NULL UNIQUE);
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text);
CREATE TABLE animals (name text PRIMARY KEY, legs int);
CREATE TABLE birds (wings int, PRIMARY KEY (name)) INHERITS (animals);
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE dependent (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE secured (id int PRIMARY KEY, v text);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY nobody ON secured USING (false);
CREATE MATERIALIZED VIEW totals AS SELECT m, count(*) FROM plain GROUP BY m;
INSERT INTO plain (v, n, m, p, a, big, j) SELECT 'v' || i, i, (ARRAY['sad', 'ok', 'happy'])[1 + i % 3]::mood, 1 + i % 9, ARRAY[i, NULL, -i], repeat(md5(i::text), CASE WHEN i % 30 = 0 THEN 400 ELSE i % 80 END), jsonb_build_object('i', i) FROM generate_series(1, 3000) i;
INSERT INTO composite SELECT i, 'b' || i % 7, decode(md5(i::text), 'hex') FROM generate_series(1, 1000) i;
INSERT INTO keyless SELECT i % 50, 'v' || i % 20, i / 3.0, '{"a":  1}' FROM generate_series(1, 500) i;
INSERT INTO always (v) SELECT repeat('x', i % 30) FROM generate_series(1, 500) i;
INSERT INTO "Odd ""name" ("select") SELECT 's' || i FROM generate_series(1, 200) i;
INSERT INTO parts SELECT i, date '2020-01-01' + i % 700, 'p' || i FROM generate_series(1, 1000) i;
INSERT INTO child SELECT i, i, 'c' FROM generate_series(1, 500) i;
INSERT INTO uniquekey SELECT i, 10 * i FROM generate_series(1, 100) i;
INSERT INTO deferred SELECT i, 'd' FROM generate_series(1, 100) i;
INSERT INTO animals SELECT 'a' || i, 4 FROM generate_series(1, 50) i;
INSERT INTO birds SELECT 'a' || i, 2, 2 FROM generate_series(40, 90) i;
INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 60) i;
INSERT INTO dependent SELECT i, 1 + i % 60 FROM generate_series(1, 200) i;
INSERT INTO secured SELECT i, 's' FROM generate_series(1, 50) i;
REFRESH MATERIALIZED VIEW totals;
`

// writeRandomly writes to the varied schema until ctx ends and returns how many transactions it committed. A write that the gate
// refuses is tried again.
func writeRandomly(ctx context.Context, t *testing.T, url string, seed uint64) int {
	r := rand.New(rand.NewPCG(seed, 1))
	conn, err := pgx.Connect(context.WithoutCancel(ctx), url)
	if err != nil {
		t.Errorf("connect the writer: %v", err)
		return 0
	}
	defer conn.Close(context.WithoutCancel(ctx))
	committed := 0
	for ; ctx.Err() == nil; breathe(ctx, r) {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for range 1 + r.IntN(12) {
				sql := randomStatement(r)
				if r.IntN(10) == 0 { // a savepoint that is rolled back
					if _, err := tx.Exec(ctx, "SAVEPOINT s"); err != nil {
						return err
					}
					if _, err := tx.Exec(ctx, sql); err != nil && fatal(err) {
						return err
					}
					if _, err := tx.Exec(ctx, "ROLLBACK TO s"); err != nil {
						return err
					}
					continue
				}
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
		var pe *pgconn.PgError
		switch {
		case err == nil:
			committed++
		case ctx.Err() != nil:
		case errors.As(err, &pe) && !fatal(err):
		default:
			t.Errorf("write: %v", err)
			return committed
		}
	}
	return committed
}

// breathe has a writer wait a few milliseconds after a transaction, as an application's do: without it the writers alone take the whole
// machine, and what is tested waits for them. A soak's writers take no breath.
func breathe(ctx context.Context, r *rand.Rand) {
	if soak() {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(time.Duration(r.Int64N(int64(20 * time.Millisecond)))):
	}
}

// fatal tells whether a writer's error is none that the application would meet: a conflict, or the gate.
func fatal(err error) bool {
	switch code := postgres.Code(err); code {
	case "23505", "23503", "40P01", "40001", "25006", "25P02":
		return false
	default:
		return true
	}
}

func randomStatement(r *rand.Rand) string {
	n := func(k int) string { return strconv.Itoa(1 + r.IntN(k)) }
	all := []func() string{
		func() string {
			return "INSERT INTO plain (v, n, m, p, a, big) VALUES ('new', " + n(1e9) + ", 'ok', 3, '{1}', repeat(md5(random()::text), " + n(300) + "))"
		},
		func() string { return "UPDATE plain SET v = 'u' || random() WHERE id = " + n(3500) }, // leaves TOAST alone
		func() string {
			return "UPDATE plain SET big = repeat(md5(random()::text), 200), j = NULL WHERE id = " + n(3500)
		},
		func() string { return "UPDATE plain SET v = v WHERE id <= " + n(40) },
		func() string { return "DELETE FROM plain WHERE id = " + n(3500) },
		func() string { return "UPDATE plain SET id = id + 100000 WHERE id = " + n(3500) },
		// A unique value that changes hands within a transaction.
		func() string {
			a := n(3000)
			return "WITH x AS (SELECT id, n FROM plain WHERE id BETWEEN " + a + " AND " + a + " + 1) UPDATE plain SET n = -n WHERE id IN (SELECT id FROM x)"
		},
		func() string {
			return "INSERT INTO composite VALUES (" + n(2000) + ", 'b" + n(7) + "', '\\x00ff') ON CONFLICT DO NOTHING"
		},
		func() string { return "UPDATE composite SET b = 'c" + n(5) + "' WHERE a = " + n(1000) },
		func() string { return "DELETE FROM composite WHERE a = " + n(1000) },
		func() string { return "INSERT INTO keyless VALUES (" + n(50) + ", NULL, 'NaN', NULL)" },
		func() string {
			return "DELETE FROM keyless WHERE ctid IN (SELECT ctid FROM keyless WHERE a = " + n(50) + " LIMIT 1)"
		},
		func() string { return "UPDATE keyless SET v = '' WHERE a = " + n(50) },
		func() string { return "INSERT INTO always (v) VALUES ('y')" },
		func() string { return "UPDATE always SET v = v || 'z' WHERE id = " + n(500) },
		func() string { return "UPDATE always SET id = DEFAULT WHERE id = " + n(500) },
		func() string { return `INSERT INTO "Odd ""name" ("select") VALUES (NULL)` },
		func() string { return `DELETE FROM "Odd ""name" WHERE "select" = 's` + n(200) + `'` },
		func() string { return "UPDATE parts SET at = date '2020-01-01' + " + n(700) + " WHERE id = " + n(1000) }, // moves between leaves
		func() string {
			return "INSERT INTO parts VALUES (" + n(100000) + ", '2020-05-05', 'n') ON CONFLICT DO NOTHING"
		},
		func() string { return "DELETE FROM parts WHERE id = " + n(1000) },
		func() string { return "INSERT INTO child VALUES (" + n(100000) + ", NULL, 'n') ON CONFLICT DO NOTHING" },
		func() string { return "UPDATE child SET v = 'w' WHERE id = " + n(500) },
		func() string { return "UPDATE uniquekey SET y = y + 1 WHERE x < " + n(5) },
		func() string {
			return "INSERT INTO uniquekey VALUES (NULL, " + n(1e6) + "); DELETE FROM uniquekey WHERE x = " + n(100)
		},
		func() string { return "UPDATE deferred SET id = 7 - id WHERE id <= 6" }, // all of them collide on the way
		func() string {
			return "INSERT INTO deferred SELECT x, 'n' FROM (VALUES (" + n(1000) + ")) v (x) WHERE NOT EXISTS (SELECT FROM deferred WHERE id = x)"
		},
		func() string { return "UPDATE animals SET legs = legs + 1 WHERE name = 'a" + n(90) + "'" }, // of both tables
		func() string { return "UPDATE birds SET name = name || 'b' WHERE name = 'a" + n(90) + "'" },
		func() string { return "DELETE FROM animals WHERE name = 'a" + n(90) + "'" },
		func() string { return "INSERT INTO birds VALUES ('a" + n(90) + "', 2, 2) ON CONFLICT DO NOTHING" },
		func() string { return "UPDATE parent SET id = id + 100 WHERE id = " + n(60) },
		func() string { return "DELETE FROM parent WHERE id = " + n(200) },
		func() string { return "INSERT INTO parent VALUES (" + n(60) + ", 'n') ON CONFLICT DO NOTHING" },
		func() string { return "UPDATE secured SET v = v || 's' WHERE id = " + n(50) },
	}
	if r.IntN(400) == 0 {
		return []string{"TRUNCATE parts_b, composite", "TRUNCATE parent CASCADE", "TRUNCATE parts", "TRUNCATE ONLY animals"}[r.IntN(4)]
	}
	return all[r.IntN(len(all))]()
}

// writers runs several random writers until stop is called, which returns the number of transactions they committed.
func writers(t *testing.T, url string, seed uint64, n int) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	counts := make([]int, n)
	for i := range n {
		wg.Go(func() { counts[i] = writeRandomly(ctx, t, url, seed+uint64(i)) })
	}
	total := 0
	f := sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		for _, c := range counts {
			total += c
		}
	})
	t.Cleanup(f)
	return func() int { f(); return total }
}
