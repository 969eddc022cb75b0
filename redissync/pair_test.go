package redissync

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

type findingT = preflight.Finding

// everyType writes one key of each type and encoding that matters, some with expiry.
func everyType(c *client, db string) {
	c.do("SELECT", db)
	c.lines(`
		SET str:` + db + ` value
		SET int:` + db + ` 12345
		SET lock:` + db + ` x PX 600000
		SET bin:` + db + ` ` + "\x00\xff" + `
		RPUSH list a b c d
		LPUSH list:big ` + strings.Repeat("item ", 2000) + `
		SADD set:int 1 2 3
		SADD set a b c d 1
		HSET hash f1 v1 f2 v2
		HSET hash:big ` + manyPairs(600) + `
		ZADD zset 1 a 2.5 b -inf c +inf d 1e300 e
		ZADD zset:big ` + manyPairs(600) + `
		PFADD hll a b c d e
		GEOADD geo 13.36 38.11 Palermo
		SETBIT bits 1000 1
		XADD stream 1-1 f v
		XADD stream 2-1 f v
		XGROUP CREATE stream workers 0
		XREADGROUP GROUP workers w1 COUNT 1 STREAMS stream >
		EXPIRE hash 1000
		PEXPIREAT zset ` + fmt.Sprint(time.Now().Add(time.Hour).UnixMilli()) + `
	`)
	c.do("SET", "empty", "")
	c.do("SET", "weird \r\n key\x00", "v")
}

func manyPairs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d m%d ", i, i)
	}
	return b.String()
}

func TestEverythingIsCopiedAndFollowed(t *testing.T) {
	for name, o := range map[string]redistest.Options{
		"plain":         {},
		"tls":           {TLS: true, Password: "s3cret"},
		"notifications": {Settings: map[string]string{"notify-keyspace-events": "KEA"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, o, o)
			everyType(r.a, "0")
			everyType(r.a, "3")
			p := r.run(false)
			r.caughtUp()
			r.equal()
			if s := p.Status(); s.Phase != Streaming || s.LagSeconds == nil || s.KeysCopied == 0 || len(s.Problems) > 0 {
				t.Fatalf("status %+v", s)
			}
			everyType(r.a, "7") // a database that was never seen before
			r.a.do("SELECT", "0")
			r.a.lines(`
				DEL str:0
				INCR int:0
				RENAME list list2
				MOVE set 9
				COPY hash copied DB 11
				PERSIST hash
				EVAL redis.call('SET','lua','1');redis.call('DEL','bits') 0
				XACK stream workers 1-1
				SET short x PX 30
			`)
			r.caughtUp()
			r.equal()
			rep, err := p.VerifyNow(r.ctx())
			if err != nil || rep.Mismatches != 0 || rep.Keys < 50 {
				t.Fatalf("verify: %+v, %v", rep, err)
			}
		})
	}
}

