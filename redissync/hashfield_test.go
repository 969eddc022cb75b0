package redissync

import (
	"fmt"
	"testing"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

// fieldsOf reads a hash and its fields' expiries by plain commands.
func fieldsOf(c *client, key string) map[string]int64 {
	names := sortedPairs(c.do("HGETALL", key).strings())
	out := map[string]int64{}
	for _, p := range names {
		_, field, _ := cutLength(p)
		v := c.do("HPEXPIRETIME", key, "FIELDS", "1", field)
		out[field] = v.items[0].num
	}
	return out
}

// cutLength takes a pair apart that sortedPairs has made of a name of one byte.
func cutLength(p string) (string, string, string) { return p[:2], p[2:3], p[3:] }

// TestFieldsThatExpireAreCarriedOver moves hashes with expiring fields between families whose payloads differ, and within one, each way.
func TestFieldsThatExpireAreCarriedOver(t *testing.T) {
	t.Parallel()
	for _, p := range [][2]string{{"redis-8.0", "valkey-9.1"}, {"valkey-9.1", "redis-8.0"}, {"valkey-9.1", "valkey-9.1"}} {
		t.Run(p[0]+" to "+p[1], func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Options{Version: p[0]}, redistest.Options{Version: p[1]})
			later := fmt.Sprint(time.Now().Add(time.Hour).UnixMilli())
			r.a.lines("HSET h a 1 b 2 c 3\nHPEXPIREAT h " + later + " FIELDS 2 a b\nHSET soon a 1 b 2\nHSET all a 1\nPEXPIREAT h " + later)
			r.a.do(append([]string{"HSET", "large"}, manyFields(2500)...)...)
			r.a.lines("HPEXPIREAT large " + later + " FIELDS 2 f1 f2")
			pair := r.run(false)
			r.caughtUp()
			same := func() {
				t.Helper()
				r.equal()
				for _, key := range []string{"h", "soon"} {
					if a, b := fieldsOf(r.a, key), fieldsOf(r.b, key); fmt.Sprint(a) != fmt.Sprint(b) {
						t.Fatalf("%s: fields expire %v on the source, %v on the target", key, a, b)
					}
				}
				rep, err := pair.VerifyNow(r.ctx())
				if err != nil || rep.Mismatches != 0 {
					t.Fatalf("verify: %+v, %v", rep, err)
				}
			}
			same()
			r.a.lines("HPERSIST h FIELDS 1 a\nHPEXPIREAT h " + later + "9 FIELDS 1 c\nHPEXPIRE soon 40 FIELDS 1 a\nHPEXPIRE all 40 FIELDS 1 a")
			r.caughtUp()
			if v := r.b.do("HPEXPIRETIME", "large", "FIELDS", "3", "f1", "f2", "f3"); fmt.Sprint(flat(v)) != "["+later+" "+later+" -1]" {
				t.Fatalf("large: %v", flat(v))
			}
			eventually(t, "the fields expire on the target", func() bool {
				return r.b.do("HLEN", "soon").num == 1 && r.b.do("EXISTS", "all").num == 0
			})
			eventually(t, "and on the source", func() bool { return r.a.do("HLEN", "soon").num == 1 })
			same()
			r.b.lines("HPERSIST h FIELDS 1 b")
			if rep, err := pair.VerifyNow(r.ctx()); err != nil || rep.Mismatches != 1 {
				t.Fatalf("a field that would live for ever isn't found: %+v, %v", rep, err)
			}
		})
	}
}

func manyFields(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("f%d", i), "v")
	}
	return out
}

// TestFieldsThatExpireAreRefusedWhereUnknown: a server that doesn't know them must not get fields that then live for ever.
func TestFieldsThatExpireAreRefusedWhereUnknown(t *testing.T) {
	t.Parallel()
	for _, source := range []string{"redis-8.0", "valkey-9.1"} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Options{Version: source}, redistest.Options{})
			r.a.lines("HSET h a 1 b 2\nHEXPIRE h 1000 FIELDS 1 a\nHSET plain a 1")
			found := false
			for _, f := range Check(r.ctx(), r.o) {
				found = found || f.Code == "redis-field-expiry" && f.Severity == preflight.Error
			}
			if !found {
				t.Error("check doesn't name it")
			}
			p := r.run(false)
			eventually(t, "the hash is named", func() bool { return hasProblem(p.Status(), "redis-field-expiry") })
			eventually(t, "the other hash is there", func() bool { return r.b.do("EXISTS", "plain").num == 1 })
			if r.b.do("EXISTS", "h").num != 0 {
				t.Fatalf("the target has %v", flat(r.b.do("HGETALL", "h")))
			}
			r.a.do("HPERSIST", "h", "FIELDS", "1", "a")
			r.caughtUp()
			r.equal()
		})
	}
}

func TestFunctionsAreCarriedOver(t *testing.T) {
	t.Parallel()
	for _, p := range [][2]string{{"redis-8.0", ""}, {"", "valkey-9.1"}} {
		t.Run(p[0]+" to "+p[1], func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Options{Version: p[0]}, redistest.Options{Version: p[1]})
			load := func(c *client, name, reply string) {
				c.do("FUNCTION", "LOAD", "REPLACE", "#!lua name="+name+"\nredis.register_function('"+name+"', function() return '"+reply+"' end)")
			}
			load(r.a, "one", "1")
			load(r.a, "two", "2")
			load(r.b, "two", "old")
			load(r.b, "extra", "x")
			pair := r.run(false)
			r.caughtUp()
			upToArm(t, r.ctx(), pair, false)
			if a, b := functionsOf(r.a), functionsOf(r.b); a != b || r.b.do("FCALL", "two", "0").str != "2" {
				t.Fatalf("functions %s on the source, %s on the target", a, b)
			}
		})
	}
}

func functionsOf(c *client) string {
	l, err := libraries(c.t.Context(), c.s)
	if err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprint(l)
}
