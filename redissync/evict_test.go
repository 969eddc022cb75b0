package redissync

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"replicator/internal/redistest"
)

// fillKilobytes writes strings of a kilobyte, and a hash of many.
func fillKilobytes(c *client, n int) {
	batch := command{"MSET"}
	for i := range n {
		batch = append(batch, fmt.Sprintf("page:%05d", i), strings.Repeat("x", 1000))
	}
	c.do(batch...)
	hash := command{"HSET", "catalogue"}
	for i := range n / 4 {
		hash = append(hash, strconv.Itoa(i), strings.Repeat("y", 1000))
	}
	c.do(hash...)
}

// problem returns what the status says under a code.
func problem(s Status, code string) findingT {
	if i := slices.IndexFunc(s.Problems, func(f findingT) bool { return f.Code == code }); i >= 0 {
		return s.Problems[i]
	}
	return findingT{}
}

// TestATargetThatEvicts gives the target less memory than the keys need, and a policy by which it drops some of them, our own notes among
// them. That is named, nobody is told that the target has everything, and the source is not scanned all the time; with enough memory it heals.
func TestATargetThatEvicts(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{Settings: map[string]string{"maxmemory-policy": "allkeys-lru", "maxmemory-samples": "20"}})
	fillKilobytes(r.a, 4000)
	r.b.do("CONFIG", "SET", "maxmemory", strconv.FormatInt(infoNumber(r.b, "memory", "used_memory")+2<<20, 10))
	p := r.run(false)
	eventually(t, "the eviction is named", func() bool { return hasProblem(p.Status(), "redis-eviction") })
	if f := problem(p.Status(), "redis-eviction"); f.Side != "target" || !strings.Contains(f.Hint, "maxmemory") || !strings.Contains(f.Message, "allkeys-lru") {
		t.Errorf("%+v", f)
	}
	eventually(t, "the first copy has ended", func() bool { return p.Status().Phase == Streaming })
	if s := p.Status(); s.DirtyKeys == 0 || s.LagSeconds == nil {
		t.Errorf("the target lacks keys, and the status doesn't tell: %+v", s)
	}
	if fs := p.Check(r.ctx(), false); !slices.ContainsFunc(fs, func(f findingT) bool { return f.Code == "redis-reconciling" }) {
		t.Errorf("the cutover's check says %+v", fs)
	}
	// Each attempt evicts others; the pauses between them grow.
	gaps, scans := p.Status().Gaps, infoCalls(r.a, "scan")
	eventually(t, "another attempt has failed", func() bool { return p.Status().Gaps > gaps })
	if n := infoCalls(r.a, "scan") - scans; n > 60 {
		t.Errorf("the source was scanned by %d calls for it", n)
	}
	r.b.do("CONFIG", "SET", "maxmemory", "0")
	r.caughtUp()
	r.equal()
	eventually(t, "the trouble is over", func() bool { return !hasProblem(p.Status(), "redis-eviction") })
	// Nor has the target forgotten whose keys it holds.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r.run(false)
	r.caughtUp()
	r.equal()
}

// TestATargetThatIsFull has the target refuse writes for want of memory, of small keys as well as of a value that moves in pieces. It is named,
// what can be done without memory is done, and once there is some, everything arrives.
func TestATargetThatIsFull(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{Settings: map[string]string{"maxmemory-policy": "noeviction"}})
	r.o.BigBytes = 256 << 10
	r.a.do("SET", "goes", "soon")
	p := r.run(false)
	r.caughtUp()
	r.b.do("CONFIG", "SET", "maxmemory", strconv.FormatInt(infoNumber(r.b, "memory", "used_memory")+1<<20, 10))
	fillKilobytes(r.a, 4000)
	r.a.do("DEL", "goes")
	eventually(t, "it is named", func() bool { return hasProblem(p.Status(), "redis-out-of-memory") })
	if f := problem(p.Status(), "redis-out-of-memory"); f.Side != "target" || !strings.Contains(f.Hint, "more memory") {
		t.Errorf("%+v", f)
	}
	eventually(t, "a deletion is carried over nevertheless", func() bool { return r.b.do("EXISTS", "goes").num == 0 })
	if s := p.Status(); s.DirtyKeys == 0 || s.LagSeconds == nil || *s.LagSeconds == 0 {
		t.Errorf("keys wait, and the status doesn't tell: %+v", s)
	}
	r.a.do("SET", "page:00007", "new")
	r.a.do("HDEL", "catalogue", "3")
	r.b.do("CONFIG", "SET", "maxmemory", "0")
	r.caughtUp()
	r.equal()
	if left := r.b.do("KEYS", ownPrefix+"*:temporary:*"); len(left.items) > 0 {
		t.Errorf("left behind: %q", left.strings())
	}
}

// infoCalls is how often a command was run.
func infoCalls(c *client, name string) int64 {
	c.t.Helper()
	n, _ := strconv.ParseInt(between(c.do("INFO", "commandstats").str, "\ncmdstat_"+name+":calls=", ","), 10, 64)
	return n
}
