package trigger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/apply"
	"replicator/replication/schema"
	"replicator/replication/snapshot"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

func soak() bool { return os.Getenv("REPLICATOR_SOAK") == "1" }

// fixture is a source that belongs to a Heroku-like owner, and a target of an RDS-like master.
type fixture struct {
	t              *testing.T
	server         *pgtest.Server
	super          string // the source's superuser
	source, target string
	id             postgres.Identity
	pool, there    *pgxpool.Pool
	tables         []replication.Table
	seams          map[replication.TableName]replication.Seam
	o              trigger.Options // what newSource changes
}

func pool(t *testing.T, url string, id postgres.Identity) *pgxpool.Pool {
	t.Helper()
	p, err := postgres.Pool(t.Context(), url, id, "test", 4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// newFixture makes both databases with the schema; the target has the tables only.
func newFixture(t *testing.T, ddl string) *fixture {
	t.Helper()
	return newFixtureOn(t, pgtest.Shared(t), ddl)
}

// newFixtureOn has its source on a server of its own.
func newFixtureOn(t *testing.T, s *pgtest.Server, ddl string) *fixture {
	t.Helper()
	f := &fixture{t: t, server: s, super: s.Database(t), id: pgIdentity}
	f.source = s.HerokuOwner(t, f.super)
	there := pgtest.Shared(t)
	f.target = there.RDSMaster(t, there.Database(t))
	pgtest.Exec(t, f.source, ddl)
	pgtest.Exec(t, f.target, ddl)
	f.prepare()
	return f
}

func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	f.t.Cleanup(cancel)
	return ctx
}

func (f *fixture) prepare() {
	f.t.Helper()
	f.pool, f.there = pool(f.t, f.source, f.id), pool(f.t, f.target, f.id)
	for _, p := range []*pgxpool.Pool{f.pool, f.there} {
		if err := state.Ensure(f.ctx(), p); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.there.QueryRow(f.ctx(), `INSERT INTO replicator.migration (name, epoch) VALUES ('test', 1) RETURNING epoch`).Scan(&f.id.Epoch); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) install() {
	f.t.Helper()
	var err error
	if f.tables, err = schema.Tables(f.ctx(), f.pool, schema.Filter{}); err != nil {
		f.t.Fatal(err)
	}
	if _, err := trigger.Install(f.ctx(), f.pool, nil, f.tables); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) names() []replication.TableName {
	var out []replication.TableName
	for _, t := range f.tables {
		out = append(out, t.Name)
	}
	return out
}

// begin installs the capture, notes the position and copies the tables, as a pair does.
func (f *fixture) begin() {
	f.t.Helper()
	f.install()
	f.note()
	f.copy(f.tables)
}

// note stores the position of now.
func (f *fixture) note() {
	f.t.Helper()
	p := f.beginAs(f.id)
	if err := state.StartPosition(f.ctx(), f.there, f.id, replication.Forward, p); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) beginAs(id postgres.Identity) replication.Position {
	f.t.Helper()
	p, err := trigger.Begin(f.ctx(), f.pool, id)
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

func (f *fixture) copy(tables []replication.Table) {
	f.t.Helper()
	if f.seams == nil {
		f.seams = map[replication.TableName]replication.Seam{}
	}
	var mu sync.Mutex
	if err := snapshot.Copy(f.ctx(), snapshot.Options{SourceURL: f.source, TargetURL: f.target, ID: f.id, Workers: 2,
		Started: func(_ context.Context, t replication.Table, s replication.Seam) error {
			mu.Lock()
			defer mu.Unlock()
			f.seams[t.Name] = s
			return nil
		},
		Witness: state.WitnessSQL(f.id),
		Finished: func(_ *pgx.Batch, t replication.Table, _, _ int64, witness string) {
			mu.Lock()
			defer mu.Unlock()
			s := f.seams[t.Name]
			s.Witness = witness
			f.seams[t.Name] = s
		},
		Progress: func(replication.Table, int64, int64) {},
	}, tables); err != nil {
		f.t.Fatal(err)
	}
}

// stream is a running pipeline.
type stream struct {
	f      *fixture
	source *trigger.Source
	stop   func() error
	done   chan struct{}
	mu     sync.Mutex
	at     replication.Position
	marks  []replication.Mark
	count  int
}

// start runs capture and apply until stop. applied, if not nil, is called after each commit on the target.
func (f *fixture) start(applied func(*replication.Batch) error) *stream {
	f.t.Helper()
	a, err := apply.Open(f.ctx(), apply.Options{URL: f.target, ID: f.id, Direction: replication.Forward,
		TypeNames: func(ctx context.Context, oids []uint32, mods []int32) ([]string, error) {
			rows, err := f.pool.Query(ctx, `SELECT format_type(o, m) FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS u(o, m, n) ORDER BY n`, oids, mods)
			if err != nil {
				return nil, err
			}
			return pgx.CollectRows(rows, pgx.RowTo[string])
		}})
	if err != nil {
		f.t.Fatal(err)
	}
	o := f.o
	o.URL, o.ID, o.Tables, o.Seams = f.source, f.id, f.names(), f.seams
	s := &stream{f: f, source: trigger.NewSource(o), at: a.Position()}
	ctx, cancel := context.WithCancel(context.Background())
	batches := make(chan *replication.Batch)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.source.Stream(ctx, a.Position(), batches) })
	g.Go(func() error {
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case b := <-batches:
				if limit := f.o.Limits.Changes; limit > 0 && len(b.Changes) > limit {
					return fmt.Errorf("a batch of %d changes, allowed are %d", len(b.Changes), limit)
				}
				if _, err := a.Apply(ctx, b); err != nil {
					return err
				}
				if !b.Last {
					continue
				}
				if applied != nil {
					if err := applied(b); err != nil {
						return err
					}
				}
				s.source.Acknowledge(b.Position)
				s.mu.Lock()
				s.at = b.Position
				s.marks = append(s.marks, b.Marks...)
				s.count++
				s.mu.Unlock()
			}
		}
	})
	s.done = make(chan struct{})
	var ended error
	go func() {
		ended = g.Wait()
		close(s.done)
	}()
	s.stop = sync.OnceValue(func() error {
		cancel()
		<-s.done
		a.Close(context.Background())
		if errors.Is(ended, context.Canceled) {
			return nil
		}
		return ended
	})
	f.t.Cleanup(func() { _ = s.stop() })
	return s
}

