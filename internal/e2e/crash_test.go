package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"replicator/internal/demo"
	"replicator/internal/pgtest"
)

// attemptPhases are those of an attempt, in order.
var attemptPhases = []string{"preflight", "hooks", "freeze", "fence", "drain", "sequences", "verify", "arm", "switch", "done"}

// TestCrashes kills the daemon with SIGKILL at random moments under load: while it copies, while it streams, and in every phase of
// a cutover and a rollback. It is started again each time, an attempt that went back is simply started anew, and at the end of
// each migration nothing may be lost, doubled or different.
func TestCrashes(t *testing.T) { everyCapture(t, crashes) }

func crashes(t *testing.T, o demo.ServersOptions) {
	kills, seed := 4, pgtest.Seed(t)
	if soak() {
		kills = 50
	}
	r := rand.New(rand.NewPCG(seed, 0))
	phases := &deck{r: r}
	for n := 0; n < kills; {
		done := 0
		// A world of its own for every few kills: each has to live through them all.
		ok := t.Run(fmt.Sprintf("after_%d", n), func(t *testing.T) { done = crashWorld(t, o, r, phases, kills-n) })
		if !ok {
			t.Fatalf("set REPLICATOR_SEED=%d to see it again", seed)
		}
		n += done
	}
}

// deck deals every phase once, in random order, before any comes again.
type deck struct {
	r    *rand.Rand
	left []string
}

func (d *deck) draw() string {
	if len(d.left) == 0 {
		d.left = slices.Clone(attemptPhases)
		d.r.Shuffle(len(d.left), func(i, j int) { d.left[i], d.left[j] = d.left[j], d.left[i] })
	}
	phase := d.left[0]
	d.left = d.left[1:]
	return phase
}

// crasher kills the daemon of a world.
type crasher struct {
	*world
	r     *rand.Rand
	left  int // kills that may still be spent
	spent int
}

func crashWorld(t *testing.T, o demo.ServersOptions, r *rand.Rand, phases *deck, kills int) (spent int) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := &crasher{world: newWorld(t, o, r.Uint64()), r: r, left: kills}
	c.start()

	// While it starts and copies.
	if !c.pause(ctx, c.upTo(1500*time.Millisecond)) {
		t.Fatal(ctx.Err())
	}
	c.kill(ctx, "starting or copying")
	c.awaitPairs(ctx, "streaming")
	c.holds(ctx)

	// While it streams.
	if !c.pause(ctx, c.upTo(time.Second)) {
		t.Fatal(ctx.Err())
	}
	c.kill(ctx, "streaming")
	c.awaitPairs(ctx, "streaming")
	c.holds(ctx)

	// In a phase of the cutover, and of the way back.
	c.drive(ctx, false, phases.draw())
	at := c.servers.Target
	if r.IntN(2) == 0 || c.left == 1 { // the last kill is not worth a world of its own
		if !c.pause(ctx, c.upTo(500*time.Millisecond)) {
			t.Fatal(ctx.Err())
		}
		c.drive(ctx, true, phases.draw())
		at = c.servers.Source
	}
	if !c.pause(ctx, time.Second) { // writes on the side in use
		t.Fatal(ctx.Err())
	}
	c.rest()
	c.prove(ctx, at)
	return c.spent
}

// kill kills the daemon and starts it again, at once or after a moment.
func (c *crasher) kill(ctx context.Context, when string) {
	c.t.Helper()
	if c.left == 0 {
		return
	}
	c.left--
	c.spent++
	if err := c.daemon.Kill(); err != nil {
		c.t.Fatal(err)
	}
	away := time.Duration(0)
	if c.r.IntN(3) == 0 {
		away = c.upTo(4 * time.Second)
	}
	fmt.Fprintf(c.log, "---- killed while %s; started again after %s\n", when, away.Round(time.Millisecond))
	c.t.Logf("killed while %s; started again after %s", when, away.Round(time.Millisecond))
	if !c.pause(ctx, away) {
		c.t.Fatal(ctx.Err())
	}
	c.start()
}

// drive goes through attempts in one direction until one is done, killing the daemon once, when an attempt has reached the given
// phase or any later one.
func (c *crasher) drive(ctx context.Context, reverse bool, killAt string) {
	c.t.Helper()
	direction, from, to := "forward", "streaming", "reversed"
	if reverse {
		direction, from, to = "reverse", "reversed", "streaming"
	}
	before := c.await(ctx, "the daemon answers", func(s demo.Status) bool { return pairsIn(s, from) }).Cutover.Attempt
	killed := false
	for ctx.Err() == nil {
		s, err := c.api.Status(ctx)
		if err != nil { // it is starting
			c.pause(ctx, 5*time.Millisecond)
			continue
		}
		cut := s.Cutover
		mine := cut.Attempt != "" && cut.Attempt != before && cut.Direction == direction
		if mine && !killed && reached(cut.Phase, killAt) {
			killed = true
			c.pause(ctx, c.upTo(25*time.Millisecond))
			c.kill(ctx, fmt.Sprintf("in %s of a %s attempt (meant for %s)", cut.Phase, direction, killAt))
			continue
		}
		switch {
		case mine && cut.Phase == "done":
			if !killed { // the phase came and went between two looks
				c.kill(ctx, fmt.Sprintf("after a %s attempt (meant for %s)", direction, killAt))
			}
			c.awaitPairs(ctx, to)
			return
		case !running(cut.Phase) && pairsIn(s, from):
			if _, err := c.api.Cutover(ctx, reverse); err != nil {
				fmt.Fprintf(c.log, "---- starting an attempt: %v\n", err)
				c.pause(ctx, 100*time.Millisecond)
			}
		default:
			c.pause(ctx, 2*time.Millisecond)
		}
	}
	s, err := c.api.Status(context.WithoutCancel(ctx))
	c.t.Fatalf("the %s attempt never got done: %+v %v", direction, s, err)
}

func reached(phase, wanted string) bool {
	return slices.Index(attemptPhases, phase) >= slices.Index(attemptPhases, wanted)
}

func running(phase string) bool {
	return phase != "" && phase != "idle" && phase != "done" && phase != "aborted"
}

func (c *crasher) upTo(d time.Duration) time.Duration { return time.Duration(c.r.Int64N(int64(d))) }

// pause lets the load go on for a while; the moment of a kill is random, so there is no condition to wait for. It returns false if
// ctx ended first.
func (c *crasher) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
