package trigger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

func wantCode(t *testing.T, err error, code string, words ...string) {
	t.Helper()
	var h *preflight.Hinted
	if !errors.As(err, &h) || h.Code != code || h.Hint == "" {
		t.Fatalf("error %v, want one with code %s and a hint", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q doesn't say %q", err, w)
		}
	}
}

const few = `
CREATE TABLE plain (id bigserial PRIMARY KEY, v text, n numeric, j jsonb);
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE keyless (a int, v text);
INSERT INTO plain (v) SELECT 'v' FROM generate_series(1, 50);
`

// What makes the log untrustworthy stops the stream before anything is delivered.
func TestWhatStopsTheStream(t *testing.T) {
	for name, c := range map[string]struct {
		sql, code string
		words     []string
	}{
		"triggers were off":     {`BEGIN; ALTER TABLE plain DISABLE TRIGGER ALL; DELETE FROM plain; ALTER TABLE plain ENABLE TRIGGER ALL; COMMIT; INSERT INTO parent VALUES (99)`, "capture-disabled", []string{"public.plain", "resync"}},
		"trigger dropped":       {`DROP TRIGGER replicator_capture ON plain; DELETE FROM plain; INSERT INTO parent VALUES (99)`, "capture-disabled", []string{"public.plain"}},
		"table made anew":       {`DROP TABLE plain; CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO parent VALUES (99)`, "capture-disabled", []string{"public.plain"}},
		"table renamed":         {`ALTER TABLE plain RENAME TO fancy; DELETE FROM fancy`, "capture-altered", []string{"renamed"}},
		"keyless table altered": {`ALTER TABLE keyless ADD more int; UPDATE keyless SET more = 1; INSERT INTO keyless (a) VALUES (1)`, "capture-altered", []string{"public.keyless", "resync"}},
		"column added":          {`ALTER TABLE plain ADD more int DEFAULT 7; INSERT INTO plain (id) VALUES (99)`, "schema-drift", []string{"ADD COLUMN", "integer"}},
		"type changed":          {`ALTER TABLE plain ALTER j TYPE text; INSERT INTO plain (id) VALUES (99)`, "schema-drift", []string{"jsonb"}},
		"log contradicts":       {`DELETE FROM plain WHERE id = 3; DO 'BEGIN EXECUTE format(''UPDATE replicator.capture_%s_0 SET k0 = coalesce(k0, o0), o0 = NULL'', ''plain''::regclass::oid); END'`, "capture-contradiction", []string{"public.plain"}},
		"count gone back":       {`UPDATE replicator.witness SET beat = beat - 100`, "commits-lost", []string{"resync"}},
		"count gone":            {`TRUNCATE replicator.witness; INSERT INTO parent VALUES (99)`, "capture-lost", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, few)
			f.begin()
			s := f.start(nil)
			f.exec(`INSERT INTO parent VALUES (98, 'before')`)
			s.caughtUp()
			if c.code == "commits-lost" {
				if err := s.stop(); err != nil {
					t.Fatal(err)
				}
			}
			f.exec(c.sql)
			if c.code == "commits-lost" {
				s = f.start(nil)
			}
			err := s.failure()
			wantCode(t, err, c.code, c.words...)
			var n int
			if err := f.there.QueryRow(t.Context(), `SELECT count(*) FROM public.parent WHERE id = 99`).Scan(&n); err != nil || n != 0 {
				t.Errorf("something of the window was applied: %d %v", n, err)
			}
		})
	}
}

// The pair goes on by itself once both sides agree.
func TestGoesOnWhenBothSidesAgree(t *testing.T) {
	f := newFixture(t, kinds)
	f.begin()
	s := f.start(nil)
	change := `ALTER TABLE plain ADD more int DEFAULT 7; ALTER TABLE plain DROP at; ALTER TABLE plain ALTER j TYPE text; ALTER TABLE plain RENAME m TO feeling`
	f.exec(`UPDATE plain SET v = 'before'`, change, `UPDATE plain SET more = id`)
	if err := s.failure(); err == nil {
		t.Fatal("the drift was not noticed")
	}
	pgtest.Exec(t, f.target, change)
	s = f.start(nil)
	f.exec(`INSERT INTO plain (id, feeling, j) VALUES (700, 'sad', 'not json')`)
	s.caughtUp()
	f.equal()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}

// The callback is asked before a window is delivered, and in the window's own snapshot.
func TestDriftIsAskedFirst(t *testing.T) {
	f := newFixture(t, kinds)
	drifted := errors.New("drifted")
	f.o.DriftEvery = time.Hour // what has come is noticed at once all the same
	f.o.Drift = func(ctx context.Context, q trigger.Querier) error {
		var n int
		if err := q.QueryRow(ctx, `SELECT count(*) FROM pg_class WHERE relname = 'unheard'`).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return drifted
		}
		return nil
	}
	f.begin()
	s := f.start(nil)
	f.exec(`INSERT INTO parent VALUES (98)`)
	s.caughtUp()
	f.exec(`BEGIN; CREATE TABLE unheard (id int); INSERT INTO parent VALUES (99); COMMIT`)
	if err := s.failure(); !errors.Is(err, drifted) {
		t.Fatalf("ended with %v", err)
	}
	var n int
	if err := f.there.QueryRow(t.Context(), `SELECT count(*) FROM public.parent WHERE id = 99`).Scan(&n); err != nil || n != 0 {
		t.Errorf("the window was applied: %d %v", n, err)
	}
}

