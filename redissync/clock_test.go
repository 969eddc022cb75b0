package redissync

import (
	"fmt"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// left is how long a key, or a field of it, still has to live, by two readings of the server's own clock that enclose the reply.
func left(t *testing.T, c *client, ask ...string) time.Duration {
	t.Helper()
	v := c.do(ask...)
	at := v.num
	if len(v.items) == 1 {
		at = v.items[0].num
	}
	if at <= 0 {
		t.Fatalf("%q: %v", ask, flat(v))
	}
	ahead, exact, err := clock(t.Context(), c.s)
	if err != nil || exact > 2*time.Millisecond {
		t.Fatalf("the clock is known to %v only: %v", exact, err)
	}
	return time.UnixMilli(at).Add(-ahead).Sub(epochOfTest)
}

var epochOfTest = time.Now()

// TestExpiriesFallOnTheSameInstant: servers whose clocks differ let keys and hash fields expire within 5 ms of each other.
func TestExpiriesFallOnTheSameInstant(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version string
		ahead   time.Duration
	}{{"", 3 * time.Second}, {"", 12 * time.Millisecond}, {"redis-8.0", -1500 * time.Millisecond}, {"redis-6.0", 700 * time.Millisecond}} {
		t.Run(fmt.Sprintf("%s %v", versionName(c.version), c.ahead), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Options{Version: c.version}, redistest.Options{Version: c.version, ClockAhead: c.ahead})
			keys := []string{"a", "b", "h"}
			r.a.lines("SET a 1 PX 60000\nHSET h f 1 g 2\nPEXPIRE h 70000")
			fields := c.version == "redis-8.0"
			if fields {
				r.a.do("HPEXPIRE", "h", "50000", "FIELDS", "1", "f")
			}
			pair := r.run(false)
			r.caughtUp()
			r.a.lines("SET b 1 PX 80000\nSET soon 1 PX 30")
			r.caughtUp()
			same := func(ask func(c *client, key string) time.Duration, key string) {
				t.Helper()
				if a, b := ask(r.a, key), ask(r.b, key); (a - b).Abs() > 5*time.Millisecond {
					t.Errorf("%s expires %v earlier on the source than on the target", key, b-a)
				}
			}
			for _, k := range keys {
				same(func(c *client, key string) time.Duration { return expiresAt(t, c, key) }, k)
			}
			if fields {
				same(func(c *client, key string) time.Duration { return left(t, c, "HPEXPIRETIME", key, "FIELDS", "1", "f") }, "h")
			}
			eventually(t, "the key expires on the target", func() bool { return r.b.do("EXISTS", "soon").num == 0 })
			rep, err := pair.VerifyNow(r.ctx())
			if err != nil || rep.Mismatches != 0 {
				t.Fatalf("verify: %+v, %v", rep, err)
			}
		})
	}
}

// expiresAt is the instant of a key's expiry by our clock, counted from the test's begin.
func expiresAt(t *testing.T, c *client, key string) time.Duration {
	t.Helper()
	for range 100 {
		before := time.Now()
		v := c.do("PTTL", key)
		after := time.Now()
		if after.Sub(before) < 2*time.Millisecond {
			return before.Add(after.Sub(before)/2 + time.Duration(v.num)*time.Millisecond).Sub(epochOfTest)
		}
	}
	t.Fatal("the server is too slow to be asked for a time to live")
	return 0
}
