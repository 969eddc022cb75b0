package redissync

import (
	"context"
	"slices"
	"time"
)

// state is a reading of the queue.
type state struct {
	pending int       // keys and reconciles that the destination lacks
	oldest  time.Time // since when; zero if nothing is pending
	first   uint64    // the lowest pending sequence number; 0 if nothing is pending
	key     uint64    // the same of keys and names only, reconciles left out
	last    uint64    // the last sequence number given
	changed <-chan struct{}
}

func (q *queue) state() state {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := state{last: q.seq, pending: len(q.waiting) + len(q.inFlight), changed: q.changed}
	if el := q.order.Front(); el != nil {
		e := el.Value.(*entry)
		s.first, s.oldest = e.seq, e.since
		for h := range q.holds {
			if h.since.Before(s.oldest) {
				s.oldest = h.since
			}
		}
		s.pending = max(s.pending, 1)
		for ; el != nil; el = el.Next() {
			e := el.Value.(*entry)
			if _, hold := q.holds[e]; !hold {
				s.key = e.seq
				break
			}
		}
	}
	return s
}

// await waits until nothing marked up to sequence number seq is pending.
func (q *queue) await(ctx context.Context, seq uint64) error {
	for {
		s := q.state()
		if s.first == 0 || s.first > seq {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.changed:
		}
	}
}

// awaitKeys is await without regard to reconciles.
func (q *queue) awaitKeys(ctx context.Context, seq uint64) error {
	for {
		s := q.state()
		if s.key == 0 || s.key > seq {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.changed:
		}
	}
}

// awaitOf waits until nothing marked up to sequence number seq is pending of the given keys alone, which are copied before others
// meanwhile: however much else is dirty, and goes on becoming so, it takes no longer than these keys do. It says nothing of reconciles.
func (q *queue) awaitOf(ctx context.Context, ids []keyID, seq uint64) error {
	for {
		q.mu.Lock()
		pending := q.urgeLocked(ids, seq)
		changed := q.changed
		q.mu.Unlock()
		if !pending {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// urgeLocked moves keys marked up to seq to where they are taken first, and tells whether any of them is pending.
func (q *queue) urgeLocked(ids []keyID, seq uint64) (pending bool) {
	for e := range q.names { // they may be any of them
		pending = pending || e.seq <= seq
	}
	moved := false
	for _, id := range ids {
		if e := q.inFlight[id]; e != nil && e.seq <= seq {
			pending = true
		}
		e := q.waiting[id]
		if e == nil || e.seq > seq {
			continue
		}
		pending = true
		_, delayed := q.delayed[e]
		_, rests := q.rest[id]
		if e.urgent || delayed && !rests { // one that was given back is tried again in its time
			continue
		}
		e.urgent = true
		if !e.blocked {
			moved = true
			delete(q.delayed, e)
			delete(q.rest, id)
			q.first = append(q.first, e)
		}
	}
	if moved {
		q.ready = slices.DeleteFunc(q.ready, func(e *entry) bool { return e.urgent })
		q.wake()
	}
	return pending
}

// room waits until fewer than n keys are pending, so that a scan never runs far ahead of the copying.
func (q *queue) room(ctx context.Context, n int) error {
	for {
		q.mu.Lock()
		pending, changed := len(q.waiting)+len(q.inFlight), q.changed
		q.mu.Unlock()
		if pending < n {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
