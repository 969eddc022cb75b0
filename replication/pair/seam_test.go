package pair

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication"
	"replicator/replication/state"
)

// step is something that happens to a case's table, $t. Steps of one session go through it in order; the session "" is a new one each time.
// A step whose session ends in & may block: the next one of that session waits for it.
type step struct{ session, sql string }

// seamCase is what happens to one table around its copy.
type seamCase struct {
	table string
	// before it is captured; freed ends what keeps it from being; captured: while an older transaction still holds the copy up; ended lets that go.
	before, freed, captured, ended []step
	// between: no transaction from before is left, and the table's snapshot isn't taken yet. during: it is, and no row has been read.
	between, during []step
	// copied: all tables are, and the process that copied them dies before it streams. streaming: its successor has passed every seam.
	copied, streaming []step
}

const writes = `UPDATE $t SET v = 'x' WHERE id BETWEEN 1 AND 5; DELETE FROM $t WHERE id = 6; INSERT INTO $t VALUES (1001, 'x'), (1002, 'x'); UPDATE $t SET id = 1003 WHERE id = 7; DELETE FROM $t WHERE id = 1002`

// more touches the same rows again.
const more = `UPDATE $t SET v = v || '+'; UPDATE $t SET id = 2000 + id WHERE id IN (1, 20, 1001); INSERT INTO $t VALUES (6, 'again') ON CONFLICT DO NOTHING; DELETE FROM $t WHERE id IN (2, 21)`

func savepoints(first, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "SAVEPOINT s; INSERT INTO $t VALUES (%d, 'sub'); UPDATE $t SET v = 'sub' WHERE id = %d; %s s; ", first+i, 1+i%50, []string{"RELEASE", "ROLLBACK TO"}[i%2])
	}
	return b.String()
}

// seamCases are carried out at once, on tables of one source.
var seamCases = []seamCase{
	{table: "quiet", streaming: []step{{"", more}}},
	{table: "open_before", before: []step{{"a", "BEGIN; " + writes}}, freed: []step{{"a", "COMMIT"}}, between: []step{{"", more}}},
	{table: "id_before", before: []step{{"a", "BEGIN; SELECT pg_current_xact_id()"}}, captured: []step{{"a", writes}}, ended: []step{{"a", "COMMIT"}}, during: []step{{"", more}}},
	{table: "prepared_before", before: []step{{"", "BEGIN; " + writes + "; PREPARE TRANSACTION '$t'"}}, freed: []step{{"", "COMMIT PREPARED '$t'"}}, streaming: []step{{"", more}}},
	{table: "seen", between: []step{{"", writes}}, during: []step{{"", more}}},
	{table: "open_across", between: []step{{"a", "BEGIN; " + writes}}, copied: []step{{"a", more + "; COMMIT"}}},
	{table: "open_long", between: []step{{"a", "BEGIN; " + writes}}, during: []step{{"a", more}}, streaming: []step{{"a", "COMMIT"}}},
	{table: "open_void", between: []step{{"a", "BEGIN; " + writes}}, copied: []step{{"a", "ROLLBACK"}, {"", more}}},
	{table: "prepared_across", between: []step{{"", "BEGIN; " + writes + "; PREPARE TRANSACTION '$t'"}}, copied: []step{{"", "COMMIT PREPARED '$t'"}, {"", more}}},
	{table: "prepared_long", between: []step{{"", "BEGIN; " + writes + "; PREPARE TRANSACTION '$t'"}}, streaming: []step{{"", "COMMIT PREPARED '$t'"}, {"", more}}},
	{table: "prepared_void", during: []step{{"", "BEGIN; " + writes + "; PREPARE TRANSACTION '$t'"}}, streaming: []step{{"", "ROLLBACK PREPARED '$t'"}, {"", more}}},
	{table: "subtransactions", between: []step{{"a", "BEGIN; " + savepoints(100, 90)}}, during: []step{{"a", savepoints(300, 30)}}, copied: []step{{"a", "COMMIT"}, {"", more}}},
	{table: "truncated", between: []step{{"", "TRUNCATE $t; INSERT INTO $t VALUES (1, 'after')"}}, during: []step{{"", more}}},
	{table: "truncated_open", during: []step{{"a&", "BEGIN; TRUNCATE $t; " + writes}}, copied: []step{{"a&", "COMMIT"}, {"", more}}},
	{table: "truncated_during", during: []step{{"", writes}, {"a&", "TRUNCATE $t; INSERT INTO $t VALUES (1, 'after')"}}, copied: []step{{"a&", more}}},
	{table: "rewritten", between: []step{{"", writes}, {"", "ALTER TABLE $t ALTER v TYPE text USING upper(v)"}}, during: []step{{"", more}}},
	{table: "rewritten_during", during: []step{{"", writes}, {"a&", "ALTER TABLE $t ALTER v TYPE text USING v || ''"}}, copied: []step{{"a&", more}}},
	{table: "keys", between: []step{{"a", "BEGIN; UPDATE $t SET id = id + 1000 WHERE id <= 10"}, {"", "UPDATE $t SET id = id + 2000 WHERE id BETWEEN 11 AND 20"}},
		during: []step{{"a", "COMMIT; UPDATE $t SET id = id - 1000 WHERE id BETWEEN 1001 AND 1005"}, {"b", "BEGIN; UPDATE $t SET id = id - 2000 WHERE id > 2010"}},
		copied: []step{{"b", "COMMIT; UPDATE $t SET id = -id WHERE id IN (1, 2); UPDATE $t SET id = 3 + id WHERE id IN (-1, -2)"}}},
	// The commit is in the write-ahead log, and not visible, when the snapshot is taken.
	{table: "hanging", between: []step{{"a&", "SET synchronous_commit = on; " + strings.ReplaceAll("BEGIN; "+writes+"; COMMIT", "$t", "hanging")}}, copied: []step{{"free", "a&"}, {"", more}}},
	{table: "hanging_long", between: []step{{"a&", "SET synchronous_commit = on; " + strings.ReplaceAll("BEGIN; "+writes+"; COMMIT", "$t", "hanging_long")}}, streaming: []step{{"free", "a&"}, {"", more}}},
	{table: "again", streaming: []step{{"", writes}}},
}

