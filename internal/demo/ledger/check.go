package ledger

import (
	"fmt"
	"sort"
)

// Report is what comparing the ledger with a database showed.
type Report struct {
	// Acknowledged counts the writes that had to be there.
	Acknowledged int64
	// Lost counts acknowledged writes that are absent, Duplicated the surplus copies of any write, Phantom what is there though
	// it was never written or had definitely failed.
	Lost, Duplicated, Phantom int64
	// Details names the first few of them.
	Details []string
}

// Good says whether each acknowledged write exists exactly once, and nothing else does.
func (r Report) Good() bool { return r.Lost == 0 && r.Duplicated == 0 && r.Phantom == 0 }

// String puts the report into one line.
func (r Report) String() string {
	s := fmt.Sprintf("%d acknowledged, %d lost, %d duplicated, %d phantom", r.Acknowledged, r.Lost, r.Duplicated, r.Phantom)
	for _, d := range r.Details {
		s += "; " + d
	}
	return s
}

const maxDetails = 20

// Note adds one fault's detail, up to a bound.
func (r *Report) Note(format string, args ...any) {
	if len(r.Details) < maxDetails {
		r.Details = append(r.Details, fmt.Sprintf(format, args...))
	}
}

// Add sums another report into r.
func (r *Report) Add(o Report) {
	r.Acknowledged += o.Acknowledged
	r.Lost += o.Lost
	r.Duplicated += o.Duplicated
	r.Phantom += o.Phantom
	for _, d := range o.Details {
		r.Note("%s", d)
	}
}

// Check compares the writes of a kind with how many times each id was found, the writers being at rest.
func (l *Ledger) Check(kind string, found map[string]int) Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	var r Report
	for _, w := range l.workers(kind) {
		for i, state := range l.tracks[w].writes {
			if Outcome(state&^uncertain) != Acknowledged {
				continue
			}
			r.Acknowledged++
			if id := fmt.Sprintf("%s-%s-%d-%d", l.run, w.Kind, w.Number, i+1); found[id] == 0 {
				r.Lost++
				r.Note("lost %s", id)
			}
		}
	}
	byNumber := map[int]*track{}
	for w, t := range l.tracks {
		if w.Kind == kind {
			byNumber[w.Number] = t
		}
	}
	for id, n := range found {
		if n <= 0 {
			continue
		}
		if n > 1 {
			r.Duplicated += int64(n - 1)
			r.Note("%s is there %d times", id, n)
		}
		number, seq, ok := l.parse(id, kind)
		t := byNumber[number]
		if !ok || t == nil || seq < 1 || seq > int64(len(t.writes)) {
			r.Phantom++
			r.Note("%s was never written", id)
			continue
		}
		state := t.writes[seq-1]
		if o := Outcome(state &^ uncertain); o != Acknowledged && o != Attempted && state&uncertain == 0 {
			r.Phantom++
			r.Note("%s is there though it was %s and never in doubt", id, o)
		}
	}
	return r
}

// CheckCount compares a worker's writes with a counter that every one of its writes adds 1 to. An attempt without an answer may
// have counted or not, so the counter has to lie between the acknowledged writes and those plus the unknown attempts.
func (l *Ledger) CheckCount(w Worker, value int64) Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	var r Report
	t := l.tracks[w]
	if t == nil {
		t = &track{}
	}
	for _, state := range t.writes {
		if Outcome(state&^uncertain) == Acknowledged {
			r.Acknowledged++
		}
	}
	if lost := r.Acknowledged - value; lost > 0 {
		r.Lost = lost
		r.Note("%s worker %d counts %d of %d acknowledged writes", w.Kind, w.Number, value, r.Acknowledged)
	}
	if surplus := value - r.Acknowledged - t.unknown; surplus > 0 {
		r.Duplicated = surplus
		r.Note("%s worker %d counts %d, but only %d writes were acknowledged and %d are unknown", w.Kind, w.Number, value, r.Acknowledged, t.unknown)
	}
	return r
}

// Workers returns the workers of a kind that have begun a write, by number.
func (l *Ledger) Workers(kind string) []Worker {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.workers(kind)
}

func (l *Ledger) workers(kind string) []Worker {
	var ws []Worker
	for w := range l.tracks {
		if w.Kind == kind {
			ws = append(ws, w)
		}
	}
	sort.Slice(ws, func(i, j int) bool { return ws[i].Number < ws[j].Number })
	return ws
}
