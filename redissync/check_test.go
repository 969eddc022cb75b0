package redissync

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

func codes(fs []preflight.Finding, worst preflight.Severity) []string {
	var out []string
	for _, f := range fs {
		if f.Severity >= worst {
			out = append(out, f.Code+"/"+f.Side)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	plain := redistest.Options{}
	for _, c := range []struct {
		name           string
		source, target redistest.Options
		prepare        func(r *rig)
		want           []string // codes of warnings and errors
	}{
		{"good", redistest.Options{TLS: true, Password: "s3cret"}, plain, func(r *rig) { everyType(r.a, "0"); everyType(r.a, "5") }, nil},
		{"wrong password", redistest.Options{Password: "right"}, plain, func(r *rig) { r.o.SourceURL = strings.Replace(r.o.SourceURL, "right", "s3cret", 1) }, []string{"redis-auth/source"}},
		{"no password", plain, redistest.Options{Password: "s3cret"}, func(r *rig) { r.o.TargetURL = strings.Replace(r.o.TargetURL, ":s3cret@", "", 1) }, []string{"redis-auth/target"}},
		{"unknown authority", redistest.Options{TLS: true}, plain, func(r *rig) { r.o.SourceTLS = TLS{} }, []string{"redis-tls/source"}},
		{"wrong pin", redistest.Options{TLS: true}, plain, func(r *rig) { r.o.SourceTLS = TLS{Pin: strings.Repeat("ab", 32)} }, []string{"redis-tls/source"}},
		{"plain server, TLS URL", plain, plain, func(r *rig) { r.o.SourceURL = strings.Replace(r.o.SourceURL, "redis:", "rediss:", 1) }, []string{"redis-tls/source"}},
		{"down", plain, plain, func(r *rig) { r.source.Kill() }, []string{"redis-unreachable/source"}},
		{"not a URL", plain, plain, func(r *rig) { r.o.TargetURL = "postgres://u:s3cret@h/%zz" }, []string{"redis-url/"}},
		{"same server", plain, plain, func(r *rig) { r.o.TargetURL = r.o.SourceURL }, []string{"redis-same-server/"}},
		{"not empty", plain, plain, func(r *rig) { r.b.do("SET", "k", "v") }, []string{"redis-target-not-empty/target"}},
		{"too few databases", plain, redistest.Options{Settings: map[string]string{"databases": "4"}}, func(r *rig) { r.a.do("SELECT", "5"); r.a.do("SET", "k", "v") }, []string{"redis-databases/target"}},
		{"evicting target", plain, redistest.Options{Settings: map[string]string{"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}}, nil, []string{"redis-eviction/target"}},
		{"little room", redistest.Options{Settings: map[string]string{"maxmemory": "20mb"}}, plain, nil, []string{"redis-memory-headroom/source"}},
		{"replica", plain, plain, func(r *rig) { r.b.do("REPLICAOF", "127.0.0.1", fmt.Sprint(r.source.Port())) }, []string{"redis-not-primary/target"}},
		{"cluster", plain, redistest.Options{Settings: map[string]string{"cluster-enabled": "yes"}}, nil, []string{"redis-cluster-slots/target"}},
		{"no tracking", plain, plain, func(r *rig) {
			r.a.do("ACL", "SETUSER", "u", "on", ">s3cret", "allkeys", "allchannels", "+@all", "-client|tracking", "-dump")
			r.o.SourceURL = strings.Replace(r.o.SourceURL, "redis://", "redis://u:s3cret@", 1)
		}, []string{"redis-feed/source", "redis-permission/source"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, c.source, c.target)
			if c.prepare != nil {
				c.prepare(r)
			}
			fs := Check(r.ctx(), r.o)
			if got := codes(fs, preflight.Warning); !slices.Equal(got, c.want) {
				t.Errorf("findings %v, want %v: %+v", got, c.want, fs)
			}
			for _, f := range fs {
				if strings.Contains(f.Message+f.Hint, "s3cret") {
					t.Errorf("a finding shows a password: %+v", f)
				}
				if f.Severity >= preflight.Warning && f.Hint == "" {
					t.Errorf("a finding without a remedy: %+v", f)
				}
			}
		})
	}
}

func TestCheckChangesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	everyType(r.a, "0")
	before := fmt.Sprint(contents(t, r.a), contents(t, r.b))
	fs := Check(r.ctx(), r.o)
	if preflight.Worst(fs) != preflight.OK {
		t.Errorf("findings %+v", fs)
	}
	if after := fmt.Sprint(contents(t, r.a), contents(t, r.b)); after != before {
		t.Error("the servers' contents changed")
	}
	r.a.do("SET", "not", "paused")
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		p, s string
		want bool
	}{
		{"*", "", true}, {"*", "a/b", true}, {"a*c", "abbc", true}, {"a*c", "abcd", false}, {"a?c", "abc", true}, {"a?c", "ac", false},
		{`a\*`, "a*", true}, {`a\*`, "ab", false}, {"session:*", "session:1", true}, {"session:*", "ssession:1", false}, {"*a*b*", "xxaxxbxx", true}, {"", "", true}, {"", "a", false},
	} {
		if got := matches(c.p, c.s); got != c.want {
			t.Errorf("matches(%q, %q) = %v", c.p, c.s, got)
		}
	}
}
