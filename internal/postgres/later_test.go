package postgres

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/pgtest"
)

// No timeout that the application's role or database has by ALTER cuts a session of ours, on servers that know it; those that don't are no
// obstacle.
func TestNoTimeoutOfTheApplicationsCutsUs(t *testing.T) {
	for _, c := range []struct {
		version  int
		database []string
		role     []string
	}{
		{13, []string{"statement_timeout", "lock_timeout"}, []string{"idle_in_transaction_session_timeout"}},
		{15, []string{"statement_timeout", "idle_session_timeout"}, []string{"idle_in_transaction_session_timeout"}},
		{18, []string{"statement_timeout", "idle_session_timeout"}, []string{"idle_in_transaction_session_timeout", "transaction_timeout"}},
	} {
		s := pgtest.Start(t, pgtest.Options{Version: c.version})
		db := s.Database(t)
		url := s.LogicalOwner(t, db)
		for _, name := range c.database {
			pgtest.Exec(t, db, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET "+name+" = ''1s''', current_database()); END $$")
		}
		for _, name := range c.role {
			pgtest.Exec(t, url, "ALTER ROLE current_user SET "+name+" = '1s'")
		}
		ctx := context.Background()
		id := Identity{Migration: "m", Pair: "p"}
		conn, err := Connect(ctx, url, id, "test")
		if err != nil {
			t.Fatalf("PostgreSQL %d: %v", c.version, err)
		}
		defer conn.Close(ctx)
		replicating, err := ConnectReplication(ctx, url, id, "test")
		if err != nil {
			t.Fatalf("PostgreSQL %d: %v", c.version, err)
		}
		defer replicating.Close(ctx)
		pool, err := Pool(ctx, url, id, "test", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		pooled, err := pool.Acquire(ctx)
		if err != nil {
			t.Fatalf("PostgreSQL %d: %v", c.version, err)
		}
		defer pooled.Release()
		for what, conn := range map[string]*pgconn.PgConn{"session": conn.PgConn(), "replication": replicating, "pool": pooled.Conn().PgConn()} {
			for _, name := range append(c.database, c.role...) {
				results, err := conn.Exec(ctx, "SHOW "+name).ReadAll()
				if err != nil {
					t.Fatalf("PostgreSQL %d, %s: %s: %v", c.version, what, name, err)
				}
				if got := string(results[0].Rows[0][0]); got != "0" {
					t.Errorf("PostgreSQL %d, %s: %s is %s", c.version, what, name, got)
				}
			}
		}
	}
}

func TestMajor(t *testing.T) {
	for version, want := range map[string]int{"13.23": 13, "18beta1": 18, "17.2 (Debian 17.2-1)": 17, "16": 16, "": 0, "x": 0} {
		if got := major(version); got != want {
			t.Errorf("major(%q) = %d, want %d", version, got, want)
		}
	}
}
