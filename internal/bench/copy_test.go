package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"replicator/replication/pair"
)

// large has the kinds of tables that row A is about, besides pgbench's own.
const large = `
CREATE TABLE wide_rows (id bigint PRIMARY KEY, a int, b int, c text, d text, e timestamptz, f numeric, g text);
CREATE TABLE documents (id bigint PRIMARY KEY, body text);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;`

// BenchmarkCopy is row A: an initial copy with all keys and indexes, from the order to start until all is in step.
func BenchmarkCopy(b *testing.B) {
	w := newWorld(b, large)
	w.pgbench("--initialize", "--quiet", fmt.Sprintf("--scale=%d", scaled(b, 50)))
	w.exec(w.origin,
		fmt.Sprintf(`INSERT INTO wide_rows SELECT i, i %% 1000, i %% 77, md5(i::text), repeat(md5(i::text), 4), now(), i / 7.0, md5((i * 2)::text) FROM generate_series(1, %d) i`, scaled(b, 1000000)),
		fmt.Sprintf(`INSERT INTO documents SELECT i, repeat(md5(i::text), 625 + (i * 7919) %% 1250) FROM generate_series(1, %d) i`, scaled(b, 20000)),
		`CREATE INDEX ON wide_rows (a, b); CREATE INDEX ON wide_rows (c); CREATE INDEX ON wide_rows (e)`, `VACUUM ANALYZE`)
	w.schema = pgDump(w)
	bytes := value[int64](w, w.control, "SELECT pg_database_size('app')")
	seconds := map[string][]float64{}
	for round := range rounds(b) {
		copies := []struct {
			name string
			run  func(db string)
		}{
			{"native", func(db string) { w.copyNatively(db) }},
			{"replicator", func(db string) { w.copyByReplicator(db) }},
		}
		for i := range copies {
			c := copies[(i+round)%len(copies)]
			db := fmt.Sprintf("copy_%s_%d", c.name, round)
			w.exec(w.target.URL("postgres"), "CREATE DATABASE "+db, "CHECKPOINT")
			w.exec(w.source.URL("postgres"), "CHECKPOINT")
			began := time.Now()
			c.run(db)
			seconds[c.name] = append(seconds[c.name], time.Since(began).Seconds())
			w.equal(w.target.URL(db))
		}
	}
	for _, v := range seconds {
		slices.Sort(v)
	}
	n, r := seconds["native"][rounds(b)/2], seconds["replicator"][rounds(b)/2]
	fmt.Printf("\nscale %g, %d rounds: copy of %d MB\n\n| workload | native | replicator | ratio | goal |\n| --- | --- | --- | --- | --- |\n| A initial copy | %.2f s | %.2f s | %.2f | ≥ 1.25 |\n\n",
		scale(b), rounds(b), bytes>>20, n, r, n/r)
}

// copyNatively makes the schema with all keys and indexes and lets two workers copy at once, as subscriptions do by default.
func (w *world) copyNatively(db string) {
	w.b.Helper()
	url := w.target.URL(db)
	w.exec(url, w.schema)
	w.exec(w.origin, "CREATE PUBLICATION "+db+" FOR TABLE "+w.publishable())
	w.exec(url, fmt.Sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION %s WITH (streaming = off, binary = on)", db, w.loopback(), db))
	conn := w.connect(url)
	until(w.b, "copied subscription", drainLimit, func() bool {
		return value[bool](w, conn, "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
	})
	w.exec(url, "DROP SUBSCRIPTION "+db)
	w.exec(w.origin, "DROP PUBLICATION "+db)
}

func (w *world) copyByReplicator(db string) {
	w.b.Helper()
	c := start(w.b, order{Source: w.origin, Target: w.target.URL(db), Migration: db})
	c.await(w.b, pair.Streaming)
	c.stop(w.b)
	slot := "replicator_" + db + "_main"
	until(w.b, "end of "+slot, time.Minute, func() bool { return value[int](w, w.control, activeSQL, slot) == 0 })
	w.exec(w.origin, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", slot), "DROP PUBLICATION "+slot)
}
