package snapshot

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/replication"
	"replicator/replication/logical"
	"replicator/replication/schema"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

// captured is a way to learn what is written, as the seam needs it.
type captured interface {
	// prepare makes what rounds of that number need, before anybody writes; it returns where each begins.
	prepare(rounds int) []replication.Position
	// cover captures these tables from now on.
	cover(tables []replication.TableName)
	// source reads a round.
	source(round int, tables []replication.TableName, seams map[replication.TableName]replication.Seam) replication.Source
	// now covers everything that a stream may have delivered by now, visible or not.
	now() replication.Position
}

// captures is the table of them.
var captures = []struct {
	name  string
	owner func(*pgtest.Server, pgtest.TB, string) string
	make  func(*world) captured
}{
	{"logical", (*pgtest.Server).LogicalOwner, func(w *world) captured { return bySlot{w} }},
	{"trigger", (*pgtest.Server).HerokuOwner, func(w *world) captured { return byTrigger{w} }},
}

// bySlot has a slot for each round.
type bySlot struct{ *world }

func (c bySlot) slot(round int) string { return fmt.Sprintf("replicator_test_%d", round) }

func (c bySlot) prepare(rounds int) (out []replication.Position) {
	for i := range rounds {
		lsn, err := logical.CreateSlot(c.ctx(), c.world.source, c.id, c.pool, c.slot(i), nil)
		if err != nil {
			c.t.Fatal(err)
		}
		out = append(out, logical.FormatPosition(lsn))
	}
	return out
}

func (c bySlot) cover(tables []replication.TableName) {
	if err := logical.EnsurePublication(c.ctx(), c.pool, "replicator_test", tables); err != nil {
		c.t.Fatal(err)
	}
}

func (c bySlot) source(round int, _ []replication.TableName, seams map[replication.TableName]replication.Seam) replication.Source {
	return logical.NewSource(logical.Options{URL: c.world.source, ID: c.id, Slot: c.slot(round), Publication: "replicator_test", Seams: seams, Pull: []int64{1, -1}[round%2]})
}

func (c bySlot) now() (p replication.Position) {
	if err := c.pool.QueryRow(c.ctx(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// byTrigger has one change log, which keeps everything: rounds are read again from their beginning.
type byTrigger struct{ *world }

func (c byTrigger) prepare(rounds int) []replication.Position {
	p, err := trigger.Begin(c.ctx(), c.pool, c.id)
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.Repeat([]replication.Position{p}, rounds)
}

func (c byTrigger) cover(tables []replication.TableName) {
	all, err := schema.Tables(c.ctx(), c.pool, schema.Filter{})
	if err != nil {
		c.t.Fatal(err)
	}
	all = slices.DeleteFunc(all, func(t replication.Table) bool { return !slices.Contains(tables, t.Name) })
	if _, err := trigger.Install(c.ctx(), c.pool, nil, all); err != nil {
		c.t.Fatal(err)
	}
}

func (c byTrigger) source(_ int, tables []replication.TableName, seams map[replication.TableName]replication.Seam) replication.Source {
	return trigger.NewSource(trigger.Options{URL: c.world.source, ID: c.id, Tables: tables, Seams: seams, UpkeepEvery: time.Hour})
}

func (c byTrigger) now() replication.Position {
	o, err := trigger.Observe(c.ctx(), c.pool)
	if err != nil {
		c.t.Fatal(err)
	}
	return o.Position
}

// read hears the stream from a place until one beyond the other, or until the token; it returns the place reached.
func (w *world) read(src replication.Source, from, to replication.Position, token string, each func(replication.Change)) replication.Position {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan *replication.Batch), make(chan error, 1)
	go func() { done <- src.Stream(ctx, from, out) }()
	defer func() { cancel(); <-done }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if s, ok := src.(interface{ Nudge() }); ok {
				s.Nudge()
			}
		case err := <-done:
			done <- nil
			w.t.Fatalf("the stream ended: %v", err)
		case b := <-out:
			for _, c := range b.Changes {
				each(c)
			}
			if token != "" {
				if b.Token() == token {
					return b.Position
				}
				continue
			}
			if !b.Last {
				continue // a piece has no position
			}
			reached, err := src.Reached(b.Position, to)
			if err != nil {
				w.t.Fatal(err)
			}
			if reached {
				return b.Position
			}
		}
	}
}

// model is the rows of the tables by their keys, as a copy and the stream after it make them.
type model map[string]map[string]string

