package logical

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// collect reads until the token's transaction and returns the changes of all transactions that have some.
func (o *origin) collect(s *Source, at uint64, token string) [][]string {
	o.t.Helper()
	o.until("the slot to be free", o.free)
	o.beat(token)
	st := start(o.t, s, position(at))
	rd := newReader(o.t, at)
	for !rd.add(st.next(), token) {
	}
	st.stop()
	var out [][]string
	for _, tx := range rd.all {
		if len(tx.changes) > 0 {
			out = append(out, tx.changes)
		}
	}
	return out
}

// What an UPDATE and a DELETE say of the old row follows the replica identity, which may change within a transaction; a column that is added
// within one is there from the next row on.
func TestDescriptionsChangeMidStream(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text); INSERT INTO t VALUES (1, 1, 'a')`, "t")
	conn := pgtest.Connect(t, o.url)
	if _, err := conn.PgConn().Exec(o.ctx(), `BEGIN;
		UPDATE t SET v = 'b';
		ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET v = 'c';
		ALTER TABLE t REPLICA IDENTITY USING INDEX t_u_key; UPDATE t SET u = 2;
		ALTER TABLE t ADD COLUMN w int DEFAULT 7; INSERT INTO t VALUES (2, 3, 'd');
		ALTER TABLE t DROP COLUMN v; DELETE FROM t WHERE id = 2;
		ALTER TABLE t RENAME TO s; UPDATE s SET w = 8;
		COMMIT`).ReadAll(); err != nil {
		t.Fatal(err)
	}
	got := o.collect(o.source(Limits{}), o.at, "end")
	want := []string{
		"update t () (id=t:1,u=t:1,v=t:b,)",
		"update t (id=t:1,u=t:1,v=t:b,) (id=t:1,u=t:1,v=t:c,)",
		"update t (id=.:,u=t:1,v=.:,) (id=t:1,u=t:2,v=t:c,)",
		"insert t () (id=t:2,u=t:3,v=t:d,w=t:7,)",
		"delete t (id=.:,u=t:3,w=.:,) ()",
		"update s () (id=t:1,u=t:2,w=t:8,)",
	}
	if len(got) != 1 || !slices.Equal(got[0], want) {
		t.Errorf("streamed\n%s\nwant\n%s", strings.Join(slices.Concat(got...), "\n"), strings.Join(want, "\n"))
	}
}

// A TRUNCATE of several tables is left out for those whose copies saw it already, and only for them.
func TestTruncateAtSeams(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE TABLE c (id int)`, "a", "b", "c")
	seam := func() replication.Seam {
		var snapshot, lsn string
		if err := o.pool.QueryRow(o.ctx(), "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text").Scan(&snapshot, &lsn); err != nil {
			t.Fatal(err)
		}
		s, err := replication.ParseSnapshot(snapshot)
		if err != nil {
			t.Fatal(err)
		}
		return replication.Seam{Snapshot: s, LSN: mustParse(t, replication.Position(lsn))}
	}
	seams := map[replication.TableName]replication.Seam{}
	seams[replication.TableName{Schema: "public", Name: "a"}] = seam()
	o.exec("INSERT INTO a VALUES (1)")
	o.exec("INSERT INTO b VALUES (1)")
	// The writer of c is open when c's copy begins: below the seam's LSN, and yet not in the copy.
	conn := pgtest.Connect(t, o.url)
	if _, err := conn.Exec(o.ctx(), "BEGIN; INSERT INTO c VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	seams[replication.TableName{Schema: "public", Name: "c"}] = seam()
	if _, err := conn.Exec(o.ctx(), "INSERT INTO b VALUES (2); INSERT INTO c VALUES (2); COMMIT"); err != nil {
		t.Fatal(err)
	}
	o.exec("TRUNCATE a, b, c")
	seams[replication.TableName{Schema: "public", Name: "b"}] = seam()
	o.exec("INSERT INTO b VALUES (3)")
	o.exec("TRUNCATE b, c RESTART IDENTITY CASCADE")
	src := NewSource(Options{URL: o.url, ID: o.id, Slot: o.name, Publication: o.name, Seams: seams})
	got := fmt.Sprint(o.collect(src, o.at, "end"))
	want := "[[insert a () (id=t:1,)] [insert c () (id=t:1,) insert c () (id=t:2,)] [truncate a a c () ()] [insert b () (id=t:3,)] [truncate b b c () ()]]"
	if got != want {
		t.Errorf("streamed\n%s\nwant\n%s", got, want)
	}
}

// Transactions that are prepared and committed by another session stream once, when they are committed, and know their own id at a seam.
func TestPreparedTransactions(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	conn := pgtest.Connect(t, o.url)
	run := func(sql string) {
		t.Helper()
		// One statement at a time: COMMIT PREPARED can't be in a transaction block.
		for s := range strings.SplitSeq(sql, "; ") {
			if _, err := conn.Exec(o.ctx(), s, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	var db string
	if err := o.pool.QueryRow(o.ctx(), "SELECT current_database()").Scan(&db); err != nil {
		t.Fatal(err)
	}
	run("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION '" + db + "_1'")
	run("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION '" + db + "_2'")
	o.exec("INSERT INTO t VALUES (3)")
	run("ROLLBACK PREPARED '" + db + "_2'; COMMIT PREPARED '" + db + "_1'")
	if got := fmt.Sprint(o.collect(o.source(Limits{}), o.at, "end")); got != "[[insert t () (id=t:3,)] [insert t () (id=t:1,)]]" {
		t.Errorf("streamed %s", got)
	}
}
