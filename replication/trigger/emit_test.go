package trigger

import (
	"context"
	"testing"
	"testing/synctest"

	"replicator/replication"
)

// A piece that isn't full goes out if its receiver waits for it, and grows until it is full where the receiver is busy; a window that must stay
// whole does so.
func TestWhoeverWaitsGetsAPieceEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := make(chan *replication.Batch)
		e := emitter{limits: Limits{Changes: 100, Bytes: 1 << 20, Piece: 45, Early: 10}, out: out}
		e.fresh()
		add := func(n int) {
			t.Helper()
			for range n {
				if err := e.add(context.Background(), func(*replication.Batch) replication.Change { return replication.Change{Op: replication.Insert} }); err != nil {
					t.Error(err)
				}
			}
		}
		var got []*replication.Batch
		receive := func() {
			go func() { got = append(got, <-out) }()
			synctest.Wait() // it waits
		}
		add(35)
		if e.sent || len(e.batch.Changes) != 35 {
			t.Fatalf("%d changes are left of 35 while nobody waits", len(e.batch.Changes))
		}
		receive()
		add(5)
		if e.sent {
			t.Fatal("a piece went out before it was known that there is a change after it")
		}
		add(1)
		synctest.Wait()
		if len(got) != 1 || len(got[0].Changes) != 40 || !got[0].First || got[0].Last || len(e.batch.Changes) != 1 {
			t.Fatalf("got %d pieces, want one of 40 changes, the first and not the last; %d changes are left, want 1", len(got), len(e.batch.Changes))
		}
		receive()
		add(10)
		synctest.Wait()
		if len(got) != 2 || len(got[1].Changes) != 10 || got[1].First || got[1].Last {
			t.Fatalf("got %d pieces, want another one of 10 changes, neither the first nor the last", len(got))
		}
		e = emitter{limits: e.limits, out: out}
		e.fresh()
		receive()
		table := &captured{shape: &shape{relation: &replication.Relation{OID: 1}}}
		e.announce([]*captured{table})
		synctest.Wait()
		if len(got) != 3 || len(got[2].Tables) != 1 || got[2].Tables[0] != table.shape.relation || !got[2].First || got[2].Last || len(e.batch.Tables) != 0 {
			t.Fatalf("got %d pieces, want another one that begins a window and tells its table", len(got))
		}
		e.whole = true
		receive()
		add(50)
		if len(got) != 3 {
			t.Error("a window that must stay whole went out in pieces")
		}
		out <- e.batch
		e = emitter{limits: e.limits, out: out}
		e.fresh()
		done := make(chan struct{})
		go func() { add(46); close(done) }()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("a piece grew beyond what it may hold while nobody took it")
		default:
		}
		if full := <-out; len(full.Changes) != 45 || full.Last {
			t.Errorf("a piece of %d changes went out, want 45", len(full.Changes))
		}
		<-done
	})
}
