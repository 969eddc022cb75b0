package probe

import (
	"testing"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication/state"
)

// The state that a run of this migration left before it made anything is no obstacle; that of another migration is.
func TestTargetState(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.users (id bigint PRIMARY KEY)")
	id := postgres.Identity{Migration: "probe", Pair: "main"}
	pool, err := postgres.Pool(t.Context(), dst, id, "state", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := state.Ensure(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	check(t, options(src, dst))
	pgtest.Exec(t, dst, "INSERT INTO replicator.migration (name) VALUES ('probe')")
	check(t, options(src, dst))
	pgtest.Exec(t, dst, "INSERT INTO replicator.migration (name) VALUES ('other')")
	check(t, options(src, dst), "target/target-state=error")
}
