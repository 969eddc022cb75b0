package logical

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// soak multiplies the work of a random test when REPLICATOR_SOAK is set.
func soak(n int) int {
	if os.Getenv("REPLICATOR_SOAK") != "" {
		return 20 * n
	}
	return n
}

// The messages that a server sends, as far as the builder's tests need them.

func relationMessage(oid uint32, name string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'R'}, oid)
	b = append(b, "public\x00"+name+"\x00d\x00\x02\x01id\x00\x00\x00\x00\x17\xff\xff\xff\xff\x00v\x00\x00\x00\x00\x19\xff\xff\xff\xff"...)
	return b
}

func beginMessage(commit uint64, xid uint32) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'B'}, commit)
	b = binary.BigEndian.AppendUint64(b, 0)
	return binary.BigEndian.AppendUint32(b, xid)
}

func commitMessage(commit, end uint64) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'C', 0}, commit)
	b = binary.BigEndian.AppendUint64(b, end)
	return binary.BigEndian.AppendUint64(b, 0)
}

func insertMessage(oid uint32, id, v string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, oid)
	b = append(b, 'N', 0, 2)
	for _, s := range []string{id, v} {
		b = append(b, 't')
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// collector reads batches as an applier does and checks what every batch promises.
type collector struct {
	t      *testing.T
	ids    []string // of the rows, in order
	ends   []uint64 // of the transactions, in order
	counts []int    // rows a transaction
	last   uint64   // highest position so far
	inside bool     // between the pieces of a transaction
	open   int      // rows of the pieces so far
}

func (c *collector) add(b *replication.Batch) {
	c.t.Helper()
	if b.First == c.inside {
		c.t.Fatalf("a batch with First %v while inside a transaction: %v", b.First, c.inside)
	}
	for _, ch := range b.Changes {
		if ch.New != nil {
			c.ids = append(c.ids, string(ch.New[0].Data))
		}
	}
	if !b.Last {
		if len(b.Marks) > 0 || b.Position != "" {
			c.t.Fatalf("a piece that isn't the last carries marks %v or position %q", b.Marks, b.Position)
		}
		if len(b.Changes) == 0 {
			c.t.Fatal("an empty piece")
		}
		c.inside, c.open = true, c.open+len(b.Changes)
		return
	}
	if !b.First && len(b.Marks) != 1 {
		c.t.Fatalf("the last piece ends %d transactions", len(b.Marks))
	}
	c.inside = false
	at := -c.open
	for _, m := range b.Marks {
		end, err := ParsePosition(m.Position)
		if err != nil || end <= c.last {
			c.t.Fatalf("mark at %s after position %s (%v)", m.Position, position(c.last), err)
		}
		c.last = end
		c.ends, c.counts = append(c.ends, end), append(c.counts, m.End-at)
		at = m.End
	}
	if at = max(at, 0); at != len(b.Changes) {
		c.t.Fatalf("the marks end at %d of %d changes", at, len(b.Changes))
	}
	c.open = 0
	p, err := ParsePosition(b.Position)
	if err != nil || p < c.last || p == 0 {
		c.t.Fatalf("batch at %q after %s (%v)", b.Position, position(c.last), err)
	}
	c.last = p
}

// Whatever the order in which messages come, keepalives pass and batches are taken: every row and transaction comes out once, in order, in
// batches that keep their promises, and no position is ahead of a transaction that is still to come.
func TestBuilderInterleavings(t *testing.T) {
	s := pgtest.Seed(t)
	joined := 0
	for n := range soak(400) {
		r := rand.New(rand.NewPCG(s, uint64(n)))
		limits := Limits{Changes: 1 + r.IntN(8), Bytes: 200 + r.IntN(4000)}
		b := newBuilder(limits, 100, nil)
		c := &collector{t: t, last: 100}
		var ids []string
		var ends []uint64
		feed := func(data []byte) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if err := b.decode(data, nil, 0); err != nil {
				t.Fatal(err)
			}
		}
		// drain takes as the deliverer does; the reader goes on only within the bounds.
		var waiting *replication.Batch // nobody has received it yet
		within := func(batch *replication.Batch) {
			t.Helper()
			if len(batch.Changes) > limits.Changes || len(batch.Marks) > limits.Changes {
				t.Fatalf("%d changes and %d marks with limits %+v", len(batch.Changes), len(batch.Marks), limits)
			}
		}
		drain := func(force bool) {
			for range 4 {
				b.mu.Lock()
				full := b.full()
				b.mu.Unlock()
				if waiting != nil {
					had := len(waiting.Marks)
					b.join(waiting)
					within(waiting)
					joined += len(waiting.Marks) - had
					if !full && !force && r.IntN(2) > 0 {
						return
					}
					c.add(waiting)
					waiting = nil
					continue
				}
				if !full && !force && r.IntN(3) > 0 {
					return
				}
				batch := b.take()
				if batch == nil {
					if full {
						t.Fatal("the builder is full and gives nothing")
					}
					return
				}
				within(batch)
				if !force && r.IntN(2) > 0 {
					waiting = batch
				} else {
					c.add(batch)
				}
				b.mu.Lock()
				full = b.full()
				b.mu.Unlock()
				if !full && !force {
					return
				}
			}
		}
		advance := func(lsn uint64) {
			if r.IntN(3) == 0 {
				b.advance(pglogrepl.LSN(lsn))
			}
		}
		lsn := uint64(100)
		feed(relationMessage(1, "t"))
		for range 1 + r.IntN(12) {
			commit := lsn + 10 + uint64(r.IntN(50))
			advance(lsn + uint64(r.IntN(10)))
			drain(false)
			feed(beginMessage(commit, 7))
			rows := []int{0, 1, 1 + r.IntN(5), r.IntN(40)}[r.IntN(4)]
			for range rows {
				id := strconv.Itoa(len(ids))
				ids = append(ids, id)
				feed(insertMessage(1, id, fmt.Sprintf("%*d", r.IntN(300), 1)))
				// Keepalives within a transaction name places before its commit, or, on some servers, any place.
				advance(lsn + uint64(r.IntN(100)))
				drain(false)
			}
			lsn = commit + 8
			feed(commitMessage(commit, lsn))
			ends = append(ends, lsn)
			drain(false)
			advance(lsn)
		}
		drain(true)
		drain(true)
		if fmt.Sprint(c.ids) != fmt.Sprint(ids) || fmt.Sprint(c.ends) != fmt.Sprint(ends) || c.inside {
			t.Fatalf("case %d: rows %v ends %v, want %v and %v", n, c.ids, c.ends, ids, ends)
		}
	}
	if joined == 0 {
		t.Error("no transaction joined a batch that waited")
	}
}

