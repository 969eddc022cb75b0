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
}

func (w *waitlist) set(subject, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.texts == nil {
		w.texts = map[string]string{}
	}
	w.texts[subject] = text
}

func (w *waitlist) clear(subject string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.texts, subject)
}

// list returns the texts in the order of their subjects.
func (w *waitlist) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, s := range slices.Sorted(maps.Keys(w.texts)) {
		all = append(all, w.texts[s])
	}
	return all
}
