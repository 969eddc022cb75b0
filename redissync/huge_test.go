package redissync

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// slowest is what no command of ours may take on either server, on a machine that is otherwise idle.
const slowest = 100 * time.Millisecond

// TestHugeValuesMoveWithoutHoldingServersUp copies a huge sorted set and a huge hash (with REPLICATOR_SOAK two million members and
// 200 MB) while an application writes to them. Both servers log every command: none of ours may touch more than a piece of a value, and, in
// the soak, none may take 100 ms.
func TestHugeValuesMoveWithoutHoldingServersUp(t *testing.T) {
	t.Parallel()
	members, fields := 60_000, 20_000
	if soak() {
		members, fields = 2_000_000, 400_000
	}
	logged := redistest.Options{Version: "redis-8.0", Settings: map[string]string{"slowlog-log-slower-than": "0", "slowlog-max-len": "200000", "lazyfree-lazy-server-del": "no"}}
	r := newRig(t, logged, logged)
	r.patience = 5 * time.Minute
	value := strings.Repeat("v", 490)
	l, err := r.a.s.open(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	load := func(n int, head command, add func(command, int) command) {
		for i := 0; i < n; i += 1000 {
			cmd := slices.Clone(head)
			for j := i; j < min(n, i+1000); j++ {
				cmd = add(cmd, j)
			}
			if _, err := l.pipe(r.ctx(), []command{cmd}); err != nil {
				t.Fatal(err)
			}
		}
	}
	load(members, command{"ZADD", "huge:zset"}, func(c command, i int) command { return append(c, strconv.Itoa(i)+".25", "member:"+strconv.Itoa(i)) })
	load(fields, command{"HSET", "huge:hash"}, func(c command, i int) command { return append(c, "field:"+strconv.Itoa(i), value) })
	load(fields/10, command{"HPEXPIREAT", "huge:hash", "4000000000000", "FIELDS", "1000"}, func(c command, i int) command { return append(c, "field:"+strconv.Itoa(i)) })
	t.Logf("the zset takes %d MB, the hash %d MB", r.a.do("MEMORY", "USAGE", "huge:zset").num>>20, r.a.do("MEMORY", "USAGE", "huge:hash").num>>20)
	if v := r.a.do("MEMORY", "USAGE", "huge:hash").num; v < 4*bigBytes {
		t.Fatalf("the hash takes only %d bytes", v)
	}

	stop, done := make(chan struct{}), make(chan struct{})
	writer := dialServer(t, r.source)
	var written int
	go func() {
		defer close(done)
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-stop:
				written = i
				return
			case <-tick.C:
			}
			n := strconv.Itoa(i * 7919 % members)
			f := strconv.Itoa(i * 7919 % fields)
			for _, c := range []command{{"ZINCRBY", "huge:zset", "1000000", "member:" + n}, {"ZREM", "huge:zset", "member:" + strconv.Itoa(i)},
				{"HSET", "huge:hash", "field:" + f, n}, {"HDEL", "huge:hash", "field:" + strconv.Itoa(fields-1-i)}, {"HSET", "huge:hash", "new:" + n, n}} {
				if _, err := writer.s.do(context.Background(), c...); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	started := time.Now()
	p := r.run(false)
	r.caughtUp()
	t.Logf("first copy under writes: %v", time.Since(started).Round(time.Millisecond))
	started = time.Now()
	r.caughtUp() // both are made equal in place, while they go on changing
	t.Logf("another pass under writes: %v", time.Since(started).Round(time.Millisecond))
	close(stop)
	<-done
	started = time.Now()
	r.caughtUp()
	t.Logf("last pass after %d writes: %v", 5*written, time.Since(started).Round(time.Millisecond))
	r.equal()
	a, b := r.a.fieldTimes("huge:hash", fields/10), r.b.fieldTimes("huge:hash", fields/10)
	timed := slices.Index(a, 4000000000000)
	if !slices.Equal(a, b) || timed < 0 {
		t.Fatalf("the fields' expiries differ, or there are none (first: %d)", timed)
	}
	started = time.Now()
	if rep, err := p.VerifyNow(r.ctx()); err != nil || rep.Mismatches > 0 || rep.Moving > 0 {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
	t.Logf("verified in %v", time.Since(started).Round(time.Millisecond))
	// A field that only the target has, one that lost its expiry, and a score that is a little off are found and mended in place.
	for _, c := range []command{{"HSET", "huge:hash", "stray", "1"}, {"HPERSIST", "huge:hash", "FIELDS", "1", "field:" + strconv.Itoa(timed)}, {"ZINCRBY", "huge:zset", "0.5", "member:" + strconv.Itoa(members-1)}, {"ZADD", "huge:zset", "7", "stray"}} {
		r.b.do(c...)
	}
	if rep, err := p.VerifyNow(r.ctx()); err != nil || rep.Mismatches != 2 {
		t.Fatalf("verify after stray writes: %+v, %v", rep, err)
	}
	if err := p.Resync(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.equal()
	if rep, err := p.VerifyNow(r.ctx()); err != nil || rep.Mismatches > 0 {
		t.Fatalf("verify after the stray writes were mended: %+v, %v", rep, err)
	}
	// Their ends cost no more: deleted, and overwritten by something small.
	r.a.do("UNLINK", "huge:zset")
	r.a.do("UNLINK", "huge:hash")
	r.a.do("SET", "huge:hash", "small")
	r.caughtUp()
	r.equal()
	for side, c := range map[string]*client{"source": r.a, "target": r.b} {
		judgeSlowlog(t, side, c)
	}
}

func (c *client) fieldTimes(key string, n int) (out []int64) {
	cmd := []string{"HPEXPIRETIME", key, "FIELDS", strconv.Itoa(n)}
	for i := range n {
		cmd = append(cmd, "field:"+strconv.Itoa(i))
	}
	for _, v := range c.do(cmd...).items {
		out = append(out, v.num)
	}
	return out
}

// judgeSlowlog fails the test where a command of ours took long, or more than a piece of a huge value (Redis documentation, "SLOWLOG GET").
func judgeSlowlog(t *testing.T, side string, c *client) {
	t.Helper()
	type entry struct {
		took time.Duration
		args []string
	}
	var ours []entry
	for _, e := range c.do("SLOWLOG", "GET", "-1").items {
		if strings.HasPrefix(e.items[5].str, "replicator:") {
			ours = append(ours, entry{time.Duration(e.items[2].num) * time.Microsecond, e.items[3].strings()})
		}
	}
	slices.SortFunc(ours, func(a, b entry) int { return int(b.took - a.took) })
	if len(ours) < 100 {
		t.Fatalf("the %s has logged only %d commands of ours", side, len(ours))
	}
	for _, e := range ours[:5] {
		t.Logf("%s: %v for %.60q", side, e.took, e.args[:min(len(e.args), 6)])
	}
	if soak() && ours[0].took > slowest { // on a busy machine, a server waits for its turn in the midst of a command
		t.Errorf("%s: a command of ours took %v: %.200q", side, ours[0].took, e0(ours[0].args))
	}
	for _, e := range ours {
		if len(e.args) < 2 || !strings.HasPrefix(e.args[1], "huge:") {
			continue
		}
		switch name := strings.ToUpper(e.args[0]); name {
		case "DUMP", "RESTORE", "HGETALL", "SMEMBERS", "DEL":
			if small := name == "RESTORE" && len(e.args[3]) < 100 || name == "DUMP" && e.took < 10*time.Millisecond; !small {
				t.Errorf("%s: a huge value was moved whole: %.100q took %v", side, e.args, e.took)
			}
		case "ZRANGE":
			from, _ := strconv.Atoi(e.args[2])
			to, err := strconv.Atoi(e.args[3])
			if err != nil || to < from || to-from >= pieceElements {
				t.Errorf("%s: more than a piece was asked for: %q", side, e.args)
			}
		case "HSCAN":
			if n, err := strconv.Atoi(e.args[4]); err != nil || n > pieceElements {
				t.Errorf("%s: more than a piece was asked for: %q", side, e.args)
			}
		}
	}
}

func e0(args []string) []string { return args[:min(len(args), 8)] }
