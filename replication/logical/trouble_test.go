package logical

import (
	"context"
	"slices"
	"testing"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// Whatever ends the session (the server killed, stopped in order, the connection cut, the session terminated) is worth another try, and
// that try goes on where the destination stands.
func TestLostSessionsAreTransientAndGoOn(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"fsync": "on"}})
	o := newOrigin(t, s.Database(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	proxy, through := pgtest.NewCutter(t, o.url)
	at, next := o.at, 0
	for name, disturb := range map[string]func() error{
		"killed":  func() error { s.Kill(); return s.Start(o.ctx()) },
		"stopped": func() error { return s.Stop(o.ctx()) },
		"cut":     func() error { proxy.Cut(); return nil },
		"terminated": func() error {
			_, err := o.pool.Exec(o.ctx(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1", o.name)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			o.until("the server", func() bool { return o.pool.Ping(o.ctx()) == nil && o.free() })
			src := NewSource(Options{URL: through, ID: o.id, Slot: o.name, Publication: o.name})
			st := start(t, src, position(at))
			rd := newReader(t, at)
			o.beat("before " + name)
			for !rd.add(st.next(), "before "+name) {
			}
			at = mustParse(t, rd.all[len(rd.all)-1].position)
			next++
			o.exec("INSERT INTO t VALUES ($1)", next)
			if err := disturb(); err != nil {
				t.Fatal(err)
			}
			if err := st.fails(); !postgres.IsTransient(err) {
				t.Errorf("%s: not transient: %v", name, err)
			}
			if s.Pid() == 0 {
				if err := s.Start(o.ctx()); err != nil {
					t.Fatal(err)
				}
			}
			o.until("the server", func() bool { return o.pool.Ping(o.ctx()) == nil && o.free() })
			got := o.collect(o.source(Limits{}), at, "after "+name)
			if len(got) != 1 || !slices.Equal(got[0], []string{"insert t () (id=t:" + string(rune('0'+next)) + ",)"}) {
				t.Errorf("after %s came %v", name, got)
			}
			at = o.flushLSN()
		})
	}
}

// Stream returns only when nothing of it is left, however it ends.
func TestStreamLeavesNothingBehind(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	o.exec("INSERT INTO t SELECT generate_series(1, 5000)")
	for range 9 {
		o.until("the slot to be free", o.free)
		st := start(t, o.source(Limits{Changes: 100}), position(o.at))
		st.next()
		st.stop()
		o.until("the end of the session", func() bool {
			var n int
			if err := o.pool.QueryRow(context.Background(), `SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY ($1)) + (SELECT count(*) - 1 FROM pg_replication_slots WHERE database = current_database())`,
				[]string{o.id.ApplicationName("stream"), o.id.ApplicationName("pull")}).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n == 0
		})
	}
}
