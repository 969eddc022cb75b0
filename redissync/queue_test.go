package redissync

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func ids(es []*entry) (out []string) {
	for _, e := range es {
		out = append(out, fmt.Sprint(e.id.db, e.id.key))
	}
	return out
}

func takeAll(t *testing.T, q *queue) []*entry {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	es, _ := q.take(ctx, 100)
	return es
}

func finish(q *queue, es ...*entry) { q.done(es, make([]time.Duration, len(es))) }

func TestQueueHandsAKeyToOneWorkerAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a, b := keyID{0, "a"}, keyID{0, "b"}
		q.mark(a, b, a, a)
		first := takeAll(t, q)
		if got := fmt.Sprint(ids(first)); got != "[0a 0b]" {
			t.Fatal(got)
		}
		q.mark(a)
		q.mark(a)
		if es := takeAll(t, q); len(es) != 0 {
			t.Fatalf("handed out %v while in flight", ids(es))
		}
		if s := q.state(); s.pending != 3 {
			t.Fatalf("pending %d, want 2 in flight and 1 waiting", s.pending)
		}
		finish(q, first...)
		again := takeAll(t, q)
		if got := fmt.Sprint(ids(again)); got != "[0a]" {
			t.Fatalf("came back: %s", got)
		}
		finish(q, again...)
		if s := q.state(); s.pending != 0 || s.first != 0 {
			t.Fatalf("left: %+v", s)
		}
	})
}

func TestQueueAwaitCoversMarksMadeInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a := keyID{0, "a"}
		q.mark(a)
		first := takeAll(t, q)
		q.mark(a)
		seq := q.state().last
		done := make(chan error, 1)
		go func() { done <- q.await(t.Context(), seq) }()
		finish(q, first...)
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("await returned before the second mark was copied")
		default:
		}
		second := takeAll(t, q)
		q.mark(a) // later than the call: not waited for
		finish(q, second...)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestQueueGivesBackInOrderAndDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a, b := keyID{0, "a"}, keyID{0, "b"}
		q.mark(a)
		first := takeAll(t, q)
		q.mark(b)
		q.mark(a)
		q.back(first, 0)
		if got := fmt.Sprint(ids(takeAll(t, q))); got != "[0a 0b]" {
			t.Fatalf("after back: %s", got)
		}
		q = newQueue()
		q.mark(a)
		q.back(takeAll(t, q), time.Second)
		if es := takeAll(t, q); len(es) != 0 {
			t.Fatal("handed out before its delay")
		}
		start := time.Now()
		es, err := q.take(t.Context(), 1)
		if d := time.Since(start); err != nil || len(es) != 1 || d < 900*time.Millisecond {
			t.Fatalf("after %v: %v, %v", d, ids(es), err)
		}
	})
}

func TestQueueRestsCostlyKeysUnlessInAHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a := keyID{0, "a"}
		q.mark(a)
		q.done(takeAll(t, q), []time.Duration{time.Minute})
		q.mark(a)
		if es := takeAll(t, q); len(es) != 0 {
			t.Fatal("a resting key was handed out")
		}
		if q.state().pending != 1 {
			t.Fatal("a resting key isn't pending")
		}
		q.rush(true)
		es := takeAll(t, q)
		if len(es) != 1 {
			t.Fatal("a drain waits for a resting key")
		}
		finish(q, es...)
	})
}

func TestQueueResolvesNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.markName([]string{"x", "y"}, []int{0})
		q.markName([]string{"x"}, []int{0, 2})
		e := q.unresolved()
		if len(e.names) != 2 || fmt.Sprint(e.dbs) != "[0]" {
			t.Fatalf("batch %+v", e)
		}
		q.markName([]string{"z"}, []int{0, 2}) // opens another batch
		q.resolved(e, []int{2, 3})
		got := map[string]bool{}
		es := takeAll(t, q)
		for _, id := range ids(es) {
			got[id] = true
		}
		if len(got) != 8 || !got["3x"] || !got["3y"] || !got["2y"] || got["3z"] {
			t.Fatalf("dirty: %v", got)
		}
		finish(q, es...)
		if q.state().first == 0 {
			t.Fatal("names that await their databases don't count as pending")
		}
		q.resolved(q.unresolved(), nil)
		if q.state().first != 0 {
			t.Fatal("something is left")
		}
	})
}

func TestQueueAgeIsThatOfTheOldestGap(t *testing.T) {
	q := newQueue()
	q.mark(keyID{0, "a"})
	old := time.Now().Add(-time.Minute)
	h := q.hold(old)
	if s := q.state(); !s.oldest.Equal(old) || s.key == 0 {
		t.Fatalf("%+v", s)
	}
	q.drop(h)
	if s := q.state(); time.Since(s.oldest) > time.Second {
		t.Fatalf("%+v", s)
	}
}

