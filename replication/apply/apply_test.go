package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
	"replicator/replication"
)

const small = `CREATE TABLE t (id int PRIMARY KEY, v text, secret text);`

func code(err error) string {
	var h *preflight.Hinted
	if errors.As(err, &h) && h.Hint != "" {
		return h.Code
	}
	return ""
}

// A change that finds no row, finds one that is there already, or is refused stops with the row named and nothing applied, alone or among
// others; the error shows no value but the key's.
func TestRefusedChangeNamesItsRow(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", small+`
		CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE e (id int PRIMARY KEY, m mood, n int CHECK (n > 0));
		INSERT INTO t VALUES (1, 'here', 'x'), (2, 'here', 'x')`, "0/1")
	r, e := d.relation("t", 'd', "id"), d.relation("e", 'd', "id")
	good := insert(r, 100, "good", "s3cret")
	for name, c := range map[string]struct {
		change    replication.Change
		code, row string
	}{
		"update of nothing": {update(r, 50, "v", "s3cret"), "row-mismatch", "public.t where id = '50'"},
		"delete of nothing": {remove(r, 51, nil, nil), "row-mismatch", "public.t where id = '51'"},
		"insert again":      {insert(r, 1, "v", "s3cret"), "constraint", "public.t where id = '1'"},
		"check":             {insert(e, 1, "ok", -1), "constraint", "public.e where id = '1'"},
		"enum label":        {insert(e, 2, "s3cret", 1), "schema-drift", "public.e where id = '2'"},
		"number":            {insert(e, 3, "ok", "s3cret"), "schema-drift", "public.e where id = '3'"},
	} {
		for _, changes := range [][]replication.Change{{c.change}, {good, c.change}, {c.change, good}} {
			a := d.open()
			_, err := a.Apply(d.ctx(), batch("0/2", changes...))
			if code(err) != c.code || !strings.Contains(err.Error(), c.row) {
				t.Errorf("%s among %d: %q: %v", name, len(changes), code(err), err)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%s: the error shows a value: %v", name, err)
			}
			a.Close(d.ctx())
			if got := d.rows("SELECT v FROM t UNION ALL SELECT id::text FROM e UNION ALL SELECT position FROM replicator.position"); !slices.Equal(got, []string{"0/1", "here", "here"}) {
				t.Fatalf("%s left %v", name, got)
			}
		}
	}
}

// The process with the older epoch commits nothing, whatever it has begun; nor does anybody who begins where the position isn't.
func TestFence(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", small, "0/1")
	r := d.relation("t", 'd', "id")
	old, stale := d.open(), d.open()
	first := batch("0/2", insert(r, 1, "old", nil), insert(r, 2, "old", nil))
	first.Last, first.Marks, first.Position = false, nil, ""
	if _, err := old.Apply(d.ctx(), first); err != nil {
		t.Fatal(err)
	}
	if _, err := stale.Apply(d.ctx(), batch("0/2", insert(r, 3, "same epoch", nil))); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, d.url, "UPDATE replicator.position SET epoch = 8")
	if _, err := old.Apply(d.ctx(), func() *replication.Batch { b := batch("0/2", insert(r, 4, "old", nil)); b.First = false; return b }()); !errors.Is(err, replication.ErrDeposed) {
		t.Errorf("the older epoch: %v", err)
	}
	old.Close(d.ctx())
	if _, err := stale.Apply(d.ctx(), batch("0/3", insert(r, 5, "old", nil), insert(r, 6, "old", nil))); !errors.Is(err, replication.ErrDeposed) {
		t.Errorf("the older epoch, a whole batch: %v", err)
	}
	stale.Close(d.ctx())
	if _, err := Open(d.ctx(), d.o); !errors.Is(err, replication.ErrDeposed) {
		t.Errorf("the older epoch, a new session: %v", err)
	}
	pgtest.Exec(t, d.url, "UPDATE replicator.position SET epoch = 7")
	one, two := d.open(), d.open()
	b := func() *replication.Batch { return batch("0/9", insert(r, 7, "once", nil), insert(r, 8, "once", nil)) }
	if _, err := one.Apply(d.ctx(), b()); !errors.Is(err, replication.ErrDeposed) {
		t.Errorf("an earlier session: %v", err)
	}
	if _, err := two.Apply(d.ctx(), b()); err != nil {
		t.Fatal(err)
	}
	for i, a := range []*Applier{two, one} {
		if _, err := a.Apply(d.ctx(), b()); err == nil {
			t.Errorf("batch applied again (%d)", i)
		}
	}
	if got := d.rows("SELECT v FROM t"); !slices.Equal(got, []string{"once", "once", "same epoch"}) {
		t.Errorf("the table holds %v", got)
	}
}

// A session that dies between the pieces of a transaction leaves nothing of it.
func TestDeathBetweenPieces(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", small, "0/1")
	r := d.relation("t", 'd', "id")
	a := d.open()
	for i := range 3 {
		b := batch("", insert(r, 10*i, "piece", nil), insert(r, 10*i+1, "piece", nil))
		b.First, b.Last, b.Marks = i == 0, false, nil
		if _, err := a.Apply(d.ctx(), b); err != nil {
			t.Fatal(err)
		}
	}
	a.Close(d.ctx())
	if got := d.rows("SELECT v FROM t UNION ALL SELECT position FROM replicator.position"); !slices.Equal(got, []string{"0/1"}) {
		t.Errorf("left behind: %v", got)
	}
	if p := d.open().Position(); p != "0/1" {
		t.Errorf("the next session begins at %s", p)
	}
}

// A piece whose set form is refused is replayed in order without what came before it being lost.
func TestRefusedPieceIsReplayed(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", "CREATE TABLE u (id int PRIMARY KEY, u int UNIQUE); INSERT INTO u VALUES (1, 1), (2, 2)", "0/1")
	r := d.relation("u", 'd', "id")
	a := d.open()
	for i := range 3 {
		// The value 2 passes from row 2 to row 1 and back: as a set this violates the constraint.
		b := batch("0/2", update(r, 2, 99), update(r, 1, 2), update(r, 1, 1), update(r, 2, 1000+i), update(r, 1, 2), insert(r, 10+i, 10+i))
		if i < 2 {
			b.Changes = append(b.Changes, update(r, 1, 1), update(r, 2, 2))
			b.Last, b.Marks, b.Position = false, nil, ""
		}
		b.First = i == 0
		if i == 2 {
			b.Marks[0].End = len(b.Changes)
		}
		if _, err := a.Apply(d.ctx(), b); err != nil {
			t.Fatal(err)
		}
	}
	if got := d.rows("SELECT id || ' ' || u FROM u"); !slices.Equal(got, []string{"1 2", "10 10", "11 11", "12 12", "2 1002"}) {
		t.Errorf("the table holds %v", got)
	}
}

// What a new session starts from is flushed, though the commit that moved it wasn't waited for.
func TestStartPositionIsDurable(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s", "fsync": "on"}})
	d := newDestination(t, s.Database(t), "", small, "0/1")
	r := d.relation("t", 'd', "id")
	a := d.open()
	lsn, err := a.Apply(d.ctx(), batch("0/2", insert(r, 1, "v", nil)))
	if err != nil {
		t.Fatal(err)
	}
	flushed := func() (ok bool) {
		if err := d.pool.QueryRow(d.ctx(), "SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn >= $1::numeric", fmt.Sprint(lsn)).Scan(&ok); err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if flushed() {
		t.Fatal("the commit was waited for: this tests nothing")
	}
	if p := d.open().Position(); p != "0/2" || !flushed() {
		t.Fatalf("the next session begins at %s, flushed: %v", p, flushed())
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(d.ctx()); err != nil {
		t.Fatal(err)
	}
	if p := d.open().Position(); p != "0/2" {
		t.Errorf("after the crash the position is %s", p)
	}
}

func TestEndOfRecord(t *testing.T) {
	const segment = 16 << 20
	for lsn, want := range map[uint64]uint64{
		3*segment + 40:        3 * segment,           // behind the long header of a segment's first page
		3*segment + 24:        3*segment + 24,        // within that header: never an insert position
		3*segment + 8192 + 24: 3*segment + 8192,      // behind a short header
		3*segment + 8192 + 40: 3*segment + 8192 + 40, // 16 bytes of a record that began in the page before
		3*segment + 8192 + 32: 3*segment + 8192 + 32,
		3*segment + 8192:      3*segment + 8192,
		3*segment + 500:       3*segment + 500,
	} {
		if got := endOfRecord(lsn, segment); got != want {
			t.Errorf("%x: %x, want %x", lsn, got, want)
		}
	}
}

// More kinds of statements than the session keeps prepared.
func TestManyTables(t *testing.T) {
	const n = 2600
	d := newDestination(t, pgtest.Shared(t).Database(t), "", fmt.Sprintf("DO $$ BEGIN FOR i IN 1..%d LOOP EXECUTE 'CREATE TABLE t' || i || ' (id int PRIMARY KEY, v text)'; END LOOP; END $$", n), "0/1")
	var all []*replication.Relation
	columns := d.relation("t1", 'd', "id").Columns
	for i := range n {
		all = append(all, &replication.Relation{Name: replication.TableName{Schema: "public", Name: fmt.Sprintf("t%d", i+1)}, ReplicaIdentity: 'd', Columns: columns})
	}
	a := d.open()
	for i, change := range []func(*replication.Relation) replication.Change{
		func(r *replication.Relation) replication.Change { return insert(r, 1, "a") },
		func(r *replication.Relation) replication.Change { return update(r, 1, "b") },
		func(r *replication.Relation) replication.Change { return remove(r, 1, nil) },
	} {
		var changes []replication.Change
		for _, r := range all {
			changes = append(changes, change(r))
		}
		if _, err := a.Apply(d.ctx(), batch(replication.Position(fmt.Sprintf("0/%d", i+2)), changes...)); err != nil {
			t.Fatalf("batch %d: %v", i, err)
		}
	}
	if len(a.prepared) > 2*maxPrepared {
		t.Errorf("%d statements are prepared", len(a.prepared))
	}
}

// A TRUNCATE empties what it names, though others that it doesn't name refer to it, and touches those not.
func TestTruncateOfReferencedTables(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a ON DELETE CASCADE);
		CREATE TABLE c (id int); INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); INSERT INTO c VALUES (1)`, "0/1")
	ra, rc := d.relation("a", 'd', "id"), d.relation("c", 'f')
	a := d.open()
	if _, err := a.Apply(d.ctx(), batch("0/2", replication.Change{Op: replication.Truncate, Relation: ra, Truncated: []*replication.Relation{ra, rc}, RestartIdentity: true}, insert(ra, 5), insert(rc, 5))); err != nil {
		t.Fatal(err)
	}
	if got := d.rows("SELECT 'a' || id FROM a UNION ALL SELECT 'b' || id FROM b UNION ALL SELECT 'c' || id FROM c"); !slices.Equal(got, []string{"a5", "b1", "c5"}) {
		t.Errorf("the tables hold %v", got)
	}
}