// A server that was restored, or failed over to a standby that lagged, counts fewer commits than the position.
func TestLostCommitsAreNamed(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	f := newFixtureOn(t, s, kinds)
	f.begin()
	run := f.start(nil)
	f.exec(`INSERT INTO parent VALUES (97)`)
	run.caughtUp()
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	saved := t.TempDir() + "/data"
	stop := func() {
		f.pool.Reset()
		if err := s.Stop(f.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	start := func() {
		if err := s.Start(f.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if out, err := exec.Command("cp", "-a", s.DataDir(), saved).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	start()
	// A restart alone loses nothing.
	run = f.start(nil)
	f.exec(`INSERT INTO parent VALUES (98)`)
	run.caughtUp()
	f.equal()
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := os.RemoveAll(s.DataDir()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", saved, s.DataDir()).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	start()
	f.exec(`INSERT INTO parent VALUES (99)`) // under a transaction id that the position has seen
	wantCode(t, f.start(nil).failure(), "commits-lost", "lost commits", "resync")
}

// A boundary's snapshot is exactly what the destination has at its position, while writers go on.
func TestBoundaryEqualsTheDestination(t *testing.T) {
	f := newFixture(t, ledger)
	f.install()
	f.note()
	f.copy(f.tables)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		conn, err := pgx.Connect(context.Background(), f.source)
		for i := 0; err == nil && ctx.Err() == nil; i++ {
			_, err = conn.PgConn().Exec(context.Background(), fmt.Sprintf("UPDATE accounts SET balance = balance + 1 WHERE id = %d; INSERT INTO entries (account, amount) VALUES (%d, 1)", 1+i%100, 1+i%100)).ReadAll()
		}
		done <- err
	}()
	s := f.start(nil)
	for range 3 {
		b, err := s.source.Boundary(f.ctx())
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the destination has the boundary", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.at == b.Position
		})
		there := content(t, f.there, f.tables)
		b.Release()
		conn := pgtest.Connect(t, f.source)
		for _, sql := range []string{"BEGIN ISOLATION LEVEL REPEATABLE READ", "SET TRANSACTION SNAPSHOT '" + b.Snapshot + "'"} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		same(t, content(t, conn, f.tables), there)
		b.Close(f.ctx())
		s.caughtUp()
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	nobody, end := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer end()
	if _, err := s.source.Boundary(nobody); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a boundary without a stream: %v", err)
	}
}

// The log is emptied while transactions go on; one that is old, or prepared, holds back only what it wrote to itself.
func TestTheLogStaysSmall(t *testing.T) {
	f := newFixture(t, `CREATE TABLE busy (id bigserial PRIMARY KEY, v int); CREATE TABLE other (id bigserial PRIMARY KEY, v int)`)
	f.o.RotateBytes, f.o.UpkeepEvery = 128<<10, 20*time.Millisecond
	f.begin()
	s := f.start(nil)
	old := pgtest.Connect(t, f.source)
	for _, sql := range []string{`BEGIN`, `INSERT INTO other (v) VALUES (1)`, `PREPARE TRANSACTION 'old ` + databaseOf(t, f.super) + `'`} {
		if _, err := old.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	var largest int64
	for range 40 {
		f.exec(`SET statement_timeout = '5s'; INSERT INTO busy (v) SELECT i FROM generate_series(1, 3000) i; UPDATE other SET v = 2 WHERE v <> 2; INSERT INTO other (v) SELECT i FROM generate_series(1, 3000) i`)
		o, err := trigger.Observe(f.ctx(), f.pool)
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, o.Bytes)
	}
	s.caughtUp()
	busy := func() (n int64) {
		if err := f.pool.QueryRow(t.Context(), `SELECT sum(pg_table_size('replicator.capture_' || 'public.busy'::regclass::oid || x)) FROM unnest(ARRAY['_0', '_1']) x`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the busy table's log is small", func() bool { return busy() < 512<<10 })
	f.exec(`COMMIT PREPARED 'old ` + databaseOf(t, f.super) + `'`)
	eventually(t, "everything is small", func() bool {
		s.source.Nudge()
		f.exec(`INSERT INTO other (v) VALUES (3)`)
		o, err := trigger.Observe(f.ctx(), f.pool)
		return err == nil && o.Bytes < 1500<<10
	})
	s.caughtUp()
	f.equal()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("some 360 thousand changes; the log was %d kB at its largest", largest>>10)
}

// Under one long transaction a window costs what its own changes cost, not all that has been logged since.
func TestALongTransactionIsNotQuadratic(t *testing.T) {
	f := newFixture(t, `CREATE TABLE busy (id bigserial PRIMARY KEY, v int)`)
	f.begin()
	old := pgtest.Connect(t, f.source)
	for _, sql := range []string{`BEGIN`, `INSERT INTO busy (v) VALUES (1)`} {
		if _, err := old.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	s := f.start(nil)
	f.exec(`INSERT INTO busy (v) SELECT i FROM generate_series(1, 200000) i`)
	s.caughtUp()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	o, err := trigger.Observe(f.ctx(), f.pool)
	if err != nil || o.Oldest == nil || o.Oldest.Age <= 0 {
		t.Fatalf("%+v %v", o, err)
	}
	read := func() (n int64) {
		if err := f.pool.QueryRow(t.Context(), `SELECT sum(idx_tup_fetch + seq_tup_read) FROM pg_stat_all_tables WHERE schemaname = 'replicator' AND relname ~ '^capture_[0-9]+_[01]$'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := read()
	s = f.start(nil)
	for range 20 {
		f.exec(`INSERT INTO busy (v) VALUES (2)`)
		s.caughtUp()
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	var after int64
	eventually(t, "the statistics have arrived", func() bool { after = read(); return after-before >= 20 })
	if after-before > 2000 {
		t.Errorf("20 windows of a row each read %d rows of the log", after-before)
	}
	if _, err := old.Exec(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	s = f.start(nil)
	s.caughtUp()
	f.equal()
}

// What an open transaction has written isn't gone through by every look until it ends, be the source idle or busy beside it.
func TestALargeOpenTransactionIsLeftAlone(t *testing.T) {
	f := newFixture(t, `CREATE TABLE busy (id bigserial PRIMARY KEY, v int)`)
	f.begin()
	s := f.start(nil)
	s.caughtUp()
	large := pgtest.Connect(t, f.source)
	for _, sql := range []string{`BEGIN`, `INSERT INTO busy (v) SELECT i FROM generate_series(1, 50000) i`} {
		if _, err := large.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	// Every block of the log and its index that is looked at counts; the large transaction's are some 500.
	read := func() (n int64) {
		if err := f.pool.QueryRow(t.Context(), `SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit) FROM pg_statio_all_tables WHERE schemaname = 'replicator' AND relname ~ '^capture_[0-9]+_[01]$'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := read()
	seen := map[time.Time]bool{}
	eventually(t, "some looks at a source where others write", func() bool {
		f.exec(`SELECT pg_current_xact_id()`)
		var at time.Time
		if err := f.pool.QueryRow(t.Context(), `SELECT max(query_start) FROM pg_stat_activity WHERE datname = current_database() AND application_name ~ '/capture/e[0-9]+$'`).Scan(&at); err != nil {
			t.Fatal(err)
		}
		seen[at] = true
		return len(seen) > 15
	})
	for range 15 {
		f.exec(`INSERT INTO busy (v) VALUES (2)`)
		s.caughtUp()
	}
	if err := s.stop(); err != nil { // what a session has counted arrives for certain when it ends
		t.Fatal(err)
	}
	var after int64
	eventually(t, "the statistics have arrived", func() bool { after = read(); return after > before })
	t.Logf("%d blocks", after-before)
	if after-before > 2500 {
		t.Errorf("30 looks beside a large open transaction read %d blocks of the log", after-before)
	}
	if _, err := large.Exec(t.Context(), `COMMIT`); err != nil {
		t.Fatal(err)
	}
	s = f.start(nil)
	s.caughtUp()
	f.equal()
}

// A token that was written reaches the batch, with a time, and Reached orders positions.
func TestMarksCarryTokens(t *testing.T) {
	f := newFixture(t, kinds)
	f.begin()
	s := f.start(nil)
	began := time.Now().Add(-time.Minute)
	for _, token := range []string{"fence", "arm"} {
		if _, err := state.Beat(f.ctx(), f.pool, token); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the token arrives", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, m := range s.marks {
				if m.Token == token && m.Commit.After(began) {
					return true
				}
			}
			return false
		})
	}
	s.mu.Lock()
	first, last := s.marks[0].Position, s.at
	s.mu.Unlock()
	for _, c := range []struct {
		p, q replication.Position
		want bool
	}{{last, first, true}, {first, last, first == last}, {last, last, true}} {
		if got, err := s.source.Reached(c.p, c.q); err != nil || got != c.want {
			t.Errorf("Reached(%s, %s) = %v, %v", c.p, c.q, got, err)
		}
	}
	if _, err := s.source.Reached("0/16B3748", last); err == nil {
		t.Error("an LSN was taken for a position of trigger capture")
	}
}

// Whoever waits for a position gets it, though nothing but transactions of others have passed since.
func TestANudgeBringsThePosition(t *testing.T) {
	f := newFixture(t, few)
	f.begin()
	s := f.start(nil)
	s.caughtUp()
	f.exec(`CREATE TABLE replicator.unheard AS SELECT 1 AS one`)
	o, err := trigger.Observe(f.ctx(), f.pool)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the position is reached", func() bool {
		s.source.Nudge()
		s.mu.Lock()
		defer s.mu.Unlock()
		ok, err := s.source.Reached(s.at, o.Position)
		return err == nil && ok
	})
}
