package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jackc/pgx/v5"

	"replicator/replication/pair"
)

// large has the kinds of tables that row A is about, besides pgbench's own.
const large = `
CREATE TABLE wide_rows (id bigint PRIMARY KEY, a int, b int, c text, d text, e timestamptz, f numeric, g text);
CREATE TABLE documents (id bigint PRIMARY KEY, body text);
ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;`

// loadLarge fills the source for row A at a fraction of its full size.
func (w *world) loadLarge(scale float64) {
	w.b.Helper()
	n := func(full int) int { return max(int(float64(full)*scale), 1) }
	w.pgbench("--initialize", "--quiet", fmt.Sprintf("--scale=%d", n(50)))
	w.exec(w.origin,
		fmt.Sprintf(`INSERT INTO wide_rows SELECT i, i %% 1000, i %% 77, md5(i::text), repeat(md5(i::text), 4), now(), i / 7.0, md5((i * 2)::text) FROM generate_series(1, %d) i`, n(1000000)),
		fmt.Sprintf(`INSERT INTO documents SELECT i, repeat(md5(i::text), 625 + (i * 7919) %% 1250) FROM generate_series(1, %d) i`, n(20000)),
		`CREATE INDEX ON wide_rows (a, b); CREATE INDEX ON wide_rows (c); CREATE INDEX ON wide_rows (e)`, `VACUUM ANALYZE`)
	w.schema = pgDump(w)
}

// copier is one way to make the first copy, with all keys and indexes.
type copier struct {
	name string
	run  func(db string)
	// elsewhere are the CPU seconds of its own processes during the last run.
	elsewhere float64
	runs      []copied
}

// copied is one measured copy.
type copied struct{ seconds, source, target, own float64 }

// copiers are the systems that row A compares; replicator is the last one.
func (w *world) copiers() []*copier {
	native, late, pgcopydb, ours := &copier{name: "native"}, &copier{name: "native, indexes last"}, &copier{name: "pgcopydb"}, &copier{name: "replicator"}
	native.run = func(db string) { w.copyNatively(db, w.schema, nil) }
	pre, post := splitDump(w.b, w.schema)
	late.run = func(db string) { w.copyNatively(db, pre, post) }
	pgcopydb.run = func(db string) { pgcopydb.elsewhere = w.copyByPgcopydb(db) }
	ours.run = func(db string) { ours.elsewhere = w.copyByReplicator(db, w.origin, w.target.URL(db)) }
	return []*copier{native, late, pgcopydb, ours}
}

// measure lets one system copy into a database of its own, which is compared with the source and dropped.
func (w *world) measure(c *copier, db string) copied {
	w.b.Helper()
	w.exec(w.target.URL("postgres"), "CREATE DATABASE "+db, "CHECKPOINT")
	w.exec(w.source.URL("postgres"), "CHECKPOINT")
	c.elsewhere = 0
	freshen(w.b)
	before := [2]float64{family(w.source.Pid()), family(w.target.Pid())}
	began := time.Now()
	c.run(db)
	m := copied{seconds: time.Since(began).Seconds(), source: family(w.source.Pid()) - before[0], target: family(w.target.Pid()) - before[1], own: c.elsewhere}
	w.equal(w.target.URL(db))
	w.sameIndexes(w.target.URL(db))
	w.exec(w.target.URL("postgres"), "DROP DATABASE "+db+" WITH (FORCE)")
	return m
}

const indexesSQL = `SELECT count(*) || ' indexes, ' || coalesce(string_agg(pg_get_indexdef(indexrelid) || indisvalid, '; ' ORDER BY indexrelid::regclass::text), '')
FROM pg_index WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)`

// sameIndexes demands that all keys and indexes stand.
func (w *world) sameIndexes(url string) {
	w.b.Helper()
	if a, z := value[string](w, w.control, indexesSQL), value[string](w, w.connect(url), indexesSQL); a != z {
		w.b.Fatalf("the source has %s, the target %s", a, z)
	}
}

// family is the CPU time of a server: its processes, those that have ended included.
func family(postmaster int) float64 {
	total := cpu(postmaster) + children(postmaster)
	for _, pid := range offspring(func(f []string) bool { return f[1] == strconv.Itoa(postmaster) }) {
		total += cpu(pid)
	}
	return total
}

