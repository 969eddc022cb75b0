package bench

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication/pair"
)

// bed is a source and a target server, each on a core of its own, with a pair of databases for each way to capture.
type bed struct {
	*world
	size int      // of pgbench's tables
	more []string // what is loaded besides
}

// rival is one way to capture, with a database of its own on either side. The world's origin is the source's database as its superuser.
type rival struct {
	*world
	name, db string
	owner    string // URL of the source's database as an ordinary owner of it: no superuser, no REPLICATION
	copyURL  string // URL of the target's database as its superuser
	copied   *pgx.Conn
	// start and stop switch what captures and applies; stop is called with everything applied.
	start, stop func()
	// reads and writes are patterns of the application names of the sessions on the source and on the target that do the work.
	reads, writes string
	daemon        func() []int
	// logged says as a condition on pg_class c and pg_namespace n which tables hold the change log; empty: there is none.
	logged string
	marks  int
	end    string // the position behind the last mark
}

func newBed(b *testing.B) *bed {
	b.Helper()
	d := &bed{world: &world{b: b, source: pgtest.Start(b, pgtest.Options{Settings: settings}), target: pgtest.Start(b, pgtest.Options{Settings: settings})}, size: scaled(b, 50)}
	pin(b, d.source.Pid(), sourceCore)
	pin(b, d.target.Pid(), targetCore)
	return d
}

// rival makes the databases of one way to capture; the source's is loaded.
func (d *bed) rival(name string) *rival {
	d.b.Helper()
	db := "db_" + strings.ReplaceAll(name, " ", "_") // Bucardo calls its own bucardo
	d.exec(d.source.URL("postgres"), "CREATE DATABASE "+db)
	d.exec(d.target.URL("postgres"), "CREATE DATABASE "+db)
	w := *d.world
	w.origin = d.source.URL(db)
	w.control = d.connect(w.origin)
	r := &rival{world: &w, name: name, db: db, owner: d.source.HerokuOwner(d.b, db), copyURL: d.target.URL(db), start: func() {}, stop: func() {}, daemon: func() []int { return nil }}
	r.copied = d.connect(r.copyURL)
	d.load(r.owner)
	return r
}

// load makes pgbench's tables of the bed's size, always alike. pgbench's history has no key, without which Bucardo takes no table: it gets one.
func (d *bed) load(url string) {
	d.b.Helper()
	cmd := exec.CommandContext(d.b.Context(), tool(d.b, "pgbench"), "--initialize", "--quiet", fmt.Sprintf("--scale=%d", d.size), url)
	if out, err := cmd.CombinedOutput(); err != nil {
		d.b.Fatalf("pgbench --initialize: %v\n%s", err, out)
	}
	d.exec(url, append([]string{"ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY", "CREATE TABLE bench_done (id int PRIMARY KEY)"}, d.more...)...)
}

// triggers makes a rival that replicator's triggers capture. It is copied; the daemon is stopped.
func (d *bed) triggers(name string) *rival {
	d.b.Helper()
	r := d.rival(name)
	var c *child
	o := order{Source: r.owner, Target: d.target.RDSMaster(d.b, r.db), Migration: "bench"}
	r.start = func() { on(d.b, targetCore, func() { c = start(d.b, o) }) }
	r.stop = func() { c.stop(d.b) }
	r.daemon = func() []int { return []int{c.cmd.Process.Pid} }
	r.start()
	c.await(d.b, pair.Streaming)
	r.stop()
	r.logged = `n.nspname = 'replicator' AND c.relname ~ '^capture_[0-9]'`
	r.reads, r.writes = "replicator/%/capture/%", "replicator/%/apply/%"
	if n := value[int](r.world, r.control, "SELECT count(*) FROM pg_trigger WHERE tgname = 'replicator_capture'"); n != len(r.tables()) {
		d.b.Fatalf("%d tables have capture triggers, want %d", n, len(r.tables()))
	}
	return r
}

// subscription makes a rival with a native subscription, streaming off, binary on; the source's superuser publishes.
func (d *bed) subscription(name string) *rival {
	d.b.Helper()
	r := d.rival(name)
	d.load(r.copyURL)
	w := r.world
	d.exec(w.origin, "CREATE PUBLICATION native FOR TABLE "+strings.Join(w.tables(), ", "))
	d.exec(r.copyURL, fmt.Sprintf("CREATE SUBSCRIPTION native CONNECTION 'host=127.0.0.1 port=%d dbname=%s user=postgres password=%s' PUBLICATION native WITH (streaming = off, binary = on, copy_data = off)",
		d.source.Port(), r.db, pgtest.Password))
	r.start = func() { d.exec(r.copyURL, "ALTER SUBSCRIPTION native ENABLE") }
	r.stop = func() {
		until(d.b, "acknowledgement by native", time.Minute, func() bool {
			return value[bool](w, w.control, "SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = 'native'", r.end)
		})
		d.exec(r.copyURL, "ALTER SUBSCRIPTION native DISABLE")
		until(d.b, "end of native", time.Minute, func() bool { return len(w.senders("native")) == 0 })
	}
	r.reads, r.writes = "native", "logical replication worker"
	return r
}

