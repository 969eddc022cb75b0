package redissync

import (
	"container/list"
	"context"
	"slices"
	"sync"
	"time"
)

// keyID names a key of a server.
type keyID struct {
	db  int
	key string
}

// entry is one thing that the destination doesn't have yet: a dirty key, names whose database is still to be found out (names
// set), or a reconcile that has to run (neither).
type entry struct {
	id      keyID
	names   map[string]struct{}
	dbs     []int // the databases that the names are marked in already
	seq     uint64
	since   time.Time
	blocked bool // the same key is in flight: taken only when that copy has ended
	urgent  bool // somebody waits for this key: it is taken before others
	element *list.Element
}

// queue is the deduplicating set of what is dirty, in order of first marking. Marking never blocks and its memory grows with the
// number of distinct names only. A key is in one worker's hands at a time; marked again meanwhile, it comes back after.
// All methods may be called concurrently.
type queue struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced whenever something can be taken or has been done
	order    *list.List    // every pending *entry by seq
	first    []*entry      // takeable keys that somebody waits for
	ready    []*entry      // other takeable keys, oldest first
	waiting  map[keyID]*entry
	inFlight map[keyID]*entry
	delayed  map[*entry]time.Time
	rest     map[keyID]time.Time // keys that cost much: not before
	holds    map[*entry]struct{}
	open     *entry // the batch of unresolved names that still takes more
	resolve  []*entry
	names    map[*entry]struct{} // every batch of names that isn't resolved
	seq      uint64
	lanes    int    // how many take keys, which share what can be taken; 0: one
	hurry    bool   // freeze: no debouncing
	urgent   uint64 // nor of what was marked up to here
}

func newQueue() *queue {
	return &queue{
		changed: make(chan struct{}), order: list.New(), waiting: map[keyID]*entry{}, inFlight: map[keyID]*entry{},
		delayed: map[*entry]time.Time{}, rest: map[keyID]time.Time{}, holds: map[*entry]struct{}{}, names: map[*entry]struct{}{},
	}
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *queue) add(e *entry, since time.Time) {
	q.seq++
	e.seq, e.since = q.seq, since
	e.element = q.order.PushBack(e)
}

// mark notes keys as dirty.
func (q *queue) mark(ids ...keyID) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		q.markLocked(id, now)
	}
	q.wake()
}

func (q *queue) markLocked(id keyID, now time.Time) {
	if q.waiting[id] != nil {
		return
	}
	e := &entry{id: id}
	q.add(e, now)
	q.waiting[id] = e
	if q.inFlight[id] != nil {
		e.blocked = true
		return
	}
	q.release(e, now)
}

// release makes a key takeable, now or after its rest.
func (q *queue) release(e *entry, now time.Time) {
	e.blocked = false
	if e.urgent {
		delete(q.rest, e.id)
		q.first = append(q.first, e)
		return
	}
	if until, ok := q.rest[e.id]; ok {
		if !q.hurry && e.seq > q.urgent && until.After(now) {
			q.delayed[e] = until
			return
		}
		delete(q.rest, e.id)
	}
	q.ready = append(q.ready, e)
}

// markName notes a name as dirty in each of the given databases, and as still to be looked for in databases that are not known yet.
func (q *queue) markName(names []string, dbs []int) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, n := range names {
		for _, db := range dbs {
			q.markLocked(keyID{db, n}, now)
		}
		if q.open == nil {
			q.open = &entry{names: map[string]struct{}{}, dbs: dbs}
			q.add(q.open, now)
			q.resolve, q.names[q.open] = append(q.resolve, q.open), struct{}{}
		}
		q.open.names[n] = struct{}{}
	}
	q.wake()
}

// unresolved takes the next batch of names whose databases are to be found out, nil if there is none.
func (q *queue) unresolved() *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.resolve) == 0 {
		return nil
	}
	e := q.resolve[0]
	q.resolve = q.resolve[1:]
	if q.open == e {
		q.open = nil
	}
	return e
}

// resolved ends a batch: its names are dirty in dbs, databases that had not been known. Such a key is as old as the batch, so that
// whoever waits for the batch waits for the key.
func (q *queue) resolved(e *entry, dbs []int) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for n := range e.names {
		for _, db := range dbs {
			id := keyID{db, n}
			q.markLocked(id, now)
			if w := q.waiting[id]; w.seq > e.seq {
				w.seq, w.since = e.seq, e.since
				q.order.MoveBefore(w.element, e.element)
			}
		}
	}
	q.order.Remove(e.element)
	delete(q.names, e)
	q.wake()
}

