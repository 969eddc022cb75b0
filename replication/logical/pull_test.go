package logical

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
)

// backlog writes some of everything and returns what the replication protocol makes of it.
func (o *origin) backlog() []transaction {
	o.t.Helper()
	o.exec("INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 3000) i")
	for i := range 50 {
		o.exec("UPDATE t SET v = v || $1 WHERE id % 50 = $2", fmt.Sprint(i), i)
		o.exec("INSERT INTO t VALUES ($1, NULL)", 10000+i)
	}
	o.exec("ALTER TABLE t ADD COLUMN w int")
	o.exec("UPDATE t SET w = id WHERE id < 100")
	o.exec("DELETE FROM t WHERE id > 10010")
	o.exec("TRUNCATE t")
	o.exec("INSERT INTO t SELECT i, 'again', i FROM generate_series(1, 2000) i")
	o.beat("end")
	st := start(o.t, NewSource(Options{URL: o.url, ID: o.id, Slot: o.name, Publication: o.name, Pull: -1}), position(o.at))
	defer st.stop()
	return st.until(newReader(o.t, o.at), "end")
}

// until reads up to the token and returns all that has been read.
func (s *stream) until(rd *reader, token string) []transaction {
	s.t.Helper()
	for !rd.add(s.next(), token) {
	}
	return rd.all
}

// copies counts the temporary copies of slots.
func (o *origin) copies() (n int) {
	o.t.Helper()
	if err := o.pool.QueryRow(o.ctx(), "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND temporary").Scan(&n); err != nil {
		o.t.Fatal(err)
	}
	return n
}

func sameTransactions(t *testing.T, got, want []transaction) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%d transactions came, or others than the %d that there are", len(got), len(want))
	}
}

const simple = `CREATE TABLE t (id int PRIMARY KEY, v text)`

// A backlog that is pulled is, to the last byte, what the stream would have brought, by two sessions or by one where the server has room for no more;
// while it is pulled, the slot stays where it is; after it, the stream goes on.
func TestPulledIsStreamed(t *testing.T) {
	for name, c := range map[string]struct {
		version, slots, sessions int
	}{
		"two sessions": {sessions: 2}, "one session": {slots: 2, sessions: 1},
		"PostgreSQL 13": {version: 13, sessions: 2}, "PostgreSQL 18": {version: 18, sessions: 2},
	} {
		t.Run(name, func(t *testing.T) {
			settings := map[string]string{"max_replication_slots": strconv.Itoa(cmp.Or(c.slots, 3))}
			url := pgtest.Start(t, pgtest.Options{Version: c.version, Settings: settings}).Database(t)
			pulledIsStreamed(newOrigin(t, url, simple, "t"), c.sessions)
		})
	}
}

func pulledIsStreamed(o *origin, sessions int) {
	t := o.t
	want := o.backlog()
	o.until("the slot to be free", o.free)
	src := NewSource(Options{URL: o.url, ID: o.id, Slot: o.name, Publication: o.name, Pull: 1, Limits: Limits{Changes: 50}})
	src.pace.portion, src.pace.growth = 20000, 1
	st := start(t, src, position(o.at))
	rd := newReader(t, o.at)
	for len(rd.all) < 10 {
		rd.add(st.next(), "")
	}
	src.Acknowledge(rd.all[len(rd.all)-1].position)
	if slot, err := ReadSlot(o.ctx(), o.pool, o.name); err != nil || slot.Confirmed != o.at || slot.Active {
		t.Fatalf("while copies are read the slot is %+v (%v)", slot, err)
	}
	o.until("the copies of the slot", func() bool { return o.copies() == sessions }) // one of them may just be made anew
	sameTransactions(t, st.until(rd, "end"), want)
	last := want[len(want)-1].position
	src.Acknowledge(last)
	o.until("the stream after the backlog", func() bool {
		s, err := ReadSlot(o.ctx(), o.pool, o.name)
		if err != nil {
			t.Fatal(err)
		}
		return s.Active && position(s.Confirmed) >= last && o.copies() == 0
	})
	o.exec("INSERT INTO t VALUES (0, 'streamed')")
	o.beat("streamed")
	if all := st.until(rd, "streamed"); len(all) != len(want)+2 {
		t.Errorf("%d transactions after the backlog", len(all)-len(want))
	}
	st.stop()
}

// Where the server refuses, at once or in the middle, the stream brings everything, and the log says why.
func TestPullRefused(t *testing.T) {
	tight := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_replication_slots": "1"}})
	for name, c := range map[string]struct{ url, options, reason string }{
		"no free slot":             {tight.Database(t), "", "all replication slots are in use"},
		"no temporary file":        {pgtest.Shared(t).Database(t), "&temp_file_limit=1MB", "temporary file size exceeds"},
		"no right to the function": {pgtest.Shared(t).Database(t), "", "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, c.url, simple, "t")
			if name == "no right to the function" {
				o.exec("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_logical_slot_get_binary_changes FROM PUBLIC")
				name, _, _ := strings.Cut(c.url[strings.LastIndex(c.url, "/")+1:], "?")
				c.url = pgtest.Shared(t).LogicalOwner(t, name)
			}
			o.exec("INSERT INTO t SELECT i, 'small' FROM generate_series(1, 4000) i")
			// Small in the log, 100 MB when decoded: more than a portion may have of memory.
			o.exec("INSERT INTO t SELECT i, repeat('x', 100000) FROM generate_series(10000, 11000) i")
			o.exec("INSERT INTO t VALUES (0, 'after')")
			o.beat("end")
			var log bytes.Buffer
			src := NewSource(Options{URL: c.url + c.options, ID: o.id, Slot: o.name, Publication: o.name, Pull: 1, Log: slog.New(slog.NewTextHandler(&log, nil))})
			st := start(t, src, position(o.at))
			rd := newReader(t, o.at)
			n := 0
			for found := false; !found; {
				b := st.next()
				n += len(b.Changes)
				found = b.Whole() && len(b.Marks) > 0 && b.Marks[len(b.Marks)-1].Token == "end"
				rd.check.add(b)
			}
			st.stop()
			if n != 4000+1001+1 {
				t.Errorf("%d changes came", n)
			}
			if !strings.Contains(log.String(), c.reason) {
				t.Errorf("the log says %q", log.String())
			}
		})
	}
}

