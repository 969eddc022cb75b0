package logical

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication"
)

const accounts = `
CREATE TABLE account (id int PRIMARY KEY, n bigint NOT NULL, pad text);
ALTER TABLE account REPLICA IDENTITY FULL;
INSERT INTO account SELECT i, 0, 'x' FROM generate_series(1, 200) i;`

// writeAccounts runs transactions of every size, with savepoints rolled back and whole transactions rolled back, until ctx ends.
func writeAccounts(ctx context.Context, t *testing.T, url string, s uint64) {
	r := rand.New(rand.NewPCG(s, 2))
	conn, err := pgx.Connect(context.WithoutCancel(ctx), url)
	if err != nil {
		t.Errorf("connect the writer: %v", err)
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for ctx.Err() == nil {
		var sql []string
		for range 1 + r.IntN(6) {
			switch r.IntN(6) {
			case 0:
				sql = append(sql, fmt.Sprintf("INSERT INTO account SELECT i, 1, repeat('y', %d) FROM generate_series(%d, %d) i ON CONFLICT DO NOTHING", r.IntN(200), 1+r.IntN(300), 301+r.IntN(40)))
			case 1:
				sql = append(sql, fmt.Sprintf("DELETE FROM account WHERE id = %d", 1+r.IntN(340)))
			case 2:
				sql = append(sql, fmt.Sprintf("SAVEPOINT s; UPDATE account SET n = -1 WHERE id = %d; ROLLBACK TO s", 1+r.IntN(340)))
			default:
				sql = append(sql, fmt.Sprintf("UPDATE account SET n = n + 1 WHERE id = %d", 1+r.IntN(340)))
			}
		}
		end := "COMMIT"
		if r.IntN(8) == 0 {
			end = "ROLLBACK"
		}
		_, err := conn.PgConn().Exec(context.WithoutCancel(ctx), "BEGIN; "+strings.Join(sql, "; ")+"; "+end).ReadAll()
		if err != nil {
			if !strings.Contains(err.Error(), "40P01") {
				t.Errorf("write: %v", err)
				return
			}
			if _, err := conn.Exec(context.WithoutCancel(ctx), "ROLLBACK"); err != nil {
				t.Errorf("roll back: %v", err)
				return
			}
		}
	}
}

// replay carries the transactions out on a model of the table and returns its rows.
func replay(t *testing.T, all []transaction) []string {
	model := map[string]string{}
	for i := range 200 {
		k := fmt.Sprintf("id=t:%d,n=t:0,pad=t:x,", i+1)
		model[k] = ""
	}
	for _, tx := range all {
		for _, c := range tx.changes {
			_, values, _ := strings.Cut(c, " account (")
			before, after, _ := strings.Cut(strings.TrimSuffix(values, ")"), ") (")
			if before != "" {
				if _, ok := model[before]; !ok {
					t.Fatalf("%s: %s doesn't fit what came before", tx.position, c)
				}
				delete(model, before)
			}
			if after != "" {
				if _, ok := model[after]; ok {
					t.Fatalf("%s: %s repeats what came before", tx.position, c)
				}
				model[after] = ""
			}
		}
	}
	out := make([]string, 0, len(model))
	for k := range model {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// Restarted from any place where a transaction ended, again and again under concurrent writers, the stream repeats exactly what came
// after that place and goes on: nothing is lost, nothing comes twice, and all of it together makes the table.
func TestRestartFromAnyMark(t *testing.T) {
	s := pgtest.Seed(t)
	r := rand.New(rand.NewPCG(s, 1))
	o := newOrigin(t, pgtest.Shared(t).Database(t), accounts, "account")
	writing, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() { writeAccounts(writing, t, o.url, s+uint64(i)) })
	}
	defer wg.Wait()
	defer stop()
	var all []transaction // as first streamed
	confirmed := o.at     // acknowledged: no restart before it
	rounds := soak(12)
	for round := range rounds {
		at, from := position(o.at), 0
		if len(all) > 0 {
			from = r.IntN(len(all) + 1)
			for from < len(all) && mustParse(t, all[from].position) <= confirmed {
				from++ // what was acknowledged isn't streamed again
			}
			if from > 0 {
				at = all[from-1].position
			}
		}
		confirmed = max(confirmed, mustParse(t, at)) // whoever starts somewhere has what lies before
		limits := Limits{Changes: 1 + r.IntN(60), Bytes: 500 + r.IntN(100000)}
		o.until("the slot to be free", o.free)
		st := start(t, o.source(limits), at)
		rd := newReader(t, mustParse(t, at))
		last := round == rounds-1
		token := fmt.Sprintf("round %d", round)
		if last {
			stop()
			wg.Wait()
		}
		o.beat(token)
		for want := r.IntN(200); ; {
			found := rd.add(st.next(), token)
			if n := len(rd.all); n > 0 && r.IntN(4) == 0 {
				p := rd.all[r.IntN(n)].position
				st.source.Acknowledge(p)
				confirmed = max(confirmed, mustParse(t, p))
			}
			if found || (!last && len(rd.all) > want && r.IntN(3) == 0) {
				break
			}
		}
		st.stop()
		for i, tx := range rd.all {
			if from+i >= len(all) {
				all = append(all, tx)
				continue
			}
			if old := all[from+i]; old.position != tx.position || !slices.Equal(old.changes, tx.changes) {
				t.Fatalf("round %d from %s: transaction %d was %v, now it is %v", round, at, from+i, old, tx)
			}
		}
	}
	got := replay(t, all)
	want := o.rows("SELECT 'id=t:' || id || ',n=t:' || n || ',pad=t:' || pad || ',' FROM account")
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("the stream makes %d rows, the table has %d", len(got), len(want))
	}
	t.Logf("%d transactions", len(all))
}

