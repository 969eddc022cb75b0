package ledger

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Worker names one sequential writer: it has at most one write in hand at any time.
type Worker struct {
	// Store is the database that is written to; gaps are measured by store ("postgres", "redis").
	Store string
	// Kind tells writes apart that are proven in different places. It holds no dash.
	Kind string
	// Number tells workers of the same kind apart.
	Number int
}

// Outcome says how a write ended.
type Outcome uint8

// The outcomes. Attempted is the state of a write that has begun and not ended.
const (
	Attempted Outcome = iota
	Acknowledged
	Failed
	Abandoned
)

// String returns the outcome's name.
func (o Outcome) String() string {
	return [...]string{"attempted", "acknowledged", "failed", "abandoned"}[o]
}

// uncertain is set on the stored outcome of a write of which an attempt broke off without an answer.
const uncertain = 0x80

type track struct {
	writes  []uint8 // by sequence, from 1; outcome and uncertain
	unknown int64   // attempts without an answer
}

type gap struct {
	since   time.Time // the latest acknowledgement, or the start of the measurement
	longest time.Duration
}

// Ledger records writes. It is safe for concurrent use and costs one byte of memory per write.
type Ledger struct {
	mu     sync.Mutex
	run    string
	now    func() time.Time
	tracks map[Worker]*track
	gaps   map[string]*gap
	totals map[string]Totals
}

// Totals counts a store's writes.
type Totals struct {
	Attempted, Acknowledged, Failed, Abandoned int64
	// Unknown counts attempts, not writes.
	Unknown int64
}

// New returns an empty ledger. Every id begins with run, which therefore has to differ from that of any earlier ledger on the
// same databases; it holds no dash.
func New(run string) *Ledger {
	return &Ledger{run: run, now: time.Now, tracks: map[Worker]*track{}, gaps: map[string]*gap{}, totals: map[string]Totals{}}
}

// Write is one logical write, however often it is tried.
type Write struct {
	// ID is unique and the same for all attempts.
	ID     string
	Worker Worker
	// Sequence counts the worker's writes from 1.
	Sequence int64
	ledger   *Ledger
}

// Begin notes that a write is about to be tried for the first time.
func (l *Ledger) Begin(w Worker) *Write {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tracks[w]
	if t == nil {
		t = &track{}
		l.tracks[w] = t
	}
	if l.gaps[w.Store] == nil {
		l.gaps[w.Store] = &gap{since: l.now()}
	}
	t.writes = append(t.writes, uint8(Attempted))
	l.count(w.Store, func(c *Totals) { c.Attempted++ })
	seq := int64(len(t.writes))
	return &Write{ID: fmt.Sprintf("%s-%s-%d-%d", l.run, w.Kind, w.Number, seq), Worker: w, Sequence: seq, ledger: l}
}

// Unknown notes that an attempt broke off without an answer: it may have happened.
func (w *Write) Unknown() {
	l := w.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tracks[w.Worker]
	t.writes[w.Sequence-1] |= uncertain
	t.unknown++
	l.count(w.Worker.Store, func(c *Totals) { c.Unknown++ })
}

// Acknowledge notes that the database has confirmed the write.
func (w *Write) Acknowledge() {
	w.end(Acknowledged, func(c *Totals) { c.Acknowledged++ })
}

// Fail notes that the writer gave up.
func (w *Write) Fail() { w.end(Failed, func(c *Totals) { c.Failed++ }) }

// Abandon notes that the writer was told to stop before the write had ended.
func (w *Write) Abandon() { w.end(Abandoned, func(c *Totals) { c.Abandoned++ }) }

func (w *Write) end(o Outcome, add func(*Totals)) {
	l := w.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tracks[w.Worker]
	t.writes[w.Sequence-1] = t.writes[w.Sequence-1]&uncertain | uint8(o)
	l.count(w.Worker.Store, add)
	if o != Acknowledged {
		return
	}
	g, now := l.gaps[w.Worker.Store], l.now()
	g.longest = max(g.longest, now.Sub(g.since))
	g.since = now
}

func (l *Ledger) count(store string, add func(*Totals)) {
	c := l.totals[store]
	add(&c)
	l.totals[store] = c
}

// Totals returns the counts by store.
func (l *Ledger) Totals() map[string]Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.totals)
}

// ResetGaps starts measuring gaps anew. A store that has none acknowledged since its latest acknowledgement keeps counting from
// there, so a reset in the middle of a gap doesn't shorten it.
func (l *Ledger) ResetGaps() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.gaps {
		g.longest = 0
	}
}

// LongestGap returns the longest time between two consecutive acknowledgements of a store since ResetGaps, the one that is still
// open included.
func (l *Ledger) LongestGap(store string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.gaps[store]
	if g == nil {
		return 0
	}
	return max(g.longest, l.now().Sub(g.since))
}

// parse finds a write by its id. ok is false if the id isn't one of this ledger's.
func (l *Ledger) parse(id, kind string) (number int, seq int64, ok bool) {
	parts := strings.Split(id, "-")
	if len(parts) != 4 || parts[0] != l.run || parts[1] != kind {
		return 0, 0, false
	}
	number, err1 := strconv.Atoi(parts[2])
	seq, err2 := strconv.ParseInt(parts[3], 10, 64)
	return number, seq, err1 == nil && err2 == nil
}