const sessionsSQL = `SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity WHERE datname = current_database() AND (application_name LIKE $1 OR backend_type LIKE $1)`

// sessions are the backends that work for the rival, on either side.
func (r *rival) sessions() (source, target []int) {
	r.b.Helper()
	return value[[]int](r.world, r.control, sessionsSQL, r.reads), value[[]int](r.world, r.copied, sessionsSQL, r.writes)
}

// mark writes a row behind everything else.
func (r *rival) mark() {
	r.b.Helper()
	r.marks++
	r.exec(r.owner, fmt.Sprintf("INSERT INTO bench_done VALUES (%d)", r.marks))
	r.end = value[string](r.world, r.control, "SELECT pg_current_wal_flush_lsn()::text")
}

// await waits until the last mark is visible on the target.
func (r *rival) await() {
	r.b.Helper()
	until(r.b, "end of the backlog of "+r.name, drainLimit, func() bool {
		return value[bool](r.world, r.copied, "SELECT EXISTS (SELECT FROM bench_done WHERE id = $1)", r.marks)
	})
}

// follow starts what captures and applies, and returns when it has caught up.
func (r *rival) follow() {
	r.b.Helper()
	r.mark()
	r.start()
	r.await()
}

// settle brings the target up to date and leaves nothing running.
func (r *rival) settle() {
	r.b.Helper()
	r.follow()
	r.stop()
}

// warm runs TPC-B for six seconds with the rival following: what it adapts to the load is adapted, and the first writes to a page after a checkpoint,
// which cost most, are done.
func (r *rival) warm() {
	r.b.Helper()
	const load = "--time=6"
	if r.reads == "" { // nobody follows
		r.tpcb(asynchronous, 0, load)
		return
	}
	r.follow()
	r.tpcb(asynchronous, 0, load)
	r.mark()
	r.await()
	r.stop()
}

const logSizeSQL = `SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND `

// logSize is the size of the change log, indexes included, in bytes.
func (r *rival) logSize() int64 {
	r.b.Helper()
	if r.logged == "" {
		return 0
	}
	return value[int64](r.world, r.control, logSizeSQL+r.logged)
}

var countLine = regexp.MustCompile(`(?m)^number of transactions actually processed: ([0-9]+)`)

// children is the CPU time of a process's children that have ended (cutime and cstime of proc(5)), in seconds.
func children(pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(f[13]) // the kernel writes numbers
	system, _ := strconv.Atoi(f[14])
	return float64(user+system) / ticks
}

// clients are pgbench's.
const clients = 8

// throughput is what a run of pgbench did.
type throughput struct {
	count int
	wal   int64   // bytes of write-ahead log meanwhile
	cpu   float64 // seconds that pgbench and its backends used
}

// manner is how an application speaks to the source.
type manner struct {
	name     string
	protocol string // pgbench's --protocol
	durable  bool
}

var (
	prepared = manner{"durable", "prepared", true}
	// asynchronous commits leave the processor as the only bound.
	asynchronous = manner{"asynchronous", "prepared", false}
	// simple is what pgbench does when it isn't told otherwise, and what an application behind a transaction pooler often does.
	simple = manner{"simple", "simple", true}
)

// tpcb runs pgbench's TPC-B as the owner, on the source's core. The same seed writes the same rows, whichever way they are captured.
func (r *rival) tpcb(how manner, seed int, args ...string) throughput {
	r.b.Helper()
	const walSQL = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
	parent := strconv.Itoa(r.source.Pid())
	family := func() []int { return offspring(func(f []string) bool { return f[1] == parent }) }
	others := family()
	before, reaped := value[int64](r.world, r.control, walSQL), children(r.source.Pid())
	cmd := exec.CommandContext(r.b.Context(), tool(r.b, "pgbench"), append(args, "--no-vacuum", fmt.Sprintf("--client=%d", clients), "--protocol="+how.protocol, "--random-seed="+strconv.Itoa(seed+1), r.owner)...)
	cmd.Env = os.Environ()
	if !how.durable {
		cmd.Env = append(cmd.Env, "PGOPTIONS=-c synchronous_commit=off")
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	var err error
	on(r.b, sourceCore, func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	count := countLine.FindStringSubmatch(said.String())
	if err != nil || count == nil {
		r.b.Fatalf("pgbench %v: %v\n%s", args, err, said.String())
	}
	var l throughput
	l.count, _ = strconv.Atoi(count[1]) // the pattern admits numbers only
	// The postmaster reaps pgbench's backends a moment after it has ended. Sessions of those who follow come and go as well.
	until(r.b, "end of pgbench's backends", time.Minute, func() bool {
		stay := append(value[[]int](r.world, r.control, "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name <> 'pgbench'"), others...)
		return !slices.ContainsFunc(family(), func(pid int) bool { return !slices.Contains(stay, pid) })
	})
	l.cpu = children(r.source.Pid()) - reaped + cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds()
	l.wal = value[int64](r.world, r.control, walSQL) - before
	return l
}