func mustParse(t *testing.T, p replication.Position) uint64 {
	t.Helper()
	lsn, err := ParsePosition(p)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// A transaction larger than the bounds comes in pieces; the transactions before and after it don't come with them.
func TestPiecesOfALargeTransaction(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	o.exec("INSERT INTO t VALUES (0, 'before')")
	o.exec("INSERT INTO t SELECT i, 'in' FROM generate_series(1, 1000) i")
	o.exec("INSERT INTO t VALUES (1001, 'after')")
	o.beat("end")
	st := start(t, o.source(Limits{Changes: 64}), position(o.at))
	rd := newReader(t, o.at)
	pieces := 0
	for {
		b := st.next()
		if !b.Whole() {
			pieces++
		}
		if len(b.Changes) > 64 {
			t.Errorf("a batch of %d changes", len(b.Changes))
		}
		if rd.add(b, "end") {
			break
		}
	}
	st.stop()
	var sizes []int
	for _, tx := range rd.all {
		sizes = append(sizes, len(tx.changes))
	}
	if !slices.Equal(sizes, []int{1, 1000, 1, 0}) || pieces < 1000/64 {
		t.Errorf("transactions of %v changes, %d pieces", sizes, pieces)
	}
	// The restart begins before the large transaction again, which was not acknowledged.
	o.until("the slot to be free", o.free)
	st = start(t, o.source(Limits{Changes: 64}), rd.all[0].position)
	again := newReader(t, mustParse(t, rd.all[0].position))
	for !again.add(st.next(), "end") {
	}
	st.stop()
	if len(again.all) != 3 || !slices.Equal(again.all[0].changes, rd.all[1].changes) {
		t.Errorf("after a restart %d transactions came", len(again.all))
	}
}

// Nobody receives for longer than the server's patience: memory stays bounded, the session survives, and everything comes later.
func TestNobodyReceives(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	o.exec("INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 60000) i") // 60 MB as one
	for i := range 300 {
		o.exec("UPDATE t SET v = $1 WHERE id <= 20", fmt.Sprint(i))
	}
	o.beat("end")
	src := NewSource(Options{URL: o.url + "&wal_sender_timeout=3s", ID: o.id, Slot: o.name, Publication: o.name, Limits: Limits{Changes: 500, Bytes: 1 << 20}, Pull: -1})
	st := start(t, src, position(o.at))
	var pid int32
	o.until("the slot's session", func() bool {
		s, err := ReadSlot(o.ctx(), o.pool, o.name)
		if err != nil {
			t.Fatal(err)
		}
		pid = s.ActivePID
		return s.Active
	})
	var setting string
	if err := o.pool.QueryRow(o.ctx(), "SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'").Scan(&setting); err != nil || setting != "60000" {
		t.Fatalf("the server's own wal_sender_timeout is %s (%v)", setting, err)
	}
	before := heap()
	for began := time.Now(); time.Since(began) < 6*time.Second; {
		select {
		case err := <-st.done:
			t.Fatalf("the stream ended while nobody received: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Fatalf("%d bytes are held while nobody receives", grown)
		}
	}
	if s, err := ReadSlot(o.ctx(), o.pool, o.name); err != nil || !s.Active || s.ActivePID != pid {
		t.Fatalf("the session didn't survive: %+v (%v)", s, err)
	}
	rd := newReader(t, o.at)
	for !rd.add(st.next(), "end") {
	}
	st.stop()
	n := 0
	for _, tx := range rd.all {
		n += len(tx.changes)
	}
	if n != 60000+300*20 {
		t.Errorf("%d changes came", n)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// free tells whether no session holds the slot, which a server notices a moment after the session has ended.
func (o *origin) free() bool {
	s, err := ReadSlot(o.ctx(), o.pool, o.name)
	return err == nil && s != nil && !s.Active
}

// until waits for a condition on the server.
func (o *origin) until(what string, ok func() bool) {
	o.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			o.t.Fatalf("no %s within 30 s", what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// Write-ahead log that concerns nobody here moves the position; what is open or still to come never lies before a position that was
// handed over, and the server forgets only what was acknowledged.
func TestIdlePositionsAndAcknowledgement(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int)`, "t")
	conn := pgtest.Connect(t, o.url)
	if _, err := conn.Exec(o.ctx(), "BEGIN; INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	st := start(t, o.source(Limits{}), position(o.at))
	last, acked := o.at, o.at
	take := func(b *replication.Batch) {
		lsn := mustParse(t, b.Position)
		if lsn <= last {
			t.Fatalf("the position went from %s to %s", position(last), b.Position)
		}
		last = lsn
	}
	confirmed := func() uint64 {
		s, err := ReadSlot(o.ctx(), o.pool, o.name)
		if err != nil || s == nil {
			t.Fatalf("read the slot: %v", err)
		}
		return s.Confirmed
	}
	for i := range 5 {
		o.exec("INSERT INTO other SELECT generate_series(1, 2000)")
		o.beat(fmt.Sprint(i))
		for end := o.flushLSN(); last < end; {
			b := st.next()
			if len(b.Changes) != 0 {
				t.Fatalf("the open transaction came: %v", write(b.Changes))
			}
			take(b)
		}
		if c := confirmed(); c > acked {
			t.Fatalf("the slot stands at %s, only %s was acknowledged", position(c), position(acked))
		}
		st.source.Acknowledge(position(last))
		acked = last
		o.until("acknowledgement", func() bool { return confirmed() == acked })
	}
	st.stop()
	if _, err := conn.Exec(o.ctx(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	o.beat("end")
	o.until("the slot to be free", o.free)
	st = start(t, o.source(Limits{}), position(last))
	rd := newReader(t, last)
	for !rd.add(st.next(), "end") {
	}
	st.stop()
	if !strings.Contains(fmt.Sprint(rd.all), "insert t () (id=t:1,)") {
		t.Errorf("the transaction that was open when the position passed it is lost: %v", rd.all)
	}
	if c := confirmed(); c > acked {
		t.Errorf("the slot moved to %s without an acknowledgement", position(c))
	}
}
