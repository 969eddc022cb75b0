package logical

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

func code(err error) string {
	var h *preflight.Hinted
	if errors.As(err, &h) && h.Hint != "" {
		return h.Code
	}
	return ""
}

// A slot from which nothing can be lost is good; one that is gone, invalidated, or ahead of the destination is refused by name.
func TestCheckSlotRefuses(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}})
	o := newOrigin(t, s.Database(t), `CREATE TABLE t (id int PRIMARY KEY, v text)`, "t")
	if err := CheckSlot(o.ctx(), o.pool, o.name, o.at); err != nil {
		t.Errorf("a good slot: %v", err)
	}
	if err := CheckSlot(o.ctx(), o.pool, "another", o.at); code(err) != "slot-missing" {
		t.Errorf("a missing slot: %v", err)
	}
	o.beat("x")
	o.exec("SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", o.name)
	if err := CheckSlot(o.ctx(), o.pool, o.name, o.at); code(err) != "slot-ahead" {
		t.Errorf("a slot that somebody has advanced: %v", err)
	}
	if err := CheckSlot(o.ctx(), o.pool, o.name, o.flushLSN()); err != nil {
		t.Errorf("an advanced slot, from beyond it: %v", err)
	}
	o.until("invalidated slot", func() bool {
		o.exec("INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 100000) i ON CONFLICT (id) DO UPDATE SET v = t.v || 'x'")
		o.exec("SELECT pg_switch_wal()")
		o.exec("CHECKPOINT")
		slot, err := ReadSlot(o.ctx(), o.pool, o.name)
		if err != nil {
			t.Fatal(err)
		}
		return slot.Status == "lost"
	})
	if err := CheckSlot(o.ctx(), o.pool, o.name, o.flushLSN()); code(err) != "slot-lost" {
		t.Errorf("an invalidated slot: %v", err)
	}
	st := start(t, o.source(Limits{}), position(o.at))
	if err := st.fails(); postgres.IsTransient(err) {
		t.Errorf("streaming from an invalidated slot counts as transient: %v", err)
	}
}

// While a slot is made, whoever holds it up is named, a prepared transaction too.
func TestSlotCreationNamesItsHolders(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	conn := pgtest.Connect(t, o.url+"&application_name=slowpoke")
	gid := o.name
	if _, err := conn.Exec(o.ctx(), "BEGIN; INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var heard []string
	said := func(what string) bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(strings.Join(heard, "\n"), what)
	}
	done := make(chan error, 1)
	go func() {
		_, err := CreateSlot(o.ctx(), o.url, o.id, o.pool, o.name+"_2", func(s string) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, s)
		})
		done <- err
	}()
	o.until("word of the open transaction", func() bool { return said("slowpoke") })
	if _, err := conn.Exec(o.ctx(), "PREPARE TRANSACTION '"+gid+"'"); err != nil {
		t.Fatal(err)
	}
	o.until("word of the prepared transaction", func() bool { return said("prepared transaction '" + gid + "'") })
	if _, err := conn.Exec(o.ctx(), "COMMIT PREPARED '"+gid+"'"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if heard[len(heard)-1] != "" {
		t.Errorf("the wait never ended: %q", heard)
	}
}

// A wait that is given up leaves no slot behind, while what it waited for goes on.
func TestSlotCreationGivenUp(t *testing.T) {
	o := newOrigin(t, pgtest.Shared(t).Database(t), `CREATE TABLE t (id int PRIMARY KEY)`, "t")
	conn := pgtest.Connect(t, o.url)
	if _, err := conn.Exec(o.ctx(), "BEGIN; INSERT INTO t VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(o.ctx(), time.Second)
	defer cancel()
	if _, err := CreateSlot(ctx, o.url, o.id, o.pool, o.name+"_2", nil); err == nil {
		t.Fatal("the slot was made while a transaction was open")
	}
	o.until("the half-made slot to go", func() bool {
		s, err := ReadSlot(o.ctx(), o.pool, o.name+"_2")
		return err == nil && s == nil
	})
	if _, err := conn.Exec(o.ctx(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
}

// A snapshot that is exported sees exactly the transactions that commit before its place in the stream.
func TestExportedSnapshotHasAPlace(t *testing.T) {
	s := pgtest.Seed(t)
	o := newOrigin(t, pgtest.Shared(t).Database(t), accounts, "account")
	writing, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() { writeAccounts(writing, t, o.url, s+uint64(i)) })
	}
	defer wg.Wait()
	defer stop()
	type seen struct {
		lsn  uint64
		rows string
	}
	var all []seen
	const digest = "SELECT coalesce(string_agg(id || ' ' || n || ' ' || pad, ',' ORDER BY id), '') FROM account"
	for range 5 {
		e, err := ExportSnapshot(o.ctx(), o.url, o.id, o.pool, o.name+"_export", nil)
		if err != nil {
			t.Fatal(err)
		}
		conn := pgtest.Connect(t, o.url)
		if _, err := conn.Exec(o.ctx(), "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT "+replication.QuoteLiteral(e.Snapshot)); err != nil {
			t.Fatal(err)
		}
		x := seen{lsn: e.LSN}
		if err := conn.QueryRow(o.ctx(), digest).Scan(&x.rows); err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
		e.Close(o.ctx())
	}
	stop()
	wg.Wait()
	o.beat("end")
	st := start(t, o.source(Limits{Changes: 50}), position(o.at))
	rd := newReader(t, o.at)
	for !rd.add(st.next(), "end") {
	}
	st.stop()
	for _, x := range all {
		n := 0
		for n < len(rd.all) && mustParse(t, rd.all[n].position) <= x.lsn {
			n++
		}
		rows := 0
		for range replay(t, rd.all[:n]) {
			rows++
		}
		if got := strings.Count(x.rows, ",") + 1; got != rows {
			t.Fatalf("the snapshot at %s has %d rows, the stream up to there makes %d", position(x.lsn), got, rows)
		}
		for _, k := range replay(t, rd.all[:n]) {
			var id, v int
			var pad string
			if _, err := fmt.Sscanf(k, "id=t:%d,n=t:%d,pad=t:%s", &id, &v, &pad); err != nil {
				t.Fatalf("%s: %v", k, err)
			}
			if row := fmt.Sprintf("%d %d %s", id, v, strings.TrimSuffix(pad, ",")); !strings.Contains(","+x.rows+",", ","+row+",") {
				t.Fatalf("the snapshot at %s has no row %s", position(x.lsn), row)
			}
		}
	}
}