// player carries out steps.
type player struct {
	*fixture
	table    string
	sessions map[string]*pgx.Conn
	blocked  map[string]chan error
}

func (p *player) play(steps []step) {
	p.t.Helper()
	for _, s := range steps {
		sql := strings.ReplaceAll(s.sql, "$t", p.table)
		switch s.session {
		case "":
			pgtest.Exec(p.t, p.source, sql)
			continue
		case "free":
			p.letCommit(p.sessions[s.sql])
			continue
		}
		conn := p.sessions[s.session]
		if conn == nil {
			conn = pgtest.Connect(p.t, p.source)
			p.sessions[s.session] = conn
		}
		if before := p.blocked[s.session]; before != nil {
			if err := <-before; err != nil {
				p.t.Fatalf("%s: %v", p.table, err)
			}
		}
		done := make(chan error, 1)
		go func() {
			_, err := conn.PgConn().Exec(context.Background(), sql).ReadAll()
			done <- err
		}()
		p.blocked[s.session] = done
		if strings.HasSuffix(s.session, "&") {
			p.until(p.table+": the step is done or waits", func() bool { return len(done) > 0 || p.waits(conn) })
			continue
		}
		delete(p.blocked, s.session)
		if err := <-done; err != nil {
			p.t.Fatalf("%s: %s: %v", p.table, sql, err)
		}
	}
}

// until waits for a condition.
func (p *player) until(what string, ok func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("not in time: %s", what)
		}
	}
}

// waits tells whether a session waits for a lock or for the standby.
func (p *player) waits(conn *pgx.Conn) bool {
	return ask[bool](p.fixture, p.super, `SELECT coalesce(wait_event_type = 'Lock' OR wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = $1`, conn.PgConn().PID())
}

// letCommit ends a commit's wait for the standby that doesn't exist; it has happened ("synchronous_commit").
func (p *player) letCommit(conn *pgx.Conn) {
	pgtest.Exec(p.t, p.super, fmt.Sprintf("SELECT pg_cancel_backend(%d)", conn.PgConn().PID()))
}