// What precedes a table's drift in the stream is applied, so that the pair stands exactly before it.
func TestDriftStopsBeforeItsTransaction(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", small, "0/1")
	r := d.relation("t", 'd', "id")
	drifted := &replication.Relation{Name: r.Name, ReplicaIdentity: 'd', Columns: append(slices.Clone(r.Columns), replication.RelationColumn{Name: "added", TypeOID: 23, TypeMod: -1})}
	b := batch("0/4", insert(r, 1, "v", nil), insert(r, 2, "v", nil), insert(r, 3, "v", nil), insert(drifted, 4, "v", nil, 7))
	b.Marks = []replication.Mark{{End: 1, Position: "0/2"}, {End: 2, Position: "0/3"}, {End: 4, Position: "0/4"}}
	a := d.open()
	_, err := a.Apply(d.ctx(), b)
	if code(err) != "schema-drift" || !strings.Contains(err.Error(), "added") {
		t.Fatalf("%q: %v", code(err), err)
	}
	a.Close(d.ctx())
	if got := d.rows("SELECT id::text FROM t UNION ALL SELECT position FROM replicator.position"); !slices.Equal(got, []string{"0/3", "1", "2"}) {
		t.Errorf("applied: %v", got)
	}
	pgtest.Exec(t, d.url, "ALTER TABLE t ADD COLUMN added int")
	if _, err := d.open().Apply(d.ctx(), func() *replication.Batch {
		_, tail := b.Cut(func(m replication.Mark) bool { return m.Position == "0/4" })
		tail.Changes[0].Relation, tail.Changes[0].New = drifted, append(tail.Changes[0].New, replication.Value{Kind: replication.Null})
		return tail
	}()); err != nil {
		t.Errorf("after the statement was run: %v", err)
	}
}

