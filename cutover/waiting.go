package cutover

import (
	"maps"
	"slices"
	"sync"
)

// waitlist is what the coordinator waits for, by subject; safe for concurrent use.
type waitlist struct {
	mu    sync.Mutex
	texts map[string]string
	more  map[string]func() string // asks for what is to be added
}

func (w *waitlist) set(subject, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.texts == nil {
		w.texts = map[string]string{}
	}
	w.texts[subject] = text
}

// explain adds to a subject's text what more tells at the time of asking.
func (w *waitlist) explain(subject string, more func() string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.more == nil {
		w.more = map[string]func() string{}
	}
	w.more[subject] = more
}

func (w *waitlist) clear(subject string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.texts, subject)
	delete(w.more, subject)
}

// list returns the texts in the order of their subjects.
func (w *waitlist) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, s := range slices.Sorted(maps.Keys(w.texts)) {
		text := w.texts[s]
		if more := w.more[s]; more != nil {
			if m := more(); m != "" {
				text += ": " + m
			}
		}
		all = append(all, text)
	}
	return all
}
