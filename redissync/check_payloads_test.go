package redissync

import (
	"slices"
	"strings"
	"testing"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

// TestCheckShowsTheTargetEachEncoding names what an older target takes as it is, and what it doesn't know, and leaves nothing behind.
func TestCheckShowsTheTargetEachEncoding(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ source, target, code, part string }{
		{"", "", "redis-payloads", "the target takes all "},
		{"redis-8.0", "redis-6.0", "redis-payloads", "doesn't know these encodings of values: "},
		{"redis-8.0", "", "redis-payloads", "under an older version's name: string (encoding 0"},
	} {
		r := newRig(t, redistest.Options{Version: c.source}, redistest.Options{Version: c.target})
		everyType(r.a, "0")
		fs := Check(r.ctx(), r.o)
		if !slices.ContainsFunc(fs, func(f preflight.Finding) bool { return f.Code == c.code && strings.Contains(f.Message, c.part) }) {
			t.Errorf("from %q to %q: no %q in %+v", c.source, c.target, c.part, fs)
		}
		if n := len(r.b.do("KEYS", "*").items); n != 0 {
			t.Errorf("%d keys left behind", n)
		}
	}
}

// TestCheckNamesFallbacks: what a server lacks, or its user may not use, but can be done without.
func TestCheckNamesFallbacks(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{Version: "redis-6.0", Settings: map[string]string{"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"}}, redistest.Options{})
	r.b.do("ACL", "SETUSER", "u", "on", ">s3cret", "allkeys", "allchannels", "+@all", "-memory|usage", "-config")
	r.o.TargetURL = strings.Replace(r.o.TargetURL, "redis://", "redis://u:s3cret@", 1)
	fs := Check(r.ctx(), r.o)
	for _, want := range [][3]string{
		{"redis-fallback", "source", "PEXPIRETIME"}, {"redis-fallback", "source", "NO-TOUCH"}, {"redis-fallback", "target", "MEMORY USAGE"}, {"redis-pause", "source", "can't hold writes"},
		{"redis-notifications", "source", "off"}, {"redis-notifications", "target", "can't be read"},
	} {
		if !slices.ContainsFunc(fs, func(f preflight.Finding) bool {
			return f.Code == want[0] && f.Side == want[1] && strings.Contains(f.Message, want[2])
		}) {
			t.Errorf("no %v in %+v", want, fs)
		}
	}
	r.b.do("ACL", "SETUSER", "u", "-rename", "-multi")
	if fs := codes(Check(r.ctx(), r.o), preflight.Error); !slices.Contains(fs, "redis-permission/target") {
		t.Errorf("a user without MULTI is accepted: %v", fs)
	}
}