// A destination that takes nothing doesn't have the source's query held open for long: the stream ends as if the connection were lost, and
// the next one doesn't pull.
func TestPullHeldUp(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), simple, "t")
	want := o.backlog()
	o.until("the slot to be free", o.free)
	src := NewSource(Options{URL: o.url, ID: o.id, Slot: o.name, Publication: o.name, Pull: 1, Limits: Limits{Changes: 50}})
	src.pace.overlong = 500 * time.Millisecond
	st := start(t, src, position(o.at))
	rd := newReader(t, o.at)
	for len(rd.all) == 0 {
		rd.add(st.next(), "")
	}
	var err error
	select {
	case err = <-st.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the stream waits")
	}
	if !errors.Is(err, errOverlong) || !postgres.IsTransient(err) {
		t.Fatalf("the stream ended with %v", err)
	}
	o.until("the end of the session", func() bool { return o.copies() == 0 })
	at := rd.all[len(rd.all)-1].position
	st = start(t, src, at)
	rest := newReader(t, mustParse(t, at))
	o.until("the stream", func() bool { return !o.free() && o.copies() == 0 })
	sameTransactions(t, append(rd.all, st.until(rest, "end")...), want)
	st.stop()
}

// A stream that is behind where nothing can be gained by pulling is left alone: ended again and again, it would decode the same again each time.
func TestNotWorthPulling(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), simple, "t")
	src := NewSource(Options{URL: o.url, ID: o.id, Slot: o.name, Publication: o.name, Pull: 1 << 50})
	src.pace.farBehind, src.pace.settled = 0, 0 // always behind
	st := start(t, src, position(o.at))
	sessions := map[int32]bool{}
	for i := range 30 {
		o.beat(fmt.Sprint(i))
		st.until(newReader(t, 0), fmt.Sprint(i))
		o.until("the stream", func() bool {
			s, err := ReadSlot(o.ctx(), o.pool, o.name)
			if err == nil && s.Active {
				sessions[s.ActivePID] = true
			}
			return err == nil && s.Active
		})
	}
	st.stop()
	if len(sessions) > 2 {
		t.Errorf("%d sessions streamed", len(sessions))
	}
}

// Whatever ends a session in the middle of a portion is worth another try, which goes on where the destination stands.
func TestPullLost(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"fsync": "on"}})
	o := newOrigin(t, s.Database(t), simple, "t")
	want := o.backlog()
	proxy, through := pgtest.NewCutter(t, o.url)
	rd := newReader(t, o.at)
	at := position(o.at)
	for _, disturb := range []struct {
		name string
		do   func() error
	}{
		{"cut", func() error { proxy.Cut(); return nil }},
		{"terminated", func() error {
			_, err := o.pool.Exec(o.ctx(), "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE temporary")
			return err
		}},
		{"killed", func() error { s.Kill(); return s.Start(o.ctx()) }},
	} {
		o.until("the server", func() bool { return o.pool.Ping(o.ctx()) == nil && o.free() })
		src := NewSource(Options{URL: through, ID: o.id, Slot: o.name, Publication: o.name, Pull: 1, Limits: Limits{Changes: 50}})
		src.pace.portion, src.pace.growth = 20000, 1 // most of the backlog has yet to be asked for
		st := start(t, src, at)
		for n := len(rd.all); len(rd.all) < n+5; {
			rd.add(st.next(), "")
		}
		o.until("the copies of the slot, to be "+disturb.name, func() bool { return o.copies() == 2 })
		if err := disturb.do(); err != nil {
			t.Fatal(err)
		}
		if err := st.fails(); !postgres.IsTransient(err) {
			t.Fatalf("%s: not transient: %v", disturb.name, err)
		}
		at = rd.all[len(rd.all)-1].position
		rd.open = nil // what came of a transaction whose end didn't comes again
		rd.check = collector{t: t, last: mustParse(t, at)}
	}
	o.until("the server", func() bool { return o.pool.Ping(o.ctx()) == nil && o.free() })
	st := start(t, o.source(Limits{}), at)
	sameTransactions(t, st.until(rd, "end"), want)
	st.stop()
}

// The bytes of log between two places, and what a portion costs, follow from what the server says.
func TestStanding(t *testing.T) {
	p := &pulled{}
	row := []byte{0, 3}
	for _, lsn := range []replication.Position{"0/800", "0/100", "1/0"} {
		row = append(row, 0, 0, 0, byte(len(lsn)))
		row = append(row, lsn...)
	}
	if err := p.stands(row); err != nil || p.at != (standing{confirmed: 0x800, restart: 0x100, end: 1 << 32}) {
		t.Errorf("%+v (%v)", p.at, err)
	}
	if p.at.rest() != 1<<32-0x800 || p.at.inVain() != 0x700 {
		t.Errorf("%d, %d", p.at.rest(), p.at.inVain())
	}
	for _, bad := range [][]byte{nil, {0, 2}, row[:10], append([]byte{0, 3, 0, 0, 0, 1, 'x'}, row[2:]...)} {
		if p.stands(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