// BenchmarkCopy is row A: an initial copy with all keys and indexes, from the order to start until all is in step.
func BenchmarkCopy(b *testing.B) {
	w := newWorld(b, large)
	w.loadLarge(scale(b))
	all := w.copiers()
	if only := os.Getenv("REPLICATOR_BENCH_COPIERS"); only != "" {
		all = slices.DeleteFunc(all, func(c *copier) bool { return !slices.Contains(strings.Split(only, ";"), c.name) })
	}
	bytes := value[int64](w, w.control, "SELECT pg_database_size('app')")
	w.measure(all[len(all)-1], "warm") // the servers' memory is touched for the first time
	for round := range rounds(b) {
		for i := range all {
			c := all[(i+round)%len(all)]
			m := w.measure(c, fmt.Sprintf("copy_%d_%d", round, i))
			fmt.Printf("%s: %.2f s; CPU s source %.2f, target %.2f, own %.2f\n", c.name, m.seconds, m.source, m.target, m.own)
			c.runs = append(c.runs, m)
		}
	}
	ours := all[len(all)-1].median()
	fmt.Printf("\nscale %g, %d rounds: copy of %d MB with all keys and indexes\n\n| A by | seconds | replicator's ratio | CPU s: source, target, own processes |\n| --- | --- | --- | --- |\n", scale(b), rounds(b), bytes>>20)
	for _, c := range all {
		m := c.median()
		fmt.Printf("| %s | %.2f | %.2f | %.2f, %.2f, %.2f |\n", c.name, m.seconds, m.seconds/ours.seconds, m.source, m.target, m.own)
	}
	fmt.Println()
}

func (c *copier) median() copied {
	of := func(f func(copied) float64) float64 {
		var v []float64
		for _, r := range c.runs {
			v = append(v, f(r))
		}
		slices.Sort(v)
		return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	}
	return copied{
		seconds: of(func(r copied) float64 { return r.seconds }), source: of(func(r copied) float64 { return r.source }),
		target: of(func(r copied) float64 { return r.target }), own: of(func(r copied) float64 { return r.own }),
	}
}

// splitDump cuts a dump into what comes before the data and the keys and indexes after it.
func splitDump(b *testing.B, dump string) (pre string, post []string) {
	b.Helper()
	var before []string
	for _, s := range strings.Split(dump, ";\n") {
		if strings.Contains(s, "ADD CONSTRAINT") || strings.Contains(s, "CREATE INDEX") {
			post = append(post, s)
		} else {
			before = append(before, s)
		}
	}
	if len(post) < 6 {
		b.Fatalf("found only %d keys and indexes in the dump", len(post))
	}
	return strings.Join(before, ";\n"), post
}

// copyNatively makes the schema and lets two workers copy at once, as subscriptions do by default; then two sessions make the indexes that are
// left, the largest tables' first.
func (w *world) copyNatively(db, schema string, indexes []string) {
	w.b.Helper()
	url := w.target.URL(db)
	w.exec(url, schema)
	w.exec(w.origin, "CREATE PUBLICATION "+db+" FOR TABLE "+w.publishable())
	w.exec(url, fmt.Sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION %s WITH (streaming = off, binary = on)", db, w.loopback(), db))
	conn, err := pgx.Connect(w.b.Context(), url)
	if err != nil {
		w.b.Fatal(err)
	}
	defer conn.Close(context.Background())
	until(w.b, "copied subscription", drainLimit, func() bool {
		return value[bool](w, conn, "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
	})
	var g errgroup.Group
	work := make(chan string, len(indexes))
	for _, sql := range indexes {
		work <- sql
	}
	close(work)
	for range 2 {
		g.Go(func() error {
			for sql := range work {
				w.exec(url, sql)
			}
			return nil
		})
	}
	_ = g.Wait() // exec fails the benchmark itself
	w.exec(url, "DROP SUBSCRIPTION "+db)
	w.exec(w.origin, "DROP PUBLICATION "+db)
}

// copyByPgcopydb copies by pgcopydb with its own defaults, which vacuum the tables too, and returns the CPU seconds of its processes.
func (w *world) copyByPgcopydb(db string) float64 {
	w.b.Helper()
	path, err := exec.LookPath("pgcopydb")
	if err != nil {
		w.b.Fatalf("pgcopydb is not installed (scripts/install-tools pgcopydb): %v", err)
	}
	cmd := exec.CommandContext(w.b.Context(), path, "clone", "--source", w.origin, "--target", w.target.URL(db), "--dir", w.b.TempDir(), "--no-owner", "--no-acl", "--not-consistent")
	cmd.Env = append(os.Environ(), "PATH=/usr/lib/postgresql/15/bin:"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		w.b.Fatalf("pgcopydb: %v\n%s", err, out)
	}
	return cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds()
}

// copyWorkers is what the configuration's copy_workers should be for a target with two cores; native's default is two as well.
const copyWorkers = 2

// copyByReplicator runs replicator from one URL to another until it streams, and returns its CPU seconds.
func (w *world) copyByReplicator(db, source, target string) float64 {
	w.b.Helper()
	c := start(w.b, order{Source: source, Target: target, Migration: db, Workers: copyWorkers})
	c.await(w.b, pair.Streaming)
	own := cpu(c.cmd.Process.Pid)
	w.forget(c, db)
	return own
}

// forget stops a replicator and removes what it made on the source.
func (w *world) forget(c *child, migration string) {
	w.b.Helper()
	c.stop(w.b)
	slot := "replicator_" + migration + "_main"
	until(w.b, "end of "+slot, time.Minute, func() bool { return len(w.senders(slot)) == 0 })
	w.exec(w.origin, fmt.Sprintf("SELECT pg_drop_replication_slot('%s')", slot), "DROP PUBLICATION "+slot)
}
