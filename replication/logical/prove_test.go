package logical

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
)

// ended waits until all transactions have ended that are open now.
func (o *origin) ended(ctx context.Context) error {
	var now int64
	if err := o.pool.QueryRow(ctx, "SELECT pg_current_xact_id()::text::bigint").Scan(&now); err != nil {
		return err
	}
	o.until("the end of open transactions", func() bool {
		var xmin int64
		err := o.pool.QueryRow(ctx, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint").Scan(&xmin)
		return err == nil && xmin > now
	})
	return nil
}

// unfortunate makes a slot in the way that servers can't decode from: a table is truncated while the server waits for the transactions that were
// open when it began, and another transaction writes to the last table once the first of them has ended, and outlasts them.
func (o *origin) unfortunate(last string) {
	o.t.Helper()
	run := func(c *pgx.Conn, sql string) {
		o.t.Helper()
		if _, err := c.PgConn().Exec(o.ctx(), sql).ReadAll(); err != nil {
			o.t.Fatalf("%s: %v", sql, err)
		}
	}
	waitsFor := func(c *pgx.Conn) {
		o.t.Helper()
		o.until("the slot's wait", func() (waits bool) {
			err := o.pool.QueryRow(o.ctx(), "SELECT coalesce(bool_or($1 = ANY (pg_blocking_pids(pid))), false) FROM pg_stat_activity WHERE application_name = $2",
				int32(c.PgConn().PID()), o.id.ApplicationName("slot")).Scan(&waits)
			return err == nil && waits
		})
	}
	first, second, third := pgtest.Connect(o.t, o.url), pgtest.Connect(o.t, o.url), pgtest.Connect(o.t, o.url)
	run(first, "BEGIN; INSERT INTO other VALUES (1)")
	done := make(chan error, 1)
	go func() {
		_, err := CreateSlot(o.ctx(), o.url, o.id, o.pool, o.name, nil)
		done <- err
	}()
	waitsFor(first)
	run(second, "BEGIN; INSERT INTO other VALUES (2)")
	run(third, "BEGIN; TRUNCATE t; INSERT INTO t VALUES (1); COMMIT")
	run(first, "COMMIT")
	waitsFor(second)
	run(third, "BEGIN; INSERT INTO "+last+" VALUES (2)")
	run(second, "COMMIT")
	if err := <-done; err != nil {
		o.t.Fatal(err)
	}
	run(third, "COMMIT")
}

// A slot that the server can't decode from is found out before anything relies on it; one that can is taken, and all that comes can be read.
func TestProveSlot(t *testing.T) {
	// A server of its own: what others commit may help or hinder.
	s := pgtest.Start(t, pgtest.Options{})
	o := newOrigin(t, s.Database(t), "CREATE TABLE t (id int); CREATE TABLE other (id int)", "t", "other")
	if err := DropSlot(o.ctx(), o.pool, o.name); err != nil {
		t.Fatal(err)
	}
	o.unfortunate("t")
	err := ProveSlot(o.ctx(), o.pool, o.name, o.name, o.ended)
	if err == nil {
		t.Log("this server decodes what others can't")
	} else if !errors.Is(err, ErrUnreadable) {
		t.Fatal(err)
	}
	if s.Version() == 15 && err == nil {
		t.Error("nothing was found out")
	}
	if err := DropSlot(o.ctx(), o.pool, o.name); err != nil {
		t.Fatal(err)
	}
	if o.at, err = CreateSlot(o.ctx(), o.url, o.id, o.pool, o.name, nil); err != nil {
		t.Fatal(err)
	}
	if err := ProveSlot(o.ctx(), o.pool, o.name, o.name, o.ended); err != nil {
		t.Fatal(err)
	}
	o.exec("TRUNCATE t")
	o.exec("INSERT INTO t VALUES (3)")
	if got := o.collect(o.source(Limits{}), o.at, "end"); len(got) != 2 {
		t.Errorf("%v came", got)
	}
}

// What comes after the proof can be read even where the slot was made in an unfortunate way, and a table was written to for the first time only
// later: without the change of the catalog the server would still go by the old one.
func TestProvenForLater(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{})
	o := newOrigin(t, s.Database(t), "CREATE TABLE t (id int); CREATE TABLE other (id int)", "t", "other")
	for _, proven := range []bool{false, true} {
		if err := DropSlot(o.ctx(), o.pool, o.name); err != nil {
			t.Fatal(err)
		}
		o.unfortunate("other")
		if proven {
			if err := ProveSlot(o.ctx(), o.pool, o.name, o.name, o.ended); err != nil {
				t.Fatal(err)
			}
		}
		o.exec("INSERT INTO t VALUES (3)")
		_, err := o.pool.Exec(o.ctx(), "SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', $2)", o.name, o.name)
		if proven && err != nil {
			t.Errorf("after the proof: %v", err)
		}
		if !proven && err == nil && s.Version() == 15 {
			t.Error("without the proof all is well")
		}
	}
}
