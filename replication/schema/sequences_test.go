package schema

import (
	"math"
	"strings"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication/schema/schematest"
)

func TestSequences(t *testing.T) {
	s := pgtest.Shared(t)
	source, target := s.Database(t), s.Database(t)
	pgtest.Exec(t, source, schematest.Everything, schematest.Rows)
	pgtest.Exec(t, target, schematest.Everything)
	from, to := connect(t, source), connect(t, target)
	origin, err := ReadSequences(testContext(t), from)
	if err != nil {
		t.Fatal(err)
	}
	next := func(name string) (v int64) {
		t.Helper()
		if err := to.QueryRow(testContext(t), "SELECT nextval($1::text::regclass)", name).Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	for range 2 { // a repetition adds no second margin
		if err := SetSequences(testContext(t), to, origin, 100); err != nil {
			t.Fatal(err)
		}
	}
	// users: 1000, 1002, …, 1598 handed out; downward handed out 95; orders with CACHE 10 reserved 600; circle has no room for a margin.
	for name, want := range map[string]int64{
		"app.users_id_seq": 1598 + 2*100 + 2, "app.downward": 95 - 5*100 - 5, "app.orders_id_seq": 604 + 100 + 1, "app.circle": 2, "app.untouched": 1,
	} {
		if got := next(name); got != want {
			t.Errorf("the next value of %s is %d, want %d", name, got, want)
		}
	}
	// A destination that is ahead stays.
	pgtest.Exec(t, target, "SELECT setval('app.users_id_seq', 9000), setval('app.downward', -900), setval('app.untouched', 1, true)")
	if err := SetSequences(testContext(t), to, origin, 100); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int64{"app.users_id_seq": 9002, "app.downward": -905, "app.untouched": 2} {
		if got := next(name); got != want {
			t.Errorf("ahead: the next value of %s is %d, want %d", name, got, want)
		}
	}
	pgtest.Exec(t, target, "DROP SEQUENCE app.untouched")
	if err := SetSequences(testContext(t), to, origin, 100); err == nil || !strings.Contains(err.Error(), "app.untouched") {
		t.Errorf("a missing sequence: %v", err)
	}
}

func TestSequenceMarginStaysInBounds(t *testing.T) {
	for _, c := range []struct {
		s    Sequence
		want int64
	}{
		{Sequence{LastValue: 10, IsCalled: true, Increment: 3, Min: 1, Max: 40}, 40},
		{Sequence{LastValue: 11, IsCalled: true, Increment: 3, Min: 1, Max: 40}, 11},
		{Sequence{LastValue: 10, IsCalled: false, Increment: 3, Min: 1, Max: 100}, 10},
		{Sequence{LastValue: math.MaxInt64 - 5, IsCalled: true, Increment: 1, Min: 1, Max: math.MaxInt64}, math.MaxInt64 - 5},
		{Sequence{LastValue: math.MinInt64 + 5, IsCalled: true, Increment: -1, Min: math.MinInt64, Max: -1}, math.MinInt64 + 5},
		{Sequence{LastValue: 0, IsCalled: true, Increment: math.MinInt64, Min: math.MinInt64, Max: math.MaxInt64}, 0},
		{Sequence{LastValue: math.MinInt64, IsCalled: true, Increment: math.MaxInt64 / 10, Min: math.MinInt64, Max: math.MaxInt64}, math.MinInt64 + math.MaxInt64/10*10},
	} {
		if got := c.s.advance(10); got != c.want {
			t.Errorf("%+v: %d, want %d", c.s, got, c.want)
		}
	}
}

func TestThousandsOfSequences(t *testing.T) {
	s := pgtest.Shared(t)
	db := s.Database(t)
	pgtest.Exec(t, db, "DO $$ BEGIN FOR i IN 1..2500 LOOP EXECUTE format('CREATE SEQUENCE public.s%s', i); END LOOP; PERFORM setval('s7', 70); END $$")
	list, err := ReadSequences(testContext(t), connect(t, db))
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, q := range list {
		sum += q.LastValue
	}
	if len(list) != 2500 || sum != 2499+70 {
		t.Errorf("%d sequences, sum %d", len(list), sum)
	}
}