// standIn ends the waits of the pair's own commits for that standby, each once, until ctx ends.
func standIn(ctx context.Context, t *testing.T, super string) {
	conn, err := pgx.Connect(context.Background(), super)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close(context.Background())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	seen := map[string]bool{}
	for ctx.Err() == nil {
		rows, err := conn.Query(context.Background(), `SELECT pid, pid || ' ' || query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name LIKE 'replicator/%'`)
		var pid int
		var once string
		var pids []int
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&pid, &once}, func() error {
				if !seen[once] {
					pids = append(pids, pid)
				}
				seen[once] = true
				return nil
			})
		}
		if err == nil && len(pids) > 0 {
			_, err = conn.Exec(context.Background(), "SELECT pg_cancel_backend(p) FROM unnest($1::int[]) p", pids)
		}
		if err != nil {
			t.Errorf("stand in for the standby: %v", err)
			return
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// byHand opens a pair whose steps the test takes itself; die ends it as a crash would.
func (f *fixture) byHand(ctx context.Context) (p *Pair, die func()) {
	f.t.Helper()
	lead := f.lead(ctx)
	if err := f.pair.connect(ctx); err != nil {
		f.t.Fatal(err)
	}
	if err := f.pair.open(ctx); err != nil {
		f.t.Fatal(err)
	}
	p = f.pair
	die = sync.OnceFunc(func() { p.disconnect(); lead.Release(context.Background()) })
	f.t.Cleanup(die)
	return p, die
}

// Whatever happens to a table around its copy, the copy and the stream make its contents, though the process dies between them.
func TestSeamCases(t *testing.T) {
	for _, capture := range []string{Logical, Trigger} {
		t.Run(capture, func(t *testing.T) {
			t.Parallel()
			source := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"synchronous_standby_names": "nobody", "synchronous_commit": "local", "max_prepared_transactions": "30", "max_connections": "200"}})
			there := pgtest.Shared(t)
			f := &fixture{t: t, source: source.Database(t), target: there.Database(t), migration: newMigration(), capture: capture, workers: 1}
			f.super = f.source
			if capture == Trigger {
				f.source, f.target = source.HerokuOwner(t, f.source), there.RDSMaster(t, f.target)
			}
			seamCasesRun(t, f)
		})
	}
}