// Nobody receives: the reader waits, whether the stream is of rows or of transactions without any; when somebody receives again it goes on.
func TestBuilderBackPressure(t *testing.T) {
	for name, rows := range map[string]int{"rows": 1, "empty transactions": 0, "one large transaction": 1000} {
		t.Run(name, func(t *testing.T) {
			limits := Limits{Changes: 10, Bytes: 1 << 20}
			b := newBuilder(limits, 100, nil)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			fed := make(chan error, 1)
			transactions := 1000 / max(rows, 1)
			go func() {
				err := b.add(ctx, relationMessage(1, "t"))
				for i := range transactions {
					lsn := uint64(1000 + 100*i)
					for _, m := range [][]byte{beginMessage(lsn, 7), nil, commitMessage(lsn, lsn+8)} {
						if m != nil && err == nil {
							err = b.add(ctx, m)
						}
						for j := 0; m == nil && j < rows && err == nil; j++ {
							err = b.add(ctx, insertMessage(1, strconv.Itoa(i*rows+j), "v"))
						}
					}
				}
				fed <- err
			}()
			// The reader stops by itself.
			for {
				b.mu.Lock()
				full, changes, marks := b.full(), len(b.cur.Changes), len(b.cur.Marks)
				b.mu.Unlock()
				if changes > limits.Changes || marks > limits.Changes {
					t.Fatalf("%d changes and %d marks are held", changes, marks)
				}
				if full {
					break
				}
				select {
				case err := <-fed:
					t.Fatalf("the reader never waited (%v)", err)
				case <-time.After(time.Millisecond):
				}
			}
			out := make(chan *replication.Batch)
			delivering, stop := context.WithCancel(ctx)
			done := make(chan error, 1)
			go func() { done <- deliver(delivering, b, out) }()
			c := &collector{t: t, last: 100}
			for len(c.ends) < transactions {
				select {
				case batch := <-out:
					c.add(batch)
				case <-ctx.Done():
					t.Fatalf("%d transactions of %d came through", len(c.ends), transactions)
				}
			}
			stop()
			<-done
			if err := <-fed; err != nil {
				t.Fatal(err)
			}
			if len(c.ids) != transactions*rows {
				t.Errorf("%d rows, want %d", len(c.ids), transactions*rows)
			}
		})
	}
}

// A batch for which nobody is ready takes in what comes meanwhile.
func TestABatchGrowsWhileItWaits(t *testing.T) {
	b := newBuilder(DefaultLimits, 100, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, done := make(chan *replication.Batch), make(chan error, 1)
	go func() { done <- deliver(ctx, b, out) }()
	const transactions = 50
	for i := range uint64(transactions) {
		for _, m := range [][]byte{relationMessage(1, "t"), beginMessage(110+10*i, 7), insertMessage(1, strconv.FormatUint(i, 10), "v"), commitMessage(110+10*i, 112+10*i)} {
			if err := b.add(ctx, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The deliverer has nothing to take any more once it has seen the last one.
	for empty := false; !empty; {
		b.mu.Lock()
		empty = len(b.cur.Marks) == 0
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			t.Fatal("what has come stays behind while a batch waits")
		case <-time.After(time.Millisecond):
		}
	}
	c := &collector{t: t, last: 100}
	c.add(<-out)
	if len(c.ends) != transactions {
		t.Errorf("%d transactions came at once, want %d", len(c.ends), transactions)
	}
	cancel()
	<-done
}

// A table that is described again as it was is the same relation; another description is another one.
func TestBuilderRepeatedDescription(t *testing.T) {
	b := newBuilder(DefaultLimits, 0, nil)
	ctx := context.Background()
	for i, m := range [][]byte{
		relationMessage(1, "t"), beginMessage(100, 7), insertMessage(1, "1", "a"), relationMessage(1, "t"), insertMessage(1, "2", "b"),
		relationMessage(1, "renamed"), insertMessage(1, "3", "c"), commitMessage(100, 108),
	} {
		if err := b.add(ctx, m); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	c := b.take().Changes
	if c[0].Relation != c[1].Relation {
		t.Error("the same description made another relation")
	}
	if c[1].Relation == c[2].Relation || c[2].Relation.Name.Name != "renamed" || c[0].Relation.Name.Name != "t" {
		t.Error("a new description changed the relation of earlier changes")
	}
}

// A stream that goes back is refused.
func TestBuilderRefusesToGoBack(t *testing.T) {
	b := newBuilder(DefaultLimits, 500, nil)
	ctx := context.Background()
	if err := b.add(ctx, beginMessage(400, 7)); err != nil {
		t.Fatal(err)
	}
	if err := b.add(ctx, commitMessage(400, 408)); err == nil {
		t.Error("a transaction from before the start was taken")
	}
}