// TestQueueNeverLosesAMark drives the queue as feeds and workers do: whatever the interleaving, a key's last copy starts after its
// last mark.
func TestQueueNeverLosesAMark(t *testing.T) {
	seed := testSeed(t)
	q := newQueue()
	const keys = 20
	var mu sync.Mutex
	marked, copied := map[keyID]int{}, map[keyID]int{}
	ctx, cancel := context.WithCancel(t.Context())
	var workers, feeds sync.WaitGroup
	for w := range 4 {
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		workers.Go(func() {
			for {
				es, err := q.take(ctx, 1+r.IntN(5))
				if err != nil {
					return
				}
				read := map[keyID]int{}
				mu.Lock()
				for _, e := range es {
					read[e.id] = marked[e.id]
				}
				mu.Unlock()
				if r.IntN(4) == 0 {
					q.back(es, time.Duration(r.IntN(2))*time.Millisecond)
					continue
				}
				mu.Lock()
				for id, n := range read {
					if n < copied[id] {
						t.Errorf("%v: an older copy overtook a newer one", id)
					}
					copied[id] = n
				}
				mu.Unlock()
				rests := make([]time.Duration, len(es))
				for i := range rests {
					rests[i] = time.Duration(r.IntN(2)) * time.Millisecond
				}
				q.done(es, rests)
			}
		})
	}
	for w := range 3 {
		r := rand.New(rand.NewPCG(seed, 100+uint64(w)))
		feeds.Go(func() {
			for range 5000 {
				id := keyID{r.IntN(2), fmt.Sprint(r.IntN(keys))}
				mu.Lock()
				marked[id]++
				mu.Unlock()
				q.mark(id)
			}
		})
	}
	feeds.Wait()
	wait, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if err := q.await(wait, q.state().last); err != nil {
		t.Fatalf("never empty: %+v", q.state())
	}
	cancel()
	workers.Wait()
	for id, n := range marked {
		if copied[id] != n {
			t.Errorf("%v: marked %d times, last copied at %d", id, n, copied[id])
		}
	}
}

func TestQueueRestsCostlyKeysUnlessSomebodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		a := keyID{0, "a"}
		q.mark(a)
		q.done(takeAll(t, q), []time.Duration{10 * time.Second})
		q.mark(a)
		if es := takeAll(t, q); len(es) != 0 {
			t.Fatal("taken before its rest was over")
		}
		q.hasten()
		es := takeAll(t, q)
		if len(es) != 1 {
			t.Fatal("not taken though somebody waits")
		}
		// One that was marked while in flight is waited for as well.
		q.mark(a)
		q.hasten()
		q.done(es, []time.Duration{10 * time.Second})
		if es = takeAll(t, q); len(es) != 1 {
			t.Fatal("the second mark rests though somebody waits")
		}
		q.done(es, []time.Duration{10 * time.Second})
		q.mark(a) // later than the wait
		if es := takeAll(t, q); len(es) != 0 {
			t.Fatal("what nobody waits for was taken before its rest was over")
		}
		started := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if es, err := q.take(ctx, 1); err != nil || len(es) != 1 || time.Since(started) < 9*time.Second {
			t.Fatalf("%v, %v after %v", ids(es), err, time.Since(started))
		}
	})
}

func TestRestIsInProportionToTheCost(t *testing.T) {
	for _, c := range []struct {
		size int64
		took time.Duration
		want time.Duration
	}{{costly, 0, time.Millisecond}, {costly, 5 * time.Millisecond, 20 * time.Millisecond}, {200 << 20, 3 * time.Second, 12 * time.Second}, {1 << 30, time.Minute, 30 * time.Second}} {
		if got := restAfter(c.size, c.took); got != c.want {
			t.Errorf("%d bytes in %v: rests %v, want %v", c.size, c.took, got, c.want)
		}
	}
}

func TestQueueServesThoseWhoWaitForAKeyFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		for i := range 200 {
			q.mark(keyID{0, fmt.Sprint(i)})
		}
		wanted := []keyID{{0, "5"}, {0, "199"}}
		busy := takeAll(t, q) // one of the two is in somebody's hands, and marked again
		q.mark(wanted...)
		seq := q.state().last
		done := make(chan error, 1)
		go func() { done <- q.awaitOf(t.Context(), wanted, seq) }()
		synctest.Wait()
		finish(q, busy...)
		for range 4 { // whatever else is dirty, and becomes so all the time
			es, err := q.take(t.Context(), 1)
			if err != nil {
				t.Fatal(err)
			}
			finish(q, es...)
			q.mark(es[0].id)
		}
		synctest.Wait()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatal("two keys weren't served among the first four")
		}
	})
}

func TestQueueWaitsForKeysOfADatabaseThatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue()
		q.markName([]string{"a"}, []int{0})
		seq := q.state().last
		q.mark(keyID{0, "later"})
		finish(q, takeAll(t, q)...)
		q.resolved(q.unresolved(), []int{7})
		done := make(chan error, 1)
		go func() { done <- q.await(t.Context(), seq) }()
		synctest.Wait()
		select {
		case <-done:
			t.Fatal("await returned before the key was copied in the database that was found out")
		default:
		}
		finish(q, takeAll(t, q)...)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
