package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

func contextOf(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func identity(epoch int64) postgres.Identity {
	return postgres.Identity{Migration: "m", Pair: "p", Epoch: epoch}
}

func pool(t *testing.T, url string, epoch int64, size int32) *pgxpool.Pool {
	t.Helper()
	p, err := postgres.Pool(contextOf(t), url, identity(epoch), "test", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// prepared returns an empty database with our schema in it.
func prepared(t *testing.T) (string, *pgxpool.Pool) {
	t.Helper()
	url := pgtest.Shared(t).Database(t)
	p := pool(t, url, 1, 10)
	if err := Ensure(contextOf(t), p); err != nil {
		t.Fatal(err)
	}
	return url, p
}

// Eight processes that begin at once all find the schema made once and whole, and a later one leaves it as it is.
func TestEnsureByManyAtOnce(t *testing.T) {
	url := pgtest.Shared(t).Database(t)
	for range 2 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := Ensure(contextOf(t), pool(t, url, 1, 1)); err != nil {
					t.Errorf("ensure: %v", err)
				}
			})
		}
		wg.Wait()
		var version, rows int
		if err := pgtest.Connect(t, url).QueryRow(contextOf(t), "SELECT max(version), count(*) FROM replicator.version").Scan(&version, &rows); err != nil || version != len(upgrades) || rows != 1 {
			t.Fatalf("version %d in %d rows (%v)", version, rows, err)
		}
	}
}

// A schema of a newer program is refused and left alone; one of each older version is brought up to date.
func TestVersions(t *testing.T) {
	url, p := prepared(t)
	whole := pgtest.DumpSchema(t, url)
	pgtest.Exec(t, url, fmt.Sprintf("UPDATE replicator.version SET version = %d", len(upgrades)+1))
	var h *preflight.Hinted
	if err := Ensure(contextOf(t), p); !errors.As(err, &h) || h.Code != "state-newer" || h.Hint == "" {
		t.Errorf("a newer schema: %v", err)
	}
	for version := range len(upgrades) {
		url := pgtest.Shared(t).Database(t)
		pgtest.Exec(t, url, "CREATE SCHEMA replicator; CREATE TABLE replicator.version (version integer NOT NULL)", fmt.Sprintf("INSERT INTO replicator.version VALUES (%d)", version))
		for _, sql := range upgrades[:version] {
			pgtest.Exec(t, url, sql)
		}
		if err := Ensure(contextOf(t), pool(t, url, 1, 1)); err != nil {
			t.Fatalf("from version %d: %v", version, err)
		}
		if got := pgtest.DumpSchema(t, url); got != whole {
			t.Errorf("from version %d the schema became\n%s", version, got)
		}
	}
}

// One leads at a time; whoever comes next has a higher epoch, whether its predecessor let go or died.
func TestLeadIsExclusiveAndGrows(t *testing.T) {
	url, p := prepared(t)
	var mu sync.Mutex
	leading, epochs := 0, []int64{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			lead, err := TakeLead(contextOf(t), url, "m", nil)
			if err != nil {
				t.Errorf("take the lead: %v", err)
				return
			}
			mu.Lock()
			if leading++; leading > 1 {
				t.Error("two lead at once")
			}
			epochs = append(epochs, lead.Epoch)
			if i%2 == 0 {
				leading--
				mu.Unlock()
				lead.Release(context.Background())
				return
			}
			leading--
			mu.Unlock()
			var pid int32
			if err := lead.conn.QueryRow(contextOf(t), "SELECT pg_backend_pid()").Scan(&pid); err != nil {
				t.Error(err)
			}
			watched := make(chan error, 1)
			go func() { watched <- lead.Watch(contextOf(t)) }()
			if _, err := p.Exec(contextOf(t), "SELECT pg_terminate_backend($1)", pid); err != nil {
				t.Error(err)
			}
			if err := <-watched; err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the lost lead went unnoticed: %v", err)
			}
		})
	}
	wg.Wait()
	for i, e := range epochs {
		if i > 0 && e <= epochs[i-1] {
			t.Errorf("epochs %v", epochs)
		}
	}
}

