package snapshot

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
)

// A transaction that was open before holds the copy up and is named, a prepared one too; one that comes later doesn't.
func TestHorizonNamesItsHolders(t *testing.T) {
	w := newWorld(t, []string{"a"}, nil)
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
	w := newWorld(t, []string{"a"}, nil)
	target := pgtest.Shared(t).Database(t)
	pgtest.Exec(t, target, "CREATE TABLE a (id int CHECK (id < 40), n bigint, v text); INSERT INTO a VALUES (-1, 0, 'before')")
	finished := 0
	o := Options{SourceURL: w.source, TargetURL: target, ID: w.id, Workers: 1,
		Started:  func(context.Context, replication.Table, replication.Seam) error { return nil },
		Finished: func(*pgx.Batch, replication.Table, int64, int64, string) { finished++ },
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
	if got := rowsOf(t, pool, "a"); len(got) != 1 || got["-1"] != "(-1,0,before)" {
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

// A table that foreign keys point to can't be truncated; it is emptied all the same, and copied again.
func TestReferencedTableIsCopiedAgain(t *testing.T) {
	w := newWorld(t, []string{"a"}, nil)
	target := w.target([]string{"a"})
	pgtest.Exec(t, target, "CREATE TABLE child (id int PRIMARY KEY, a_id int REFERENCES a); INSERT INTO a VALUES (-1, 0, 'before'), (1, 0, 'stale'); INSERT INTO child VALUES (1, 1)")
	_, rows := w.copy(target, []string{"a"})
	if len(rows["a"]) != 40 || rows["a"]["-1"] != "" || rows["a"]["1"] == "(1,0,stale)" {
		t.Errorf("%d rows: %v", len(rows["a"]), rows["a"])
	}
}

// Where what notes the end of a copy is refused, as it is in a process that doesn't lead any more, nothing of the copy stays, whole or in parts.
func TestRefusedCopyLeavesNothing(t *testing.T) {
	w := newWorld(t, []string{"a"}, nil)
	refused := errors.New("refused")
	for name, o := range map[string]Options{
		"whole":    {Finished: func(b *pgx.Batch, _ replication.Table, _, _ int64, _ string) { b.Queue("SELECT 1 / 0") }},
		"in parts": {Finished: func(*pgx.Batch, replication.Table, int64, int64, string) {}, Fence: func(b *pgx.Batch) { b.Queue("SELECT 1 / 0") }, PartBytes: 8192},
	} {
		target := w.target([]string{"a"})
		pgtest.Exec(t, target, "INSERT INTO a VALUES (-1, 0, 'before')")
		o.SourceURL, o.TargetURL, o.ID, o.Workers = w.source, target, w.id, 1
		o.Started = func(context.Context, replication.Table, replication.Seam) error { return nil }
		o.Progress = func(replication.Table, int64, int64) {}
		o.Refused = func(err error) error { return errors.Join(refused, err) }
		table := w.table("a")
		table.Bytes, table.Pages = 4*8192, 4 // as a table that has shrunk since it was measured
		if err := Copy(w.ctx(), o, []replication.Table{table}); !errors.Is(err, refused) || postgres.Code(err) != postgres.CodeDivisionByZero {
			t.Errorf("%s: %v", name, err)
		}
		pool, err := pgxpool.New(w.ctx(), target)
		if err != nil {
			t.Fatal(err)
		}
		if got := rowsOf(t, pool, "a"); len(got) != 1 || got["-1"] != "(-1,0,before)" {
			t.Errorf("%s: left %v", name, got)
		}
		pool.Close()
	}
}
