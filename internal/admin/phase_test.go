package admin

import (
	"context"
	"testing"
)

func TestPhases(t *testing.T) {
	for _, c := range []struct {
		phases []Phase
		want   Phase
	}{
		{nil, Starting},
		{[]Phase{Streaming, Copying}, Copying},
		{[]Phase{Streaming, Stopped}, Stopped},
		{[]Phase{Reversed, Frozen}, Frozen},
		{[]Phase{Finished, Finished}, Finished},
	} {
		if got := LeastAdvanced(c.phases); got != c.want {
			t.Errorf("least advanced of %v is %s, want %s", c.phases, got, c.want)
		}
	}
	for _, c := range []struct {
		at, goal Phase
		want     bool
	}{
		{Streaming, Streaming, true}, {Reversed, Streaming, true}, {Copying, Streaming, false}, {Stopped, Streaming, false}, {Stopped, Starting, false},
		{Stopped, Stopped, true}, {Finished, Stopped, false}, {Finished, Reversed, true},
	} {
		if got := c.at.Reached(c.goal); got != c.want {
			t.Errorf("%s reached %s: %t", c.at, c.goal, got)
		}
	}
}

func TestSlowListenerLosesEventsButKnows(t *testing.T) {
	h := newHub()
	ch, _, err := h.join(func() (Status, error) { return Status{}, nil })
	if err != nil {
		t.Fatal(err)
	}
	for range eventBuffer + 1 {
		h.publish(Event{EventPhase, PhaseChange{}})
	}
	if !h.lost(ch) || h.lost(ch) {
		t.Error("a loss must be told exactly once")
	}
	h.leave(ch)
	if h.before() != nil || len(h.readers) > 0 {
		t.Error("left, and still there")
	}
	if _, _, err := h.join(func() (Status, error) { return Status{}, context.Canceled }); err == nil || len(h.readers) > 0 {
		t.Errorf("joined without a status: %v", err)
	}
}
