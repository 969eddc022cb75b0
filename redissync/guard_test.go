package redissync

import (
	"context"
	"fmt"
	"testing"
	"time"

	"replicator/internal/redistest"
)

func setMany(c *client, n int, value string) {
	for i := range n {
		c.do("SET", fmt.Sprintf("key%d", i), value)
	}
}

func comeBackEmpty(t *testing.T, ctx context.Context, srv *redistest.Server, c *client) {
	t.Helper()
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := srv.Start(ctx); err != nil {
		t.Fatal(err)
	}
	c.s.close()
}

// TestAnOriginThatComesBackEmptyIsNotMirrored attacks the other side's only copy, in both directions, with every key dirty at the moment
// of the loss and with an application that goes on writing.
func TestAnOriginThatComesBackEmptyIsNotMirrored(t *testing.T) {
	t.Parallel()
	for _, reverse := range []bool{false, true} {
		for _, end := range []string{"restored", "resync", "new process"} {
			t.Run(fmt.Sprintf("%s %s", direction(reverse), end), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, redistest.Options{}, redistest.Options{})
				setMany(r.a, 500, "v")
				p := r.run(false)
				r.caughtUp()
				ctx := r.ctx()
				srv, origin, other := r.source, r.a, r.b
				if reverse {
					upToArm(t, ctx, p, false)
					switchOver(t, ctx, p, false)
					retire(t, ctx, p, false)
					r.a.s.close()
					srv, origin, other = r.target, r.b, r.a
				}
				p.Pause()
				setMany(origin, 500, "w") // each is dirty, and a worker that reads it after the loss finds nothing
				comeBackEmpty(t, ctx, srv, origin)
				p.Resume()
				origin.do("SET", "session", "of a living application")
				if end == "new process" {
					r.stop()
					r.o.Epoch++
					p = r.run(reverse)
				}
				eventually(t, "the loss is named", func() bool { return hasProblem(p.Status(), "redis-origin-empty") })
				if worst := p.Check(ctx, reverse); !hasProblem(Status{Problems: worst}, "redis-origin-empty") {
					t.Errorf("check doesn't tell: %+v", worst)
				}
				short, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
				defer cancel()
				if err := p.CaughtUp(short); err == nil {
					t.Error("caught up with an origin that lost its data")
				}
				if got := other.do("DBSIZE").num - ours(other); got != 500 {
					t.Fatalf("%d keys are left of the only copy of 500", got)
				}
				if end == "resync" {
					if err := p.Resync(ctx); err != nil {
						t.Fatal(err)
					}
					if got := len(contents(t, other)); got != 1 {
						t.Errorf("%d keys after mirroring on purpose, want 1", got)
					}
				} else {
					setMany(origin, 400, "restored")
				}
				r.caughtUp()
				r.equal()
				if hasProblem(p.Status(), "redis-origin-empty") {
					t.Error("the problem stays")
				}
			})
		}
	}
}

// ours counts replicator's own keys in database 0.
func ours(c *client) int64 { return int64(len(c.do("KEYS", ownPrefix+"*").items)) }

// TestAFlushByTheApplicationIsMirrored tells a loss from a command: on a connection that lives, and while replicator was away.
func TestAFlushByTheApplicationIsMirrored(t *testing.T) {
	t.Parallel()
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away %v", away), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Options{}, redistest.Options{})
			setMany(r.a, 500, "v")
			r.run(false)
			r.caughtUp()
			if away {
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
			}
			r.a.do("FLUSHALL")
			r.a.do("CLIENT", "KILL", "TYPE", "pubsub") // a broken feed alone means nothing
			if away {
				r.o.Epoch++
				r.run(false)
			}
			r.caughtUp()
			if got := contents(t, r.b); len(got) != 0 {
				t.Errorf("%d keys survived FLUSHALL; %+v", len(got), r.pair.Status())
			}
		})
	}
}

func TestWhatCountsAsEmptied(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		here, there int64
		want        bool
	}{{0, 0, false}, {0, 1, true}, {1, 50, false}, {1, 99, false}, {1, 100, true}, {9, 100, true}, {10, 100, false}, {99, 1000, true}, {5000, 100, false}} {
		if got := emptied(c.here, c.there); got != c.want {
			t.Errorf("emptied(%d, %d) = %v", c.here, c.there, got)
		}
	}
}
