package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// The types of events. Data of status is the whole status document; of the others the structs below.
const (
	// EventStatus carries a Status: first thing on every connection, and again whenever something in it moved.
	EventStatus = "status"
	// EventPhase carries a PhaseChange of a pair or of the migration.
	EventPhase = "phase"
	// EventCutover carries a CutoverStatus: a step of the cutover began or ended.
	EventCutover = "cutover"
	// EventProblem carries a Problem that has appeared.
	EventProblem = "problem"
	// EventSolved carries a Problem that has gone.
	EventSolved = "solved"
	// EventVerification carries a Verification that has ended.
	EventVerification = "verification"
)

// Event is one server-sent event; Data is marshalled as JSON.
type Event struct {
	Type string
	Data any
}

// PhaseChange is the data of a phase event.
type PhaseChange struct {
	// Pair is empty for the migration as a whole.
	Pair string `json:"pair"`
	From Phase  `json:"from"`
	To   Phase  `json:"to"`
}

const (
	// watchEvery is how often the status is compared with the one before, while anybody listens.
	watchEvery = 500 * time.Millisecond
	// beatEvery keeps proxies from closing a quiet stream.
	beatEvery = 15 * time.Second
	// eventBuffer is how many events a slow reader may be behind before it is sent the whole status instead.
	eventBuffer = 256
)

// encoded is an event as it goes over the wire.
type encoded struct {
	kind string
	data []byte
}

// hub hands events to everybody who listens.
type hub struct {
	entry   sync.Mutex // held while a reader joins: each reads his first status behind those of who came before
	mu      sync.Mutex
	readers map[chan encoded]bool // true if events were lost
	last    *Status               // what the next status is compared with; nil while nobody listens. Whatever differs from it, every reader hears
	joined  chan struct{}         // wakes the watcher
}

func newHub() *hub { return &hub{readers: map[chan encoded]bool{}, joined: make(chan struct{}, 1)} }

// join returns a channel of what differs from the status that it returns too, which read reads.
func (h *hub) join(read func() (Status, error)) (chan encoded, Status, error) {
	h.entry.Lock()
	defer h.entry.Unlock()
	ch := make(chan encoded, eventBuffer)
	h.mu.Lock()
	h.readers[ch] = false
	h.mu.Unlock()
	first, err := read() // not before: what changes from here on comes by the channel
	if err != nil {
		h.leave(ch)
		return nil, Status{}, err
	}
	h.mu.Lock()
	if h.last == nil {
		h.last = &first
	}
	h.mu.Unlock()
	select {
	case h.joined <- struct{}{}:
	default:
	}
	return ch, first, nil
}

func (h *hub) leave(ch chan encoded) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, ch)
	if len(h.readers) == 0 {
		h.last = nil
	}
}

// before is the status that was last compared, nil while nobody listens.
func (h *hub) before() *Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// compared notes that readers have heard what differs from was, unless nobody listens to that any more.
func (h *hub) compared(was, now *Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.last == was {
		h.last = now
	}
}

// lost tells, once, whether events for ch were dropped.
func (h *hub) lost(ch chan encoded) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.readers[ch]
	h.readers[ch] = false
	return l
}

func (h *hub) publish(e Event) {
	data, err := json.Marshal(e.Data)
	if err != nil {
		return // only a Data that isn't a document comes here; the tests send every type
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.readers {
		select {
		case ch <- encoded{e.Type, data}:
		default:
			h.readers[ch] = true
		}
	}
}

// watch makes events of what changes in the status, while anybody listens.
func (s *Server) watch(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		last := s.hub.before()
		if last == nil {
			select {
			case <-ctx.Done():
				return nil
			case <-s.hub.joined:
			}
			continue
		}
		if now, err := s.current(ctx); err == nil {
			for _, e := range changes(*last, now) {
				s.hub.publish(e)
			}
			s.hub.compared(last, &now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// changes returns what a listener is told when the status has gone from was to is.
func changes(was, is Status) []Event {
	var events []Event
	if was.Phase != is.Phase {
		events = append(events, Event{EventPhase, PhaseChange{"", was.Phase, is.Phase}})
	}
	before := map[string]Phase{}
	for _, p := range was.Postgres {
		before[p.Name] = p.Phase
	}
	for _, p := range was.Redis {
		before[p.Name] = p.Phase
	}
	pair := func(name string, phase Phase) {
		if b := before[name]; b != phase {
			events = append(events, Event{EventPhase, PhaseChange{name, b, phase}})
		}
	}
	for _, p := range is.Postgres {
		pair(p.Name, p.Phase)
	}
	for _, p := range is.Redis {
		pair(p.Name, p.Phase)
	}
	if different(was.Cutover, is.Cutover) {
		events = append(events, Event{EventCutover, is.Cutover})
	}
	for _, p := range missing(is.Problems, was.Problems) {
		events = append(events, Event{EventProblem, p})
	}
	for _, p := range missing(was.Problems, is.Problems) {
		events = append(events, Event{EventSolved, p})
	}
	was.Time = is.Time
	if different(was, is) {
		events = append(events, Event{EventStatus, is})
	}
	return events
}

// missing returns the problems of a that b hasn't; a message that only counts up is no new problem.
func missing(a, b []Problem) []Problem {
	key := func(p Problem) [3]string { return [3]string{p.Code, p.Pair, p.Side} }
	has := map[[3]string]bool{}
	for _, p := range b {
		has[key(p)] = true
	}
	var out []Problem
	for _, p := range a {
		if !has[key(p)] {
			out = append(out, p)
		}
	}
	return out
}

func different(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX != nil || errY != nil || string(x) != string(y)
}

// events serves the stream (HTML standard, "Server-sent events").
func (a *api) events(w http.ResponseWriter, r *http.Request) (int, any, error) {
	ch, first, err := a.hub.join(func() (Status, error) { return a.current(r.Context()) })
	if err != nil {
		return 0, nil, err
	}
	defer a.hub.leave(ch)
	out := http.NewResponseController(w)
	a.long(w)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	send := func(e encoded) error {
		// A reader that takes nothing for this long has gone; its connection must not hold the server's shutdown.
		_ = out.SetWriteDeadline(time.Now().Add(answerTime))
		if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.kind, e.data); err != nil {
			return fmt.Errorf("send an event: %w", err)
		}
		return out.Flush()
	}
	whole := func(s Status) error {
		data, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("encode the status: %w", err)
		}
		return send(encoded{EventStatus, data})
	}
	if whole(first) != nil {
		return 0, nil, nil
	}
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for {
		var err error
		select {
		case <-r.Context().Done():
			return 0, nil, nil
		case <-a.running.Done():
			return 0, nil, nil
		case e := <-ch:
			err = send(e)
			if err == nil && len(ch) == 0 && a.hub.lost(ch) {
				var now Status
				if now, err = a.current(r.Context()); err == nil {
					err = whole(now)
				}
			}
		case <-beat.C:
			_ = out.SetWriteDeadline(time.Now().Add(answerTime))
			if _, err = fmt.Fprint(w, ": still here\n\n"); err == nil {
				err = out.Flush()
			}
		}
		if err != nil {
			return 0, nil, nil //nolint:nilerr // the reader has gone; there is nobody to tell
		}
	}
}