func (m model) apply(c replication.Change) error {
	if c.Op == replication.Truncate {
		for _, r := range c.Truncated {
			if m[r.Name.Name] != nil {
				clear(m[r.Name.Name])
			}
		}
		return nil
	}
	rows := m[c.Relation.Name.Name]
	if rows == nil {
		return nil
	}
	gone := c.Old
	if gone == nil && c.Op == replication.Update {
		gone = c.New // under its key
	}
	if gone != nil {
		key := string(gone[0].Data)
		was, there := rows[key]
		if !there {
			return fmt.Errorf("%s of %s: the row %s isn't there: an earlier change was lost", c.Op, c.Relation.Name, key)
		}
		if c.Old != nil && c.Old[1].Kind != replication.Absent && was != text(c.Old) {
			return fmt.Errorf("%s of %s: the row was %s, not %s: an earlier change was lost", c.Op, c.Relation.Name, text(c.Old), was)
		}
		delete(rows, key)
	}
	if c.New != nil {
		key := string(c.New[0].Data)
		if _, there := rows[key]; there {
			return fmt.Errorf("%s of %s: the row %s is there already: a change came twice", c.Op, c.Relation.Name, key)
		}
		rows[key] = text(c.New)
	}
	return nil
}

func text(values []replication.Value) string {
	var s []string
	for _, v := range values {
		s = append(s, string(v.Data))
	}
	return "(" + strings.Join(s, ",") + ")"
}

// The seam: copies of tables that are written to in every manner, taken again and again, some captured only just before, each plus the
// stream from where it stood when the copy began, make the source's contents, with no change lost and none twice.
func TestSeam(t *testing.T) {
	for _, c := range captures {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var late []string
			for i := range rounds() {
				late = append(late, fmt.Sprintf("late%d", i))
			}
			w := newWorld(t, append([]string{"a", "b"}, late...), c.owner)
			w.seam(c.make(w), []string{"a", "b"}, late)
		})
	}
}

// seam copies the early tables and one of the late ones a round.
func (w *world) seam(c captured, early, late []string) {
	w.t.Helper()
	s := pgtest.Seed(w.t)
	all := slices.Concat(early, late)
	releasing, stopReleasing := context.WithCancel(context.Background())
	var wg, rg sync.WaitGroup
	rg.Go(func() { w.release(releasing) }) // from now on: trigger capture's own commits wait for the standby too
	c.cover(named(early))
	type round struct {
		at    replication.Position
		names []string
		seams map[replication.TableName]replication.Seam
		rows  model
	}
	done := make([]round, len(late))
	for i, p := range c.prepare(len(late)) {
		done[i].at = p
	}
	writing, stop := context.WithCancel(context.Background())
	for i := range 5 {
		wg.Go(func() { w.write(writing, all, s+uint64(i)) })
	}
	finish := sync.OnceFunc(func() { stop(); wg.Wait() })
	defer func() { finish(); stopReleasing(); rg.Wait() }()
	for i := range done {
		d := &done[i]
		d.names = append(slices.Clone(early), late[i])
		target := w.target(d.names) // before all else: between the steps below no time may pass
		// The stream has passed commits that the copy's snapshot may not see yet, and transactions are open whose changes from before the
		// table was captured it will never carry.
		d.at = w.read(c.source(i, named(early), nil), d.at, c.now(), "", func(replication.Change) {})
		c.cover(named(slices.Concat(early, late[:i+1])))
		d.seams, d.rows = w.copy(target, d.names)
	}
	finish()
	if w.t.Failed() {
		return
	}
	if _, err := state.Beat(w.ctx(), w.pool, "end"); err != nil {
		w.t.Fatal(err)
	}
	for i, d := range done {
		changes := 0
		w.read(c.source(i, named(d.names), d.seams), d.at, "", "end", func(ch replication.Change) {
			changes++
			if err := d.rows.apply(ch); err != nil {
				w.t.Errorf("round %d: %v", i, err)
			}
		})
		for name, got := range d.rows {
			want := rowsOf(w.t, w.pool, name)
			if !maps.Equal(got, want) {
				w.t.Errorf("round %d: %s has %d rows, want %d", i, name, len(got), len(want))
			}
		}
		w.t.Logf("round %d: %d changes", i, changes)
	}
}

func named(names []string) (out []replication.TableName) {
	for _, n := range names {
		out = append(out, replication.TableName{Schema: "public", Name: n})
	}
	return out
}
