package pair

import (
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/replication/schema"
)

// A table that is dropped, renamed or excluded before its turn in the first copy keeps no other from being copied: what is gone from both sides is
// forgotten, and what is still on the target is named until it is gone there too.
func TestTablesGoBeforeTheirTurn(t *testing.T) { everyCapture(t, tablesGoBeforeTheirTurn) }

func tablesGoBeforeTheirTurn(t *testing.T, f *fixture) {
	f.watch = 100 * time.Millisecond
	pgtest.Exec(t, f.source, smallSchema, partitionedSchema,
		`CREATE TABLE dropped (id int PRIMARY KEY, v text); CREATE INDEX dropped_v ON dropped (v); INSERT INTO dropped VALUES (1, 'v')`,
		`CREATE TABLE pointing (id int PRIMARY KEY, dropped int REFERENCES dropped); CREATE TABLE excluded (id int PRIMARY KEY, v text); INSERT INTO excluded VALUES (1, 'v')`)
	f.captureOnly()
	pgtest.Exec(t, f.source, `ALTER TABLE parts DETACH PARTITION parts_20; DROP TABLE parts_20`, `DROP TABLE parts_21`, `DROP TABLE dropped CASCADE`, `ALTER TABLE t RENAME TO fancy`)
	pgtest.Exec(t, f.target, `DROP TABLE dropped CASCADE`, `DROP TABLE parts_21`)
	f.filter = schema.Filter{Exclude: []string{"public.excluded"}}
	f.start(false)
	f.problem("table-dropped")
	if hints := f.hints(); !strings.Contains(hints, `DROP TABLE "public"."parts_20"`) || strings.Contains(hints, `"dropped"`) {
		t.Errorf("the statements are not those for what is left on the target: %s", hints)
	}
	f.streaming()
	pgtest.Exec(t, f.source, `UPDATE other SET v = 'streamed' WHERE id < 5; UPDATE excluded SET v = 'not replicated'; INSERT INTO pointing VALUES (1, 1)`)
	f.until("the others' changes", 20*time.Second, func(Status) bool {
		return ask[int](f, f.target, `SELECT count(*) FROM other WHERE v = 'streamed'`) == 4
	})
	pgtest.Exec(t, f.target, `ALTER TABLE parts DETACH PARTITION parts_20; DROP TABLE parts_20`, `ALTER TABLE t RENAME TO fancy`)
	f.until("end of what is kept of them", 40*time.Second, func(s Status) bool {
		return s.Phase == Streaming && len(s.Problems) == 0 && ask[string](f, f.target, `SELECT string_agg(table_name || ' ' || state, ', ' ORDER BY table_name) FROM replicator.copy`) ==
			"aside copied, fancy copied, other copied, pointing copied"
	})
	pgtest.Exec(t, f.source, `INSERT INTO fancy VALUES (1000, 'streamed'); DELETE FROM fancy WHERE id < 10`)
	f.caughtUp()
	f.equal()
	if n := ask[int](f, f.target, `SELECT count(*) FROM replicator.ddl WHERE done_at IS NULL`); n != 0 {
		t.Errorf("%d statements of the schema are left", n)
	}
}
