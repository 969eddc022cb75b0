package pair

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// Whoever waits for a place gets the destination to flush it: by itself this one does so every 10 s.
func TestAwaitedPlaceIsFlushed(t *testing.T) {
	everyCapture(t, func(t *testing.T, f *fixture) {
		s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s", "autovacuum": "off"}})
		f.target = s.RDSMaster(t, s.Database(t))
		pgtest.Exec(t, f.source, smallSchema)
		f.start(false)
		f.streaming()
		const times, most = 10, 4 * time.Second
		began := time.Now()
		for range times {
			ctx, cancel := context.WithTimeout(f.ctx(), 10*time.Second)
			place, err := f.pair.capture(false).beat(ctx, "test")
			if err == nil {
				err = f.pair.awaitDurable(ctx, false, place)
			}
			cancel()
			if err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(began); d > most {
			t.Errorf("%d places in turn were durable after %v, want at most %v", times, d, most)
		}
	})
}

// What a transaction writes is flushed before it ends, by a role that owns a database and nothing else; and where there is little to flush, nothing is
// written.
func TestWriterIsWoken(t *testing.T) {
	// The WAL writer looks by itself once every 10 s, and flushes what is older than that or more than 2 GB.
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s", "wal_buffers": "64MB", "autovacuum": "off", "shared_buffers": "256MB"}})
	url := s.RDSMaster(t, s.Database(t))
	connect := func(role string) *pgx.Conn {
		conn, err := postgres.Connect(t.Context(), url, postgres.Identity{Migration: "m"}, role)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeConn(t.Context(), conn) })
		return conn
	}
	apply, watch := connect("apply"), connect("watch")
	unflushed := func() (bytes int64) {
		if err := watch.QueryRow(t.Context(), `SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn())::bigint`).Scan(&bytes); err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	exec := func(sql string) {
		if _, err := apply.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE SCHEMA app; CREATE TABLE app.t (v text)`)
	exec(`BEGIN; INSERT INTO app.t SELECT repeat('x', 1000) FROM generate_series(1, 20000)`)
	const most = 2 << 20
	if n := unflushed(); n < 5*most {
		t.Fatalf("only %d bytes wait for their flush before anything was done", n)
	}
	l := &link{watch: watch, destination: &side{name: "target"}}
	began := time.Now()
	for n := unflushed(); n > most; n = unflushed() {
		if time.Since(began) > 5*time.Second {
			t.Fatalf("%d bytes wait for their flush", n)
		}
		if err := l.wakeWriter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	exec(`ROLLBACK`)
	exec(`CREATE TABLE app.flushed ()`)
	place := func() (lsn string) {
		if err := watch.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		return lsn
	}
	quiet := false
	for range 3 { // the server itself writes now and then
		before := place()
		if err := l.wakeWriter(t.Context()); err != nil {
			t.Fatal(err)
		}
		quiet = quiet || place() == before
	}
	if !quiet {
		t.Error("a message was written where there was nothing to flush")
	}
}
