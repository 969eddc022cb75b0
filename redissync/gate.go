package redissync

import (
	"context"
	"sync"
)

// gate lets workers write while it is open. Shutting it waits until nobody writes any more.
type gate struct {
	mu      sync.Mutex
	changed chan struct{}
	reasons map[string]bool // why it is shut; open when empty
	inside  int
}

// The reasons for which a flow doesn't write.
const (
	shutIdle    = "not the active direction"
	shutPaused  = "paused by the operator"
	shutDrained = "drained for a cutover"
)

func newGate() *gate {
	return &gate{changed: make(chan struct{}), reasons: map[string]bool{shutIdle: true}}
}

func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// enter waits until the gate is open and goes in; leave must follow.
func (g *gate) enter(ctx context.Context) error {
	for {
		g.mu.Lock()
		if len(g.reasons) == 0 {
			g.inside++
			g.mu.Unlock()
			return nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.wake()
}

func (g *gate) open(reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.reasons, reason)
	g.wake()
}

// forbid closes the gate for a reason without waiting.
func (g *gate) forbid(reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reasons[reason] = true
}

// shut closes the gate for a reason and waits until nobody is inside.
func (g *gate) shut(ctx context.Context, reason string) error {
	g.forbid(reason)
	for {
		g.mu.Lock()
		inside, changed := g.inside, g.changed
		g.mu.Unlock()
		if inside == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (g *gate) shutFor(reason string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.reasons[reason]
}