// unresolve puts a batch back that could not be looked up.
func (q *queue) unresolve(e *entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.resolve = append([]*entry{e}, q.resolve...)
	q.wake()
}

// hold adds a pending reconcile, as old as since; it counts as pending until drop.
func (q *queue) hold(since time.Time) *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := &entry{}
	q.add(e, since)
	q.holds[e] = struct{}{}
	q.wake()
	return e
}

func (q *queue) drop(e *entry) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.order.Remove(e.element)
	delete(q.holds, e)
	q.wake()
}

// fewKeys may be taken by one lane at once though others find nothing then: a round trip for each would cost more.
const fewKeys = 32

// take hands out up to n dirty keys, and of many no more than leave some to the other lanes, waiting for the first. They are in the caller's hands until done or back.
func (q *queue) take(ctx context.Context, n int) ([]*entry, error) {
	for {
		q.mu.Lock()
		now := time.Now()
		var next time.Time
		for e, until := range q.delayed {
			if !until.After(now) {
				delete(q.delayed, e)
				delete(q.rest, e.id)
				q.ready = append(q.ready, e)
			} else if next.IsZero() || until.Before(next) {
				next = until
			}
		}
		var batch []*entry
		n := min(n, max(fewKeys, (len(q.first)+len(q.ready))/(2*max(q.lanes, 1))))
		for _, from := range []*[]*entry{&q.first, &q.ready} {
			some := (*from)[:min(len(*from), n-len(batch))]
			*from = (*from)[len(some):]
			batch = append(batch, some...)
		}
		for _, e := range batch {
			e.urgent = false
			delete(q.waiting, e.id)
			q.inFlight[e.id] = e
		}
		changed := q.changed
		q.mu.Unlock()
		if len(batch) > 0 {
			return batch, nil
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		case <-timer:
		}
	}
}

// done ends the copying of keys that are now on the destination as they were when they were read. A rest above zero keeps a key
// that costs much from being copied again before it is over.
func (q *queue) done(es []*entry, rests []time.Duration) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, e := range es {
		delete(q.inFlight, e.id)
		q.order.Remove(e.element)
		if rests[i] > 0 {
			q.restLocked(e.id, now, rests[i])
		}
		if again := q.waiting[e.id]; again != nil && again.blocked {
			q.release(again, now)
		}
	}
	q.wake()
}

func (q *queue) restLocked(id keyID, now time.Time, rest time.Duration) {
	q.rest[id] = now.Add(rest)
	if len(q.rest) <= 4096 {
		return
	}
	for id, until := range q.rest {
		if until.Before(now) {
			delete(q.rest, id)
		}
	}
}

// back returns keys that could not be copied, each to its place in the order; they are not taken again before wait has passed.
func (q *queue) back(batch []*entry, wait time.Duration) {
	until := time.Now().Add(wait)
	q.mu.Lock()
	defer q.mu.Unlock()
	var again []*entry
	for _, e := range batch {
		if q.inFlight[e.id] != e {
			continue // done already
		}
		delete(q.inFlight, e.id)
		if w := q.waiting[e.id]; w != nil { // marked meanwhile: the older mark stands for both
			q.order.Remove(w.element)
			delete(q.delayed, w)
		}
		q.waiting[e.id] = e
		if wait > 0 {
			q.delayed[e] = until
		} else {
			again = append(again, e)
		}
	}
	q.ready = append(again, q.ready...)
	q.wake()
}

// rush switches debouncing off (or on again), as a drain wants it.
func (q *queue) rush(on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hurry = on
	if on {
		now := time.Now()
		for e := range q.delayed {
			q.delayed[e] = now
		}
	}
	q.wake()
}

func (q *queue) hurried() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.hurry
}

// hasten ends the rests of what is dirty now, since somebody waits for it.
func (q *queue) hasten() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.urgent = q.seq
	now := time.Now()
	for e := range q.delayed {
		q.delayed[e] = now
	}
	q.wake()
}

func sortedInts(m map[int]struct{}) []int {
	out := make([]int, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
