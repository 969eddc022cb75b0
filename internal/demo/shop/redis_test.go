package shop

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"replicator/internal/demo/ledger"
	"replicator/internal/redistest"
)

func startRedis(t *testing.T) (Endpoint, *redis.Client) {
	t.Helper()
	at := Endpoint{Name: "source", RedisURL: redistest.Start(t, redistest.Options{}).URL()}
	if _, _, err := Load(t.Context(), at, Small); err != nil {
		t.Fatal(err)
	}
	options, err := redis.ParseURL(at.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(options)
	t.Cleanup(func() { _ = c.Close() })
	return at, c
}

func TestWritersKeepTheBooksInRedis(t *testing.T) {
	at, c := startRedis(t)
	l := ledger.New("t1")
	o, acknowledged := signalled(WritersOptions{At: at, Ledger: l, Size: Small, Rate: 2000, Seed: 7})
	w := NewWriters(o)
	run(t, w, l, "redis", 1000, acknowledged)
	run(t, w, l, "redis", 1200, acknowledged)
	totals := l.Totals()["redis"]
	if totals.Failed > 0 || totals.Unknown > 0 {
		t.Errorf("writes ended badly: %+v", totals)
	}
	if r := audit(t, l, at); !r.Good() || r.Acknowledged != totals.Acknowledged {
		t.Errorf("the audit of an untouched shop says %v", r)
	}

	// Each fault is done and undone; the audit has to see it in between.
	ctx := t.Context()
	list := "queue:default"
	if n := c.LLen(ctx, list).Val(); n == 0 {
		list = "done:0:0"
	}
	job := c.LIndex(ctx, list, 0).Val()
	stream := "activity:0:0"
	entries := c.XRange(ctx, stream, "-", "+").Val()
	last := entries[len(entries)-1]
	faults := []struct {
		name     string
		do, undo func()
		seen     func(ledger.Report) bool
	}{
		{"a lost job", func() { c.LPop(ctx, list) }, func() { c.LPush(ctx, list, job) }, func(r ledger.Report) bool { return r.Lost == 1 }},
		{"a job back in the queue", func() { c.LPush(ctx, list, job) }, func() { c.LPop(ctx, list) }, func(r ledger.Report) bool { return r.Duplicated == 1 }},
		{"a job both scheduled and queued", func() { c.ZAdd(ctx, "schedule", redis.Z{Member: job}) }, func() { c.ZRem(ctx, "schedule", job) }, func(r ledger.Report) bool { return r.Duplicated == 1 }},
		{"a lost stream entry", func() { c.XDel(ctx, stream, last.ID) }, func() {
			c.XAdd(ctx, &redis.XAddArgs{Stream: "activity:fixed", Values: last.Values})
		}, func(r ledger.Report) bool { return r.Lost == 1 }},
		{"a counter stepped twice", func() { c.Incr(ctx, viewsKey(1)) }, func() { c.Decr(ctx, viewsKey(1)) }, func(r ledger.Report) bool { return r.Duplicated == 1 }},
		{"a counter set back", func() { c.DecrBy(ctx, viewsKey(2), 3) }, func() { c.IncrBy(ctx, viewsKey(2), 3) }, func(r ledger.Report) bool { return r.Lost == 3 }},
		{"a lost counter", func() { c.Rename(ctx, viewsKey(3), "saved") }, func() { c.Rename(ctx, "saved", viewsKey(3)) }, func(r ledger.Report) bool { return r.Lost > 0 }},
	}
	for _, f := range faults {
		f.do()
		if r := audit(t, l, at); !f.seen(r) {
			t.Errorf("%s: the audit missed it: %v", f.name, r)
		}
		f.undo()
		if r := audit(t, l, at); !r.Good() {
			t.Fatalf("%s, mended: the audit still says %v", f.name, r)
		}
	}
}

func TestWritersFollowTheSwitchInRedis(t *testing.T) {
	source, from := startRedis(t)
	target := Endpoint{Name: "target", RedisURL: redistest.Start(t, redistest.Options{}).URL()}
	l := ledger.New("t3")
	o, acknowledged := signalled(WritersOptions{At: source, Ledger: l, Size: Small, Rate: 2000, Seed: 9})
	w := NewWriters(o)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	await := func(n int64) {
		t.Helper()
		for l.Totals()["redis"].Acknowledged < n {
			select {
			case <-acknowledged:
			case <-ctx.Done():
				t.Fatalf("only %+v", l.Totals())
			}
		}
	}
	await(200)
	// The writes that the pause holds are cut off by the switch and must not happen on the source.
	if err := from.Do(ctx, "CLIENT", "PAUSE", "30000", "WRITE").Err(); err != nil {
		t.Fatal(err)
	}
	before := l.Totals()["redis"].Acknowledged
	if err := w.Use(ctx, target); err != nil {
		t.Fatal(err)
	}
	await(before + 500)
	if err := from.Do(ctx, "CLIENT", "UNPAUSE").Err(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if w.At() != target {
		t.Errorf("the writers are at %v", w.At())
	}
	if totals := l.Totals()["redis"]; totals.Failed > 0 {
		t.Errorf("writes failed: %+v", totals)
	}
	// Nothing was replicated, so each write must be on one of the sides.
	a, b := audit(t, l, source), audit(t, l, target)
	if a.Duplicated > 0 || b.Duplicated > 0 || a.Phantom > 0 || b.Phantom > 0 || a.Lost+b.Lost != a.Acknowledged {
		t.Errorf("source: %v\ntarget: %v", a, b)
	}
	if a.Lost < 400 { // of the 500 a few were acknowledged by the source, before the pause and after the count
		t.Errorf("only %d writes went to the target", a.Lost)
	}
}

func TestCompareRedis(t *testing.T) {
	a, source := startRedis(t)
	b := Endpoint{Name: "target", RedisURL: redistest.Start(t, redistest.Options{}).URL()}
	options, err := redis.ParseURL(b.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	target := redis.NewClient(options)
	t.Cleanup(func() { _ = target.Close() })
	ctx := t.Context()
	for db := range cacheDatabase + 1 {
		from, to := redis.NewClient(&redis.Options{Addr: source.Options().Addr, DB: db}), redis.NewClient(&redis.Options{Addr: options.Addr, DB: db})
		keys, err := scan(ctx, from, "*")
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			body, life := from.Dump(ctx, key).Val(), max(0, from.PTTL(ctx, key).Val())
			if err := to.Restore(ctx, key, life, body).Err(); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = from.Close(), to.Close()
	}
	if d, err := Compare(ctx, a, b); err != nil || len(d) > 0 {
		t.Fatalf("equal contents differ: %v %v", d, err)
	}
	changes := map[string]func(c *redis.Client){
		"a string":            func(c *redis.Client) { c.Append(ctx, "views:6", "1") },
		"a hash field":        func(c *redis.Client) { c.HSet(ctx, "carts", "cart:1", "x") },
		"a list's order":      func(c *redis.Client) { c.RPopLPush(ctx, "queue:mailers", "queue:mailers") },
		"a set's member":      func(c *redis.Client) { c.SAdd(ctx, "online", "x") },
		"a score":             func(c *redis.Client) { c.ZAdd(ctx, "leaderboard", redis.Z{Score: 1, Member: "user:1"}) },
		"a stream's entry":    func(c *redis.Client) { c.XDel(ctx, "activity", c.XRange(ctx, "activity", "-", "+").Val()[0].ID) },
		"an expiry":           func(c *redis.Client) { c.PExpire(ctx, "session:0", 2*time.Hour) },
		"an expiry taken off": func(c *redis.Client) { c.Persist(ctx, "session:1") },
		"a missing key":       func(c *redis.Client) { c.Del(ctx, "queues") },
		"an extra key":        func(c *redis.Client) { c.Set(ctx, "extra", 1, 0) },
	}
	for name, change := range changes {
		before, err := Compare(ctx, a, b)
		if err != nil {
			t.Fatal(err)
		}
		change(target)
		after, err := Compare(ctx, a, b)
		if err != nil || len(after) != len(before)+1 {
			t.Errorf("%s went unseen: %v %v", name, after, err)
		}
		if name == "a stream's entry" || name == "an expiry" { // not the same change on the other side
			continue
		}
		change(source)
		if mended, err := Compare(ctx, a, b); err != nil || len(mended) != len(before) {
			t.Errorf("%s on both sides: %v %v", name, mended, err)
		}
	}
}

// A key that is just about to expire isn't taken for one that never does.
func TestReadRedisWhileKeysExpire(t *testing.T) {
	at := Endpoint{RedisURL: redistest.Start(t, redistest.Options{}).URL()}
	options, err := redis.ParseURL(at.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(options)
	defer c.Close()
	const keys = 2000
	p := c.Pipeline()
	for i := range keys {
		p.Set(t.Context(), strconv.Itoa(i), "v", 100*time.Millisecond+time.Duration(i)*time.Second/2/keys)
	}
	if _, err := p.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	for left := 1; left > 0; {
		values, err := readRedis(t.Context(), at.RedisURL, 0)
		if err != nil {
			t.Fatal(err)
		}
		for key, v := range values {
			if v.expires.IsZero() {
				t.Fatalf("key %s never expires", key)
			}
		}
		left = len(values)
	}
}
