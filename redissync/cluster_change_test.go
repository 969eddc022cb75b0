package redissync

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// TestClustersChangeWhileRunning moves slots, adds a primary, removes it and has one fail over, on either side, while an application
// writes all the time.
func TestClustersChangeWhileRunning(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"source", "target"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sides [2]*redistest.Cluster
			c := threeNodes(t)
			sides[i] = c
			r := newClusterRig(t, sides[0], sides[1])
			ctx := r.ctx()
			heir := c.AddReplica(t, c.Primaries[0], redistest.Options{Version: os.Getenv("REPLICATOR_TEST_CLUSTER_REDIS")})
			fillCluster(r.a)
			p := r.run(false)
			r.caughtUp()
			storm := startClusterStorm(t, r.o.SourceURL, r.o.SourceTLS, 3)
			app := runCounters(t, r.source, 4)
			// The slots of the storm's keys and some others, to and fro.
			slots := func(from *redistest.Server, n int) (out []int) {
				for k := 0; len(out) < n; k++ {
					slot := slotOf(fmt.Sprint(k))
					if at := slot * 3 / slotCount; c.Primaries[min(at, 2)] == from {
						out = append(out, slot)
					}
				}
				return out
			}
			move := func(slots []int, from, to *redistest.Server) {
				t.Helper()
				for _, s := range slots {
					if err := c.MoveSlot(ctx, s, from, to, nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			moved := slots(c.Primaries[1], 20)
			move(moved, c.Primaries[1], c.Primaries[2])
			r.caughtUp()
			added := c.AddPrimary(t, redistest.Options{Version: os.Getenv("REPLICATOR_TEST_CLUSTER_REDIS")})
			more := slots(c.Primaries[2], 20)
			move(more, c.Primaries[2], added)
			r.caughtUp()
			move(more, added, c.Primaries[2])
			if err := c.Remove(ctx, added); err != nil {
				t.Fatal(err)
			}
			r.caughtUp()
			before := p.Status().Gaps
			if before == 0 {
				t.Error("changes of the cluster made no gap")
			}
			old := c.Primaries[0]
			if i == 0 {
				app.end() // what an acknowledged write is worth in a failover is the cluster's affair, not ours
			}
			if err := old.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := c.AwaitPromotion(ctx, heir); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the failover is noticed", func() bool { return p.Status().Gaps > before })
			storm.end()
			app.end()
			r.caughtUp()
			r.lookAgain()
			r.equal()
			if i == 1 {
				app.check(t, r.b, "target")
			}
			if s := p.Status(); len(s.Problems) > 0 {
				t.Errorf("status %+v", s)
			}
			// The cluster as it is now can be moved.
			upToArm(t, ctx, p, false)
			if err := p.Thaw(ctx, false); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// lookAgain has the test's own sessions read the layout anew.
func (r *clusterRig) lookAgain() {
	r.t.Helper()
	for _, c := range []*client{r.a, r.b} {
		c.s.close()
		if _, err := c.s.relearn(r.ctx()); err != nil {
			r.t.Fatal(err)
		}
	}
}

// TestAFailoverInAFreezeEndsTheAttempt promotes a replica, which no pause holds, while the source is frozen.
func TestAFailoverInAFreezeEndsTheAttempt(t *testing.T) {
	t.Parallel()
	c := threeNodes(t)
	heir := c.AddReplica(t, c.Primaries[0], redistest.Options{Version: os.Getenv("REPLICATOR_TEST_CLUSTER_REDIS")})
	r := newClusterRig(t, c, nil)
	ctx := r.ctx()
	fillCluster(r.a)
	p := r.run(false)
	r.caughtUp()
	upToArm(t, ctx, p, false)
	if err := p.Renew(ctx, false, time.Now().Add(30*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := c.Primaries[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitPromotion(ctx, heir); err != nil {
		t.Fatal(err)
	}
	if err := p.Seal(ctx, false); err == nil {
		t.Fatal("sealed although a primary had failed over")
	}
	if err := p.Thaw(ctx, false); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		eventually(t, "the cluster takes writes", func() bool { _, err := r.a.try("SET", fmt.Sprintf("after%d", i), "v"); return err == nil })
	}
	r.caughtUp()
	r.equal()
}

// TestAnEmptyPrimaryIsNotMirrored has one primary of the source come back without its data: a third of the keys.
func TestAnEmptyPrimaryIsNotMirrored(t *testing.T) {
	t.Parallel()
	c := threeNodes(t)
	r := newClusterRig(t, c, threeNodes(t))
	ctx := r.ctx()
	fillCluster(r.a)
	p := r.run(false)
	r.caughtUp()
	before := len(contents(t, r.b))
	comeBackEmpty(t, ctx, c.Primaries[1], r.a)
	eventually(t, "the loss is named", func() bool { return hasProblem(p.Status(), "redis-origin-empty") })
	if n := len(contents(t, r.b)); n != before {
		t.Fatalf("the target lost keys: %d of %d", n, before)
	}
	if err := c.Settle(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Resync(ctx); err != nil {
		t.Fatal(err)
	}
	r.a.s.close()
	r.equal()
	if n := len(contents(t, r.b)); n >= before {
		t.Errorf("what the operator confirmed isn't mirrored: %d keys", n)
	}
}

// TestKeysOfASlotOnTheMove writes keys of a slot, old and new, while half of its keys have moved: they are followed all the same, and a big
// value's last step waits for the end of the move.
func TestKeysOfASlotOnTheMove(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"source", "target"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sides [2]*redistest.Cluster
			c := threeNodes(t)
			sides[i] = c
			r := newClusterRig(t, sides[0], sides[1])
			ctx := r.ctx()
			for k := range 20 {
				r.a.do("SET", fmt.Sprintf("{a}%d", k), "v")
			}
			r.run(false)
			r.caughtUp()
			slot := slotOf("a") // the last primary's
			err := c.MoveSlot(ctx, slot, c.Primaries[2], c.Primaries[0], func() {
				for k := range 30 {
					r.a.do("SET", fmt.Sprintf("{a}%d", k), "moving", "PX", "600000")
				}
				r.a.do("DEL", "{a}3")
				r.caughtUp()
				r.equal()
				r.a.do("SET", "{a}big", strings.Repeat("x", 100<<10))
			})
			if err != nil {
				t.Fatal(err)
			}
			r.caughtUp()
			r.equal()
		})
	}
}