// An epoch survives the crash that follows it, though the database's sessions commit without waiting by default.
func TestEpochSurvivesACrash(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s", "synchronous_commit": "off"}})
	url := s.Database(t)
	for want := int64(1); want <= 3; want++ {
		p := pool(t, url, want, 2)
		if err := Ensure(contextOf(t), p); err != nil {
			t.Fatal(err)
		}
		lead, err := TakeLead(contextOf(t), url, "m", nil)
		if err != nil {
			t.Fatal(err)
		}
		if lead.Epoch != want {
			t.Fatalf("epoch %d, want %d", lead.Epoch, want)
		}
		if err := StartPosition(contextOf(t), p, identity(want), replication.Forward, replication.Position(fmt.Sprintf("0/%d", want))); err != nil {
			t.Fatal(err)
		}
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(contextOf(t)); err != nil {
			t.Fatal(err)
		}
		lead.Release(context.Background())
		if got, ok, err := Position(contextOf(t), pool(t, url, want, 2), identity(want), replication.Forward); err != nil || !ok || got != replication.Position(fmt.Sprintf("0/%d", want)) {
			t.Fatalf("the start position became %q %v (%v)", got, ok, err)
		}
	}
}

// Claiming takes positions over from lower epochs only, and whoever has been overtaken writes nothing any more.
func TestClaimAndFence(t *testing.T) {
	_, p := prepared(t)
	ctx := contextOf(t)
	if err := Claim(ctx, p, identity(5)); err != nil {
		t.Fatal(err)
	}
	pairs := NewPairs(p, identity(5))
	if _, err := pairs.Load(ctx); err != nil {
		t.Fatal(err)
	}
	if err := StartPosition(ctx, p, identity(5), replication.Forward, "0/1"); err != nil {
		t.Fatal(err)
	}
	if err := Claim(ctx, p, identity(6)); err != nil {
		t.Fatal(err)
	}
	for name, do := range map[string]func() error{
		"claim":    func() error { return Claim(ctx, p, identity(5)) },
		"position": func() error { return StartPosition(ctx, p, identity(5), replication.Forward, "0/2") },
		"save":     func() error { return pairs.Save(ctx, Pair{Step: StepTables}) },
		"copies":   func() error { return pairs.AddCopies(ctx, []replication.TableName{{Schema: "public", Name: "t"}}) },
		"journal":  func() error { return NewJournal(p, identity(5)).Save(ctx, []byte(`{"revision": 1}`)) },
		"finish": func() error {
			var b pgx.Batch
			pairs.FinishCopy(&b, Copy{})
			return Fenced(p.SendBatch(ctx, &b).Close())
		},
	} {
		if err := do(); !errors.Is(err, replication.ErrDeposed) {
			t.Errorf("%s by the older epoch: %v", name, err)
		}
	}
	if got, _, err := Position(ctx, p, identity(6), replication.Forward); err != nil || got != "0/1" {
		t.Errorf("position %s (%v)", got, err)
	}
	if err := NewJournal(p, identity(6)).Save(ctx, []byte(`{"revision": 1}`)); err != nil {
		t.Error(err)
	}
}