// A session whose context ends in the middle of a batch commits nothing once another one has begun, though the server has received the whole.
func TestCancelledBatchCommitsNothing(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", small, "0/1")
	r := d.relation("t", 'd', "id")
	blocker := pgtest.Connect(t, d.url)
	if _, err := blocker.Exec(d.ctx(), "BEGIN; INSERT INTO t VALUES (2, 'mine', NULL)", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := d.open()
	done := make(chan error, 1)
	go func() {
		_, err := a.Apply(ctx, batch("0/2", insert(r, 1, "v", nil), insert(r, 2, "v", nil)))
		done <- err
	}()
	for len(d.rows("SELECT pid::text FROM pg_locks WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())")) == 0 {
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("a cancelled batch was applied")
	}
	if p := d.open().Position(); p != "0/1" {
		t.Errorf("the next session begins at %s", p)
	}
	if _, err := blocker.Exec(d.ctx(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	for len(d.rows("SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()")) > 0 {
	}
	a.Close(context.Background())
	if got := d.rows("SELECT v FROM t UNION ALL SELECT position FROM replicator.position"); !slices.Equal(got, []string{"0/1"}) {
		t.Errorf("left behind: %v", got)
	}
}

// A row without a key is found by what the stream says of it, however the application that wrote it came to its value: equal values may
// lie differently on disk.
func TestKeylessRowsWrittenByTheApplication(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", `CREATE TYPE pair_of AS (n int, a int[]);
		CREATE TABLE k (id int, a int[], f float8, fs float8[], c pair_of, r numrange, j jsonb, x text);
		INSERT INTO k VALUES (1, '{1,NULL}', 'Infinity'::float8 - 'Infinity', '{1,NULL}', ROW(1, '{1,NULL}'), '[1,2)', '{}', repeat('long', 3000)), (1, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
		UPDATE k SET a[2] = 5, fs[2] = 'Infinity'::float8 - 'Infinity', c.a[2] = 7, j = jsonb_set(j, '{a}', '1.10') WHERE a IS NOT NULL`, "0/1")
	r := d.relation("k", 'f')
	old := []any{1, "{1,5}", "NaN", "{1,NaN}", `(1,"{1,7}")`, "[1,2)", `{"a": 1.10}`, strings.Repeat("long", 3000)}
	c := update(r, 2, "{1,5}", "NaN", "{1,NaN}", `(1,"{1,7}")`, "[1,2)", `{"a": 1.10}`, unchanged)
	c.Old = values(old)
	a := d.open()
	if _, err := a.Apply(d.ctx(), batch("0/2", c)); err != nil {
		t.Fatal(err)
	}
	old[0] = 2
	if _, err := a.Apply(d.ctx(), batch("0/3", remove(r, old...))); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Apply(d.ctx(), batch("0/4", remove(r, 1, nil, nil, nil, nil, nil, nil, nil))); err != nil {
		t.Fatal(err)
	}
	if got := d.rows("SELECT k::text FROM k"); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// A transaction that changes rows and then adds a column speaks of the table in two ways. With the column on the destination both are carried
// out; a column that the origin doesn't have stays a drift.
func TestColumnYoungerThanTheStream(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", small+"INSERT INTO t VALUES (1, 'v', NULL); ALTER TABLE t ADD COLUMN added int DEFAULT 7", "0/1")
	r := d.relation("t", 'd', "id")
	before := &replication.Relation{Name: r.Name, ReplicaIdentity: 'd', Columns: r.Columns[:3]}
	b := func() *replication.Batch {
		return batch("0/2", update(before, 1, "w", nil), insert(before, 2, "before", nil), insert(r, 3, "after", nil, 8))
	}
	now := map[string]string{}
	d.o.Columns = func(context.Context, replication.TableName) (map[string]string, error) { return now, nil }
	if _, err := d.open().Apply(d.ctx(), b()); code(err) != "schema-drift" || !strings.Contains(err.Error(), "added") {
		t.Errorf("a column of the destination's own: %v", err)
	}
	now["added"] = "text"
	if _, err := d.open().Apply(d.ctx(), b()); code(err) != "schema-drift" {
		t.Errorf("a column of another type: %v", err)
	}
	now["added"] = "integer"
	if _, err := d.open().Apply(d.ctx(), b()); err != nil {
		t.Fatal(err)
	}
	if got := d.rows("SELECT id || v || added FROM t"); !slices.Equal(got, []string{"1w7", "2before7", "3after8"}) {
		t.Errorf("the table holds %v", got)
	}
}
