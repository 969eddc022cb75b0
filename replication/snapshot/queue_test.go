package snapshot

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

func sized(name string, bytes, indexes int64) replication.Table {
	return replication.Table{Name: replication.TableName{Schema: "public", Name: name}, Columns: []replication.Column{{Name: "id"}}, Bytes: bytes, Pages: bytes / 8192, IndexBytes: indexes}
}

// What takes longest comes first, parts of a table before other tables, jobs as soon as they can be done, but by half of the workers only as
// long as there is something to copy, and in their order.
func TestQueueOrder(t *testing.T) {
	const mb = 1 << 20
	tables := []replication.Table{sized("small", mb, 0), sized("indexed", 300*mb, 200*mb), sized("large", 900*mb, 0)}
	b := newBounds(Options{Workers: 4}, tidRangeScans, tables)
	q := newQueue(4, tables, b)
	var said []string
	job := func(name string) Job {
		return func(context.Context, *pgx.Conn) error { said = append(said, name); return nil }
	}
	take := func(want string) work {
		t.Helper()
		w, ok := q.take()
		got := "nothing"
		switch {
		case !ok:
		case w.table != nil:
			got = w.table.Name.Name
		case w.part != nil:
			got = "part of " + w.part.of.table.Name.Name
		default:
			said = nil
			if err := w.job(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			got = "job " + strings.Join(said, "")
		}
		if got != want {
			t.Fatalf("took %s, want %s", got, want)
		}
		if ok {
			q.busy++
		}
		return w
	}
	first := take("indexed")
	take("large")
	take("nothing") // its parts are about to come
	s := &split{table: tables[2], unbegun: 3}
	q.addParts(s.cut(3))
	take("part of large")
	q.addChain(Chain{{job("key")}, {job("index a"), job("index b"), job("index c")}}, 9)
	q.done(first)
	key := take("job key")
	p := take("part of large")
	q.done(key)
	a := take("job index a")
	take("job index b")
	take("part of large")
	q.giveBack(p.part)
	take("small") // nobody but its leader takes a part that was given back
	if got, ok, err := q.nextPart(t.Context(), s); err != nil || !ok || got != p.part {
		t.Errorf("the leader got %v, %v, %v", got, ok, err)
	}
	take("job index c") // nothing is left to copy
	take("nothing")
	q.addChain(Chain{nil, {job("late")}}, 1)
	q.done(a)
	take("job late")
}

// Every page is in exactly one part, and the last has no end.
func TestPartsCoverTheTable(t *testing.T) {
	for _, n := range []int64{1, 2, 7, 100} {
		s := &split{table: replication.Table{Pages: 100}}
		next := int64(0)
		for i, p := range s.cut(n) {
			last := i == int(n)-1
			if p.from != next || (p.to == 0) != last || !last && p.to <= p.from {
				t.Errorf("%d parts: part %d is [%d, %d)", n, i, p.from, p.to)
			}
			next = p.to
		}
	}
	b := newBounds(Options{Workers: 4}, tidRangeScans, nil)
	if n := b.parts(sized("a", 1<<30, 0)); n < 4 {
		t.Errorf("a gigabyte in %d parts", n)
	}
	if n := newBounds(Options{Workers: 4}, tidRangeScans-1, nil).parts(sized("a", 1<<30, 0)); n != 1 {
		t.Errorf("%d parts on a server that can't read ranges", n)
	}
}
