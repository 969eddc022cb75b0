package redissync

import (
	"slices"
	"strings"
	"testing"

	"replicator/internal/redistest"
)

// TestAfterTheSwitch: what is written on the side that was left is named, with the client; the way back copies each change once and nothing
// goes in circles.
func TestAfterTheSwitch(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	everyType(r.a, "0")
	p := r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	upToArm(t, ctx, p, false)
	switchOver(t, ctx, p, false)
	retire(t, ctx, p, false)
	r.a.s.close()
	r.b.s.close()
	setMany(r.b, 200, "new")
	r.b.do("DEL", "list")
	r.caughtUp()
	r.equal()
	// A write of ours on the source must come back as no change of the target.
	restored := func(c *client) int64 {
		i, err := readInfo(ctx, c.s, "commandstats")
		if err != nil {
			t.Fatal(err)
		}
		return i.calls["restore"] + i.calls["unlink"]
	}
	copied, there, back := p.Status().KeysCopied, restored(r.b), restored(r.a)
	for range 5 {
		r.caughtUp()
	}
	// CaughtUp copies the streams again, each time.
	if now := restored(r.b); now != there {
		t.Errorf("%d keys were written back to the target", now-there)
	}
	if now := p.Status().KeysCopied; now-copied > 5 || restored(r.a)-back > 5 {
		t.Errorf("%d keys were copied though nothing changed", now-copied)
	}
	if hasProblem(p.Status(), "redis-stray-writes") {
		t.Fatalf("our own writes count as a stranger's: %+v", p.Status().Problems)
	}
	r.a.do("SET", "stray", "1")
	eventually(t, "the stray write is named", func() bool {
		return slices.ContainsFunc(p.Status().Problems, func(f findingT) bool {
			return f.Code == "redis-stray-writes" && f.Side == "source" && strings.Contains(f.Message, "lately set) were run by application 127.0.0.1:")
		})
	})
}
