package trigger_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/replication/schema"
	"replicator/replication/trigger"
)

// A vacuum against wraparound is neither cancelled nor waited for in the table's queue, where all writers would wait behind us.
func TestInstallStepsAsideForWraparoundVacuum(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"autovacuum_naptime": "1s"}})
	f := newFixtureOn(t, s, `CREATE TABLE old (id int PRIMARY KEY, pad text) WITH (autovacuum_enabled = off, autovacuum_freeze_max_age = 100000, autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1); INSERT INTO old SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i`)
	execAll(t, f.super, []string{`CREATE PROCEDURE burn() LANGUAGE plpgsql AS 'BEGIN FOR i IN 1..110000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END'`, `CALL burn()`})
	const vacuumSQL = `SELECT count(*) FROM pg_stat_activity WHERE query ~ '^autovacuum: .*public.old.*wraparound'`
	count := func() (n int) {
		if err := f.pool.QueryRow(t.Context(), vacuumSQL).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the vacuum runs", func() bool { return count() == 1 })
	tables, err := schema.Tables(f.ctx(), f.pool, schema.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := trigger.Install(ctx, f.pool, nil, tables)
		done <- err
	}()
	conn := pgtest.Connect(t, f.source)
	var longest time.Duration
	for i := 0; ctx.Err() == nil; i++ {
		began := time.Now()
		if _, err := conn.Exec(t.Context(), fmt.Sprintf("UPDATE old SET pad = 'y' WHERE id = %d", 1+i%20000)); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(began))
	}
	err = <-done
	if count() != 1 {
		t.Fatal("the vacuum has ended")
	}
	if err == nil || !strings.Contains(err.Error(), "a vacuum that must not be disturbed") {
		t.Errorf("Install: %v", err)
	}
	if longest > 2*time.Second {
		t.Errorf("a writer waited for %v", longest)
	}
}
