package snapshot

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

// Job is work on the target that can be done once a table is copied: the building of one of its keys or indexes.
type Job func(ctx context.Context, target *pgx.Conn) error

// Chain is jobs in steps. The jobs of a step may run at the same time; a step begins when the one before has ended.
type Chain [][]Job

// queue hands out what is to be done, in an order that lets nobody be idle at the end: what takes longest from beginning to end comes
// first. Building goes on while other tables are copied, by at most half of the workers, so that the source isn't idle meanwhile.
type queue struct {
	workers int
	weigh   func(replication.Table) int64
	inParts func(replication.Table) bool

	mu       sync.Mutex
	changed  chan struct{}
	tables   []replication.Table // not begun, the heaviest first
	parts    []*part             // of tables that are begun
	chains   []*chain            // whose current step has jobs that nobody has taken
	building int
	busy     int       // workers that have something in hand, which may bring more
	patience time.Time // until when nobody begins another table, since one that is heavier is about to be offered in parts
}

// patience is how long others wait for the parts of a table whose leader takes its snapshot. A lock that takes longer holds up nobody else.
const patience = 500 * time.Millisecond

type chain struct {
	steps  Chain
	open   int // jobs of the current step that aren't done
	weight int64
}

// work is one thing to do; exactly one of its fields is set.
type work struct {
	table *replication.Table
	part  *part
	job   Job
	of    *chain // the job's
}

func newQueue(workers int, tables []replication.Table, b bounds) *queue {
	weigh := func(t replication.Table) int64 { return b.weight(t, workers) }
	q := &queue{workers: workers, weigh: weigh, inParts: func(t replication.Table) bool { return b.parts(t) > 1 }, changed: make(chan struct{}), tables: slices.Clone(tables)}
	slices.SortStableFunc(q.tables, func(a, b replication.Table) int { return cmp.Compare(weigh(b), weigh(a)) })
	return q
}

// next waits for something to do; ok is false when all is done. done must be called after it.
func (q *queue) next(ctx context.Context) (w work, ok bool, err error) {
	for {
		q.mu.Lock()
		w, ok = q.take()
		if ok {
			q.busy++
		}
		ended, changed, wait := q.busy == 0 && len(q.tables) == 0, q.changed, time.Until(q.patience)
		q.mu.Unlock()
		if ok || ended {
			return w, ok, nil
		}
		if err := await(ctx, changed, wait); err != nil {
			return w, false, err
		}
	}
}

// await waits for a change, for no longer than wait if that is positive.
func await(ctx context.Context, changed <-chan struct{}, wait time.Duration) error {
	var late <-chan time.Time
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-late:
	}
	return nil
}

func (q *queue) take() (w work, ok bool) {
	if q.building < max(1, q.workers/2) {
		if w, ok = q.takeJob(); ok {
			return w, true
		}
	}
	if i := slices.IndexFunc(q.parts, func(p *part) bool { return !p.of.alone }); i >= 0 {
		w.part = q.parts[i]
		q.parts = slices.Delete(q.parts, i, i+1)
		return w, true
	}
	if len(q.tables) > 0 && time.Now().After(q.patience) {
		w.table, q.tables = &q.tables[0], q.tables[1:]
		if q.inParts(*w.table) {
			q.patience = time.Now().Add(patience)
		}
		return w, true
	}
	return q.takeJob()
}

func (q *queue) takeJob() (w work, ok bool) {
	if len(q.chains) == 0 {
		return w, false
	}
	c := q.chains[0]
	w.job, w.of, c.steps[0] = c.steps[0][0], c, c.steps[0][1:]
	if len(c.steps[0]) == 0 {
		q.chains = q.chains[1:]
	}
	q.building++
	return w, true
}

// nextPart returns a part of the table that nobody has begun, to its leader. It waits while there may be one; ok is false when all are begun.
func (q *queue) nextPart(ctx context.Context, s *split) (p *part, ok bool, err error) {
	for {
		q.mu.Lock()
		if i := slices.IndexFunc(q.parts, func(p *part) bool { return p.of == s }); i >= 0 {
			p, ok = q.parts[i], true
			q.parts = slices.Delete(q.parts, i, i+1)
			s.unbegun--
		}
		begun, changed := s.unbegun == 0, q.changed
		q.mu.Unlock()
		if ok || begun {
			return p, ok, nil
		}
		if err := await(ctx, changed, 0); err != nil {
			return nil, false, err
		}
	}
}

// begun tells that a session beside the leader's has the part's snapshot.
func (q *queue) begun(p *part) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p.of.unbegun--
	q.wake()
}

// giveBack returns a part that only its leader can copy.
func (q *queue) giveBack(p *part) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p.of.alone = true
	q.parts = append(q.parts, p)
	q.wake()
}

// addParts offers a table's parts to everybody.
func (q *queue) addParts(parts []*part) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.parts, q.patience = append(q.parts, parts...), time.Time{}
	q.wake()
}

// addChain offers jobs; weight orders the chains.
func (q *queue) addChain(steps Chain, weight int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.offer(&chain{steps: slices.Clone(steps), weight: weight})
	q.wake()
}

// offer puts a chain at its place, with its next step that holds anything.
func (q *queue) offer(c *chain) {
	for len(c.steps) > 0 && len(c.steps[0]) == 0 {
		c.steps = c.steps[1:]
	}
	if len(c.steps) == 0 {
		return
	}
	c.open = len(c.steps[0])
	at, _ := slices.BinarySearchFunc(q.chains, c, func(have, c *chain) int { return cmp.Compare(c.weight, have.weight) })
	q.chains = slices.Insert(q.chains, at, c)
}

// done takes back what next has handed out.
func (q *queue) done(w work) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	if w.of != nil {
		q.building--
		if w.of.open--; w.of.open == 0 {
			q.offer(w.of)
		}
	}
	q.wake()
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}