func TestVerifyFindsEveryKindOfDifference(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	r.a.lines("SET a 1\nSET b 1\nSET c 1\nZADD z 1 m\nSET same 1 PX 100000\nSADD s 1 2 3 x")
	p := r.run(false)
	r.caughtUp()
	r.b.lines("DEL a\nSET b 2\nPEXPIRE c 100000\nSET extra 1\nZADD z 1.0000000001 m\nSREM s x\nSADD s y\nSREM s y\nSADD s x")
	rep, err := p.VerifyNow(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, d := range rep.Differences {
		got[d.Key] = d.Kind
	}
	want := map[string]string{"a": "missing", "b": "different", "c": "expiry", "extra": "extra", "z": "different"}
	if fmt.Sprint(got) != fmt.Sprint(want) || rep.Mismatches != len(want) {
		t.Fatalf("differences %v, want %v", got, want)
	}
	eventually(t, "the stray writes are named", func() bool { return hasProblem(p.Status(), "redis-stray-writes") })
	if err := p.Resync(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.equal()
}

func TestGapsHeal(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{Persistent: true}, redistest.Options{})
	everyType(r.a, "0")
	everyType(r.a, "1")
	p := r.run(false)
	r.caughtUp()
	steps := map[string]func(){
		"swapdb":  func() { r.a.do("SWAPDB", "0", "1") },
		"flushdb": func() { r.a.do("SELECT", "1"); r.a.do("FLUSHDB") },
		"feed cut": func() {
			r.a.do("CLIENT", "KILL", "TYPE", "pubsub")
			r.a.do("SET", "while", "cut")
			r.a.do("DEL", "hll")
		},
		"every connection cut": func() {
			r.a.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			r.b.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			r.a.do("SET", "k", "v")
		},
		"target restarted empty": func() {
			r.target.Kill()
			if err := r.target.Start(r.ctx()); err != nil {
				t.Fatal(err)
			}
		},
		"source restarted": func() {
			r.source.Kill()
			if err := r.source.Start(r.ctx()); err != nil {
				t.Fatal(err)
			}
			r.a.s.close()
			r.a.do("SET", "after", "restart")
		},
		"flushall": func() { r.a.do("FLUSHALL"); r.a.do("SET", "alone", "1") },
	}
	for _, name := range []string{"swapdb", "flushdb", "feed cut", "every connection cut", "target restarted empty", "source restarted", "flushall"} {
		gaps := p.Status().Gaps
		steps[name]()
		if name != "every connection cut" {
			eventually(t, name+" is noticed", func() bool { return p.Status().Gaps > gaps })
		}
		r.b.s.close()
		r.caughtUp()
		r.equal()
		if t.Failed() {
			t.Fatalf("after %s", name)
		}
	}
	if s := p.Status(); len(contents(t, r.b)) != 1 {
		t.Fatalf("the target holds %v; %+v", contents(t, r.b), s)
	}
}

func TestExpiryNeverMakesAKeyImmortal(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	p := r.run(false)
	r.caughtUp()
	ctx := r.ctx()
	for round := range 300 {
		k := fmt.Sprintf("lock%d", round)
		r.a.do("SET", k, "x", "PX", fmt.Sprint(1+round%5))
	}
	if err := p.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "every lock is gone on the target", func() bool {
		immortal := 0
		for k, v := range contents(t, r.b) {
			if v.expires == 0 && strings.HasPrefix(k.key, "lock") {
				immortal++
			}
		}
		if immortal > 0 {
			t.Fatalf("%d locks never expire", immortal)
		}
		return len(contents(t, r.b)) == 0
	})
}

func TestATargetWithForeignKeysIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	r.b.do("SET", "precious", "1")
	r.a.do("SET", "k", "1")
	err := New(r.o).Run(r.ctx(), false)
	var h *preflight.Hinted
	if !errors.As(err, &h) || h.Code != "redis-target-not-empty" {
		t.Fatalf("Run: %v", err)
	}
	if got := contents(t, r.b); len(got) != 1 {
		t.Fatalf("the target was changed: %v", got)
	}
	r.o.Databases = []int{1}
	r.a.do("SELECT", "1")
	r.a.do("SET", "mine", "1")
	r.run(false)
	r.caughtUp()
	got := contents(t, r.b)
	if _, ok := got[keyID{1, "mine"}]; !ok || len(got) != 2 {
		t.Fatalf("with database 1 only: %v", got)
	}
}

func TestASuccessorEndsItsPredecessor(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	r.run(false)
	r.caughtUp()
	old, oldStop := r.pair, r.stop
	done := make(chan error, 1)
	r.o.Epoch = 2
	r.run(false)
	r.caughtUp()
	eventually(t, "the predecessor ends", func() bool { return old.Status().Phase == Stopped })
	go func() { done <- oldStop() }()
	var h *preflight.Hinted
	if err := <-done; !errors.As(err, &h) || h.Code != "redis-superseded" {
		t.Fatalf("the predecessor's Run: %v", err)
	}
	r.a.do("SET", "k", "v")
	r.caughtUp()
	r.equal()
}

func TestPauseHoldsAndResumeCatchesUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	p := r.run(false)
	r.caughtUp()
	p.Pause()
	r.a.do("SET", "k", "v")
	eventually(t, "the key is dirty", func() bool { s := p.Status(); return s.DirtyKeys == 1 && s.Phase == Stopped })
	ctx, cancel := context.WithTimeout(r.ctx(), 100*time.Millisecond)
	defer cancel()
	if err := p.CaughtUp(ctx); err == nil {
		t.Fatal("caught up while paused")
	}
	p.Resume()
	r.caughtUp()
	r.equal()
}
