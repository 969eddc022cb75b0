package trigger_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/replication"
	"replicator/replication/trigger"
)

// A window that stays open, because the destination is slow, keeps nobody from altering tables that it reads nothing of, though views that the
// look for drift has read refer to them.
func TestAnOpenWindowLocksOnlyItsTables(t *testing.T) {
	f := newFixture(t, few+`CREATE TABLE behind (id int PRIMARY KEY, v text); CREATE VIEW shown AS SELECT v FROM behind`)
	f.begin()
	asked := make(chan struct{})
	once := sync.OnceFunc(func() { close(asked) })
	source := trigger.NewSource(trigger.Options{URL: f.source, ID: f.id, Tables: f.names(), Drift: func(ctx context.Context, q trigger.Querier) error {
		var text string
		err := q.QueryRow(ctx, `SELECT pg_get_viewdef('public.shown'::regclass)`).Scan(&text)
		once()
		return err
	}})
	ctx, cancel := context.WithCancel(t.Context())
	out, ended := make(chan *replication.Batch), make(chan error, 1)
	position := f.beginAs(f.id)
	f.exec(`INSERT INTO parent VALUES (98)`)
	go func() { ended <- source.Stream(ctx, position, out) }()
	select {
	case <-asked:
	case err := <-ended:
		t.Fatal(err)
	}
	conn := pgtest.Connect(t, f.source)
	eventually(t, "a lock on the table that only a view shows", func() bool {
		err := pgx.BeginFunc(f.ctx(), conn, func(tx pgx.Tx) error {
			_, err := tx.Exec(f.ctx(), `LOCK TABLE behind IN ACCESS EXCLUSIVE MODE NOWAIT`)
			return err
		})
		return err == nil
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the stream ended with %v", err)
	}
}

// Somebody who publishes all tables of the source doesn't stop the capture's own housekeeping.
func TestAllTablesArePublishedBySomebody(t *testing.T) {
	f := newFixture(t, few)
	pgtest.Exec(t, f.super, `CREATE PUBLICATION everything FOR ALL TABLES`)
	f.o.UpkeepEvery = 20 * time.Millisecond
	f.begin()
	s := f.start(nil)
	f.exec(`TRUNCATE parent; INSERT INTO parent VALUES (1, 'after')`)
	s.caughtUp()
	eventually(t, "old truncations are forgotten", func() bool {
		f.exec(`INSERT INTO plain (v) VALUES ('more')`)
		s.caughtUp()
		var n int
		err := f.pool.QueryRow(f.ctx(), `SELECT count(*) FROM replicator.capture_truncated`).Scan(&n)
		return err == nil && n == 0
	})
	f.equal()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
}
