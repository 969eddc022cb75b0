package bench

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/replication/pair"
)

// system is one way to get the source's changes to the target: a database there, a slot, and a switch.
type system struct {
	name string
	db   string
	url  string
	slot string
	conn *pgx.Conn
	// enable lets it drain, disable stops it; both are also called when nothing is to be done.
	enable, disable func()
	// pid is replicator's process, 0 for native.
	pid func() int
	// results of the drains so far
	drains []drain
}

// drain is one measured run.
type drain struct {
	seconds                     float64
	sender, applier, replicator float64 // CPU seconds: of the walsender, of the backend that applies, of replicator's process
}

// native makes a subscription with streaming off. Its tables are copied and all is in step when it returns; it is disabled.
func (w *world) native(name, options string) *system {
	w.b.Helper()
	s := w.database(name)
	s.slot = "native_" + name
	w.exec(s.url, w.schema)
	w.exec(w.origin, "CREATE PUBLICATION "+s.slot+" FOR TABLE "+w.publishable())
	w.exec(s.url, fmt.Sprintf("CREATE SUBSCRIPTION %s CONNECTION '%s' PUBLICATION %s WITH (streaming = off, %s)", s.slot, w.loopback(), s.slot, options))
	until(w.b, "copied native subscription", 10*time.Minute, func() bool {
		return value[bool](w, s.conn, "SELECT count(*) > 0 AND bool_and(srsubstate = 'r') FROM pg_subscription_rel")
	})
	s.enable = func() { w.exec(s.url, "ALTER SUBSCRIPTION "+s.slot+" ENABLE") }
	s.disable = func() {
		w.exec(s.url, "ALTER SUBSCRIPTION "+s.slot+" DISABLE")
		w.idle(s)
	}
	s.pid = func() int { return 0 }
	s.disable()
	return s
}

// replicator makes a pair, waits until it streams, and stops it.
func (w *world) replicator() *system {
	w.b.Helper()
	s := w.database("replicator")
	s.slot = "replicator_bench_main"
	var c *child
	s.enable = func() { c = start(w.b, order{Source: w.origin, Target: s.url, Migration: "bench"}) }
	s.disable = func() {
		c.stop(w.b)
		w.idle(s)
	}
	s.pid = func() int { return c.cmd.Process.Pid }
	s.enable()
	c.await(w.b, pair.Streaming)
	s.disable()
	return s
}

func (w *world) database(name string) *system {
	w.b.Helper()
	w.exec(w.target.URL("postgres"), "CREATE DATABASE db_"+name)
	s := &system{name: name, db: "db_" + name, url: w.target.URL("db_" + name)}
	s.conn = w.connect(s.url)
	w.systems = append(w.systems, s)
	return s
}

// sendersSQL finds the backends that read the system's slot, or the temporary copy of it that a backlog is pulled from.
const sendersSQL = `SELECT coalesce(array_agg(active_pid), '{}') FROM pg_replication_slots WHERE active_pid > 0 AND (slot_name = $1 OR starts_with(slot_name::text, $1 || '_pull_'))`

// idle waits until nobody reads the system's slot.
func (w *world) idle(s *system) {
	w.b.Helper()
	until(w.b, "end of "+s.name, time.Minute, func() bool { return len(w.senders(s.slot)) == 0 })
}

func (w *world) senders(slot string) []int { return value[[]int](w, w.control, sendersSQL, slot) }

// meter adds up what processes use that come and go.
type meter map[int][2]float64

// read takes the processes' CPU seconds so far.
func (m meter) read(pids []int) {
	for _, pid := range pids {
		now := cpu(pid)
		first, ok := m[pid]
		if !ok {
			first[0] = now
		}
		if now > 0 {
			m[pid] = [2]float64{first[0], now}
		}
	}
}

func (m meter) sum() (sum float64) {
	for _, v := range m {
		sum += v[1] - v[0]
	}
	return sum
}

// applierSQL finds the backend that applies: native's worker, or replicator's session.
const applierSQL = `SELECT coalesce((SELECT pid FROM pg_stat_activity WHERE datname = $1
	AND (backend_type = 'logical replication worker' OR application_name LIKE 'replicator/%/apply/%') ORDER BY backend_start LIMIT 1), 0)`

// drain lets one system work until the target shows the last transaction, bench_done's row id.
func (w *world) drain(s *system, id int, limit time.Duration) drain {
	w.b.Helper()
	freshen(w.b)
	s.enable()
	until(w.b, "active slot of "+s.name, time.Minute, func() bool { return len(w.senders(s.slot)) > 0 })
	began := time.Now()
	senders, read := meter{}, began
	senders.read(w.senders(s.slot))
	before := w.used(s)
	until(w.b, "end of the backlog of "+s.name, limit, func() bool {
		if time.Since(read) > 20*time.Millisecond {
			senders.read(w.senders(s.slot))
			read = time.Now()
		}
		return value[bool](w, s.conn, "SELECT EXISTS (SELECT FROM bench_done WHERE id = $1)", id)
	})
	d := drain{seconds: time.Since(began).Seconds()}
	senders.read(w.senders(s.slot))
	after := w.used(s)
	d.sender, d.applier, d.replicator = senders.sum(), after.applier-before.applier, after.replicator-before.replicator
	s.disable()
	return d
}

// settle lets every system acknowledge all that there is, until its slot begins decoding behind it. Otherwise the next drain would decode the same
// again, in vain. A checkpoint logs the running transactions, which decoding needs to see there; an idle native worker acknowledges only what comes.
func (w *world) settle() {
	w.b.Helper()
	end := value[string](w, w.control, "SELECT pg_current_wal_flush_lsn()::text")
	w.exec(w.source.URL("postgres"), "CHECKPOINT")
	for _, s := range w.systems {
		s.enable()
		w.exec(w.origin, "INSERT INTO bench_done SELECT least(min(id), 0) - 1 FROM bench_done")
		until(w.b, "acknowledgement by "+s.name, time.Minute, func() bool {
			return value[bool](w, w.control, "SELECT least(confirmed_flush_lsn, restart_lsn) >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1", s.slot, end)
		})
		s.disable()
	}
}

// used is what a running system's processes have used so far, but for those that send.
func (w *world) used(s *system) drain {
	w.b.Helper()
	d := drain{applier: cpu(value[int](w, s.conn, applierSQL, s.db))}
	if pid := s.pid(); pid != 0 {
		d.replicator = cpu(pid)
	}
	return d
}