func seamCasesRun(t *testing.T, f *fixture) {
	// The copy takes the largest table first; at that one it is held until everything from before is over.
	pgtest.Exec(t, f.source, "CREATE TABLE first (id int PRIMARY KEY, v text); INSERT INTO first SELECT i, repeat('x', 500) FROM generate_series(1, 2000) i")
	players := map[string]*player{}
	for _, c := range seamCases {
		pgtest.Exec(t, f.source, fmt.Sprintf("CREATE TABLE %s (id int PRIMARY KEY, v text); INSERT INTO %[1]s SELECT i, 'v' FROM generate_series(1, 60) i", c.table))
		players[c.table] = &player{fixture: f, table: c.table, sessions: map[string]*pgx.Conn{}, blocked: map[string]chan error{}}
	}
	all := func(steps func(seamCase) []step) {
		t.Helper()
		for _, c := range seamCases {
			players[c.table].play(steps(c))
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var standby sync.WaitGroup
	standby.Go(func() { standIn(ctx, t, f.super) })
	t.Cleanup(func() { cancel(); standby.Wait() })

	all(func(c seamCase) []step { return c.before })
	p, die := f.byHand(ctx)
	stored, err := p.stored.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	do := func(next state.Step, step func(context.Context, *state.Pair) error) error {
		if err := step(ctx, &stored); err != nil {
			return err
		}
		stored.Step = next
		return p.stored.Save(ctx, stored)
	}
	if err := do(state.StepDumped, p.dump); err != nil {
		t.Fatal(err)
	}
	if err := do(state.StepTables, p.makeTables); err != nil {
		t.Fatal(err)
	}
	copied := make(chan error, 1)
	go func() {
		err := do(state.StepCapture, p.startCapture)
		if err == nil {
			err = p.copyAndIndex(ctx, &stored)
		}
		copied <- err
	}()
	anyone, tables := players["quiet"], append([]string{"first"}, caseTables()...)
	waiting := func(what string) {
		t.Helper()
		select {
		case err := <-copied:
			t.Fatalf("%s: nobody waits: %v", what, err)
		case <-time.After(500 * time.Millisecond):
		}
		if held := f.held(); held != "" {
			t.Fatalf("%s: the copy of %s has begun", what, held)
		}
	}
	anyone.until("the target's gates stand", func() bool {
		return ask[int](f, f.target, `SELECT count(*) FROM pg_trigger WHERE tgname = 'replicator_gate'`) == len(tables)
	})
	turnstiles := map[string]*pgx.Conn{}
	for _, table := range tables {
		turnstiles[table] = pgtest.Connect(t, f.target)
		if _, err := turnstiles[table].Exec(ctx, "BEGIN; LOCK TABLE "+table+" IN SHARE MODE"); err != nil {
			t.Fatal(err)
		}
	}
	waiting("transactions that have written to tables are open")
	all(func(c seamCase) []step { return c.freed })
	anyone.until("the tables are captured", func() bool { return f.captured("id_before") })
	all(func(c seamCase) []step { return c.captured })
	waiting("a transaction from before the capture is open")
	all(func(c seamCase) []step { return c.ended })

	for range turnstiles {
		held := ""
		anyone.until("the copy stands at a table", func() bool {
			if len(copied) > 0 {
				t.Fatalf("the copy ended: %v", <-copied)
			}
			held = f.held()
			return held != ""
		})
		if held == "first" {
			all(func(c seamCase) []step { return c.between })
		}
		for _, c := range seamCases {
			if c.table == held {
				players[held].play(c.during)
			}
		}
		if _, err := turnstiles[held].Exec(ctx, "COMMIT"); err != nil {
			t.Fatal(err)
		}
		anyone.until("the copy goes on", func() bool { return f.held() != held })
	}
	if err := <-copied; err != nil {
		t.Fatal(err)
	}
	all(func(c seamCase) []step { return c.copied })
	die()
	f.start(false)
	f.streaming()
	all(func(c seamCase) []step { return c.streaming })
	f.caughtUp()
	f.equal()
	f.resyncAcross(players["again"])
	f.joinAcross(anyone)
}

func caseTables() (out []string) {
	for _, c := range seamCases {
		out = append(out, c.table)
	}
	return out
}

// held names the table at which the copy waits for the target's lock, empty if it doesn't.
func (f *fixture) held() string {
	f.t.Helper()
	return ask[string](f, f.target, `SELECT coalesce(max(c.relname), '') FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
		WHERE NOT l.granted AND l.mode = 'AccessExclusiveLock' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
}

// captured tells whether what is written to a table is captured.
func (f *fixture) captured(table string) bool {
	f.t.Helper()
	return ask[bool](f, f.super, `SELECT EXISTS (SELECT FROM pg_publication_rel WHERE prrelid = $1::text::regclass) OR
		EXISTS (SELECT FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgname LIKE 'replicator_capture%')`, table)
}

// resyncAcross copies a table again while one transaction that has written to it is open and others move its keys.
func (f *fixture) resyncAcross(p *player) {
	f.t.Helper()
	p.play([]step{{"a", "BEGIN; UPDATE $t SET v = 'resync' WHERE id < 10"}, {"b&", "SET synchronous_commit = on; INSERT INTO $t VALUES (7000, 'hanging')"}})
	if err := f.pair.Resync(f.ctx(), []replication.TableName{{Schema: "public", Name: "again"}}); err != nil {
		f.t.Fatal(err)
	}
	f.until("the copy waits for the open transaction", 20*time.Second, func(s Status) bool { return strings.Contains(s.Waiting, "began before the capture") })
	p.play([]step{{"", "UPDATE $t SET id = id + 5000 WHERE id BETWEEN 30 AND 35; DELETE FROM $t WHERE id = 36"}, {"a", "UPDATE $t SET id = 6000 WHERE id = 9; COMMIT"}})
	if f.pair.Status().Phase == Streaming {
		f.t.Error("the copy didn't wait for the commit that isn't visible yet")
	}
	p.play([]step{{"free", "b&"}})
	f.until("the resync", 30*time.Second, func(s Status) bool { return s.Phase == Streaming && s.TablesCopied == s.TablesTotal })
	p.play([]step{{"", more}})
	f.caughtUp()
	f.equal()
}

// joinAcross makes a table on both sides that joins the stream, while a transaction that began before writes to it once it is captured.
func (f *fixture) joinAcross(p *player) {
	f.t.Helper()
	p.table = "late"
	pgtest.Exec(f.t, f.target, "CREATE TABLE late (id int PRIMARY KEY, v text)")
	p.play([]step{{"", "CREATE TABLE $t (id int PRIMARY KEY, v text); INSERT INTO $t SELECT i, 'v' FROM generate_series(1, 60) i"}, {"a", "BEGIN; SELECT pg_current_xact_id()"}})
	total := f.pair.Status().TablesTotal
	p.until("the late table is captured", func() bool {
		return f.captured("late")
	})
	p.play([]step{{"a", writes}})
	f.until("the copy waits for the open transaction", 20*time.Second, func(s Status) bool { return strings.Contains(s.Waiting, "began before the capture") })
	p.play([]step{{"", "UPDATE $t SET id = id + 5000 WHERE id BETWEEN 30 AND 35"}, {"a", "COMMIT"}})
	f.until("the late table", 30*time.Second, func(s Status) bool {
		return s.Phase == Streaming && s.TablesTotal == total+1 && s.TablesCopied == s.TablesTotal
	})
	p.play([]step{{"", more}})
	f.caughtUp()
	f.equal()
}
