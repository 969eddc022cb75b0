package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
)

// settings make both servers behave as a real one would: durable, with full pages in the write-ahead log. Checkpoints and autovacuum are
// kept out of the measured time, where they would meet the systems unevenly. A target has the memory for its database: here it holds one for each
// system, so that it needs the memory for all of them.
var settings = map[string]string{
	"fsync": "on", "full_page_writes": "on", "shared_buffers": "4GB", "max_wal_size": "16GB", "checkpoint_timeout": "1h", "autovacuum": "off",
	"wal_sender_timeout": "10min", "maintenance_work_mem": "256MB", "max_locks_per_transaction": "512",
}

func scale(b *testing.B) float64 { return number(b, "REPLICATOR_BENCH_SCALE", 0.1) }
func rounds(b *testing.B) int    { return int(number(b, "REPLICATOR_BENCH_ROUNDS", 3)) }

func number(b *testing.B, variable string, otherwise float64) float64 {
	b.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || n <= 0 {
		b.Fatalf("%s=%q is no positive number", variable, text)
	}
	return n
}

// scaled is a size of docs/performance.md at the chosen scale.
func scaled(b *testing.B, n int) int { return max(int(float64(n)*scale(b)), 1) }

// world is a source and a target server; the source's database holds the workload's tables.
type world struct {
	b              *testing.B
	source, target *pgtest.Server
	origin         string // URL of the source's database
	control        *pgx.Conn
	schema         string // the application's, before anybody added to it
	systems        []*system
}

func newWorld(b *testing.B, ddl string) *world {
	b.Helper()
	w := &world{b: b, source: pgtest.Start(b, pgtest.Options{Settings: settings}), target: pgtest.Start(b, pgtest.Options{Settings: settings})}
	w.exec(w.source.URL("postgres"), "CREATE DATABASE app")
	w.origin = w.source.URL("app")
	w.exec(w.origin, "CREATE TABLE bench_done (id int PRIMARY KEY)", ddl)
	w.control = w.connect(w.origin)
	w.schema = pgDump(w)
	return w
}

func (w *world) connect(url string) *pgx.Conn {
	w.b.Helper()
	conn, err := pgx.Connect(w.b.Context(), url)
	if err != nil {
		w.b.Fatal(err)
	}
	w.b.Cleanup(func() { _ = conn.Close(context.Background()) }) // the server is about to go
	return conn
}

// pgDump returns the source's schema as SQL.
func pgDump(w *world) string { return pgtest.DumpSchema(w.b, w.origin) }

// exec runs scripts of any length, each in its own session.
func (w *world) exec(url string, scripts ...string) {
	w.b.Helper()
	for _, script := range scripts {
		conn, err := pgx.Connect(w.b.Context(), url)
		if err != nil {
			w.b.Fatal(err)
		}
		if _, err := conn.PgConn().Exec(w.b.Context(), script).ReadAll(); err != nil {
			w.b.Fatalf("%.300s: %v", script, err)
		}
		_ = conn.Close(w.b.Context()) // nothing is lost with it
	}
}

// value reads one value of the source's database.
func value[T any](w *world, conn *pgx.Conn, sql string, args ...any) T {
	w.b.Helper()
	var v T
	if err := conn.QueryRow(w.b.Context(), sql, args...).Scan(&v); err != nil {
		w.b.Fatalf("%.300s: %v", sql, err)
	}
	return v
}

// pgbench runs the client of the source's own version; writing needn't wait for its own flushes.
func (w *world) pgbench(args ...string) {
	w.b.Helper()
	cmd := exec.CommandContext(w.b.Context(), tool(w.b, "pgbench"), append(args, "app")...)
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c synchronous_commit=off", "PGHOST=127.0.0.1", fmt.Sprintf("PGPORT=%d", w.source.Port()), "PGUSER=postgres", "PGPASSWORD="+pgtest.Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		w.b.Fatalf("pgbench %v: %v\n%s", args, err, out)
	}
}

// tool finds a client program of PostgreSQL 15.
func tool(b *testing.B, name string) string {
	b.Helper()
	path := filepath.Join("/usr/lib/postgresql/15/bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path, err := exec.LookPath(name)
	if err != nil {
		b.Fatalf("%s is not installed (scripts/install-tools pg): %v", name, err)
	}
	return path
}

// tables lists the application's tables.
func (w *world) tables() []string {
	w.b.Helper()
	rows, err := w.control.Query(w.b.Context(), `SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY 1`)
	if err != nil {
		w.b.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.b.Fatal(err)
	}
	return names
}

// equal demands that every table holds the same rows on both sides: their number, and the sum of their hashes.
func (w *world) equal(url string) {
	w.b.Helper()
	other := w.connect(url)
	for _, t := range w.tables() {
		sql := fmt.Sprintf("SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM %s t", t)
		if a, z := value[string](w, w.control, sql), value[string](w, other, sql); a != z {
			w.b.Fatalf("%s: the source has %s, the target %s", t, a, z)
		}
	}
}

// calm vacuums and checkpoints, so that no system pays for what another has left.
func (w *world) calm() {
	w.b.Helper()
	w.exec(w.source.URL("postgres"), "CHECKPOINT")
	for _, s := range w.systems {
		w.exec(s.url, "VACUUM")
	}
	w.exec(w.target.URL("postgres"), "CHECKPOINT")
}

// look is how often until looks. Each look takes processor time from what is measured, most from whoever keeps both cores busy.
const look = 10 * time.Millisecond

// until waits for a condition.
func until(b *testing.B, what string, d time.Duration, ok func() bool) {
	b.Helper()
	deadline := time.Now().Add(d)
	for !ok() {
		if time.Now().After(deadline) {
			b.Fatalf("no %s within %v", what, d)
		}
		<-time.After(look)
	}
}

// loopback is the URL with which the target server reaches the source's database, as a libpq string.
func (w *world) loopback() string {
	return fmt.Sprintf("host=127.0.0.1 port=%d dbname=app user=postgres password=%s", w.source.Port(), pgtest.Password)
}

// publishable names the tables for CREATE PUBLICATION.
func (w *world) publishable() string { return strings.Join(w.tables(), ", ") }