// A leader that is overtaken while it writes either has written before its successor claims, or doesn't write at all.
func TestClaimWaitsForAWriteUnderWay(t *testing.T) {
	_, p := prepared(t)
	ctx := contextOf(t)
	if err := Claim(ctx, p, identity(5)); err != nil {
		t.Fatal(err)
	}
	tx, err := p.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := Fence(ctx, tx, identity(5)); err != nil {
		t.Fatal(err)
	}
	claimed := make(chan error, 1)
	go func() { claimed <- Claim(ctx, p, identity(6)) }()
	for waiting := 0; waiting == 0; {
		if err := p.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-claimed:
			t.Fatalf("the claim didn't wait (%v)", err)
		default:
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-claimed; err != nil {
		t.Error(err)
	}
}

// Records are saved in any order by many sessions at once, as late saves of dying sessions are: what is loaded never goes back.
func TestJournalNeverGoesBack(t *testing.T) {
	_, p := prepared(t)
	ctx := contextOf(t)
	if err := Claim(ctx, p, identity(1)); err != nil {
		t.Fatal(err)
	}
	j := NewJournal(p, identity(1))
	if r, err := j.Load(ctx); r != nil || err != nil {
		t.Fatalf("an empty journal gives %s (%v)", r, err)
	}
	revision := func() (n int) {
		r, err := j.Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var doc struct{ Revision int }
		if err := json.Unmarshal(r, &doc); err != nil {
			t.Fatal(err)
		}
		return doc.Revision
	}
	highest := 0
	for round := range 60 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		saved := map[int]int{}
		for i := range 6 {
			n := round*2 + 1 + i/2 // every revision by two sessions
			wg.Go(func() {
				if j.Save(ctx, fmt.Appendf(nil, `{"revision": %d}`, n)) == nil {
					mu.Lock()
					saved[n]++
					highest = max(highest, n)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		for n, times := range saved {
			if times > 1 {
				t.Fatalf("revision %d was saved %d times", n, times)
			}
		}
		if got := revision(); got != highest {
			t.Fatalf("revision %d is loaded, %d was saved", got, highest)
		}
	}
}

// Whatever had committed when a beat was called lies below what it returns, commits that didn't wait for the flush too; standbys that
// are away don't hold it up.
func TestBeatCoversEarlierCommits(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s", "synchronous_standby_names": "nobody", "synchronous_commit": "local"}})
	url := s.Database(t)
	p := pool(t, url, 1, 4)
	ctx := contextOf(t)
	if err := Ensure(ctx, p); err != nil {
		t.Fatal(err)
	}
	conn := pgtest.Connect(t, url)
	if _, err := conn.Exec(ctx, "SET synchronous_commit = off; CREATE TABLE t (id int)"); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := conn.Exec(ctx, "INSERT INTO t VALUES (1)"); err != nil {
			t.Fatal(err)
		}
		var inserted uint64
		if err := conn.QueryRow(ctx, "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").Scan(&inserted); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if flushed, err := Flushed(ctx, conn); err != nil || flushed >= inserted {
				t.Fatalf("the commit was waited for: this tests nothing (%v)", err)
			}
		}
		lsn, err := Beat(ctx, p, "test")
		if err != nil {
			t.Fatal(err)
		}
		if lsn < inserted {
			t.Fatalf("beat %d at %x, the commit before it ends at %x", i, lsn, inserted)
		}
	}
}

// Sessions of earlier epochs are ended, those of this one and of other migrations are not, nor is the lead's.
func TestTerminateEndsPredecessors(t *testing.T) {
	url, _ := prepared(t)
	ctx := contextOf(t)
	open := func(id postgres.Identity) *pgx.Conn {
		c, err := postgres.Connect(ctx, url, id, "apply")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(context.Background()) })
		return c
	}
	old, mine, lead := open(identity(4)), open(identity(5)), open(identity(0))
	other := open(postgres.Identity{Migration: "m2", Pair: "p", Epoch: 4})
	if err := Terminate(ctx, pool(t, url, 5, 1), identity(5)); err != nil {
		t.Fatal(err)
	}
	if old.Ping(ctx) == nil {
		t.Error("the predecessor's session lives")
	}
	for name, c := range map[string]*pgx.Conn{"this epoch's": mine, "the lead's": lead, "another migration's": other} {
		if err := c.Ping(ctx); err != nil {
			t.Errorf("%s session was ended: %v", name, err)
		}
	}
}