// failure waits until the stream ends by itself.
func (s *stream) failure() error {
	s.f.t.Helper()
	select {
	case <-s.done:
	case <-time.After(30 * time.Second):
		s.f.t.Fatal("the stream goes on")
	}
	return s.stop()
}

// caughtUp waits until the target has everything that has committed so far.
func (s *stream) caughtUp() {
	s.f.t.Helper()
	o, err := trigger.Observe(s.f.ctx(), s.f.pool)
	if err != nil {
		s.f.t.Fatal(err)
	}
	if _, err := state.Beat(s.f.ctx(), s.f.pool, "caught-up"); err != nil {
		s.f.t.Fatal(err)
	}
	s.source.Nudge()
	deadline := time.Now().Add(time.Minute)
	for {
		s.mu.Lock()
		at := s.at
		s.mu.Unlock()
		ok, err := s.source.Reached(at, o.Position)
		if err != nil {
			s.f.t.Fatal(err)
		}
		if ok {
			return
		}
		if time.Now().After(deadline) {
			s.f.t.Fatalf("not caught up: at %s, wanted %s; the stream ended with %v", at, o.Position, s.stop())
		}
		select {
		case <-s.done:
			s.f.t.Fatalf("the stream ended: %v", s.stop())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// content is every row of every table as text, sorted.
func content(t *testing.T, q interface {
	Query(context.Context, string, ...any) (pgx.Rows, error)
}, tables []replication.Table) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, table := range tables {
		rows, err := q.Query(context.Background(), fmt.Sprintf(`SELECT x::text FROM ONLY %s x ORDER BY x::text COLLATE "C"`, table.Name.Quoted()))
		if err != nil {
			t.Fatal(err)
		}
		list, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		out[table.Name.String()] = list
	}
	return out
}

func same(t *testing.T, a, b map[string][]string) {
	t.Helper()
	for name, x := range a {
		y := b[name]
		for i := range max(len(x), len(y)) {
			if i >= len(x) || i >= len(y) || x[i] != y[i] {
				t.Errorf("%s: %d rows on the source, %d on the target; first difference at %d: %.200q against %.200q", name, len(x), len(y), i, at(x, i), at(y, i))
				break
			}
		}
	}
}

func at(s []string, i int) string {
	if i < len(s) {
		return s[i]
	}
	return ""
}

// equal compares all contents.
func (f *fixture) equal() {
	f.t.Helper()
	same(f.t, content(f.t, f.pool, f.tables), content(f.t, f.there, f.tables))
}

func (f *fixture) exec(scripts ...string) {
	f.t.Helper()
	pgtest.Exec(f.t, f.source, scripts...)
}

// execAll runs statements one by one in one session.
func execAll(t *testing.T, url string, statements []string) {
	t.Helper()
	conn := pgtest.Connect(t, url)
	defer conn.Close(context.Background())
	for _, sql := range statements {
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

var pgIdentity = postgres.Identity{Migration: "test", Pair: "main"}
