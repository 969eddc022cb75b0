package redissync

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"replicator/internal/redistest"
)

// typeBytes are the forms in which each version's DUMP gives values (rdb.h of the Redis and Valkey sources): 0 string, 2 and 11 and 20 set,
// 4, 13, 16, 22, 24, 25 hash, 5, 12, 17 zset, 14 and 18 list, 15, 19, 21 stream.
var typeBytes = map[string][]byte{
	"redis-6.0":  {0, 2, 4, 5, 11, 12, 13, 14, 15},
	"":           {0, 2, 4, 5, 11, 16, 17, 18, 19},
	"redis-8.0":  {0, 2, 4, 5, 11, 16, 17, 18, 20, 21, 24, 25},
	"valkey-8.0": {0, 2, 4, 5, 11, 16, 17, 18, 20, 21},
	"valkey-8.1": {0, 2, 4, 5, 11, 16, 17, 18, 20, 21},
	"valkey-9.1": {0, 2, 4, 5, 11, 16, 17, 18, 20, 21, 22},
}

// everyForm writes values in every form that the server has.
func everyForm(c *client, fields bool) {
	everyType(c, "0")
	long := strings.Repeat("x", 100)
	elements := func(n int, element func(i int) []string) (out []string) {
		for i := range n {
			out = append(out, element(i)...)
		}
		return out
	}
	many := func(head ...string) {
		c.do(append(head, elements(600, func(i int) []string { return []string{"m" + strconv.Itoa(i)} })...)...)
	}
	pairs := func(head ...string) {
		c.do(append(head, elements(600, func(i int) []string { return []string{strconv.Itoa(i), "m" + strconv.Itoa(i)} })...)...)
	}
	many("SADD", "set:large")
	many("RPUSH", "list:large")
	pairs("HSET", "hash:large")
	pairs("ZADD", "zset:large")
	c.do("SADD", "set:mixed", "1", "a", "2")
	c.do("HSET", "hash:long", "f", long)
	c.do("RPUSH", "list:long", long, strings.Repeat(long, 200))
	c.do("SET", "string:long", strings.Repeat(long, 50))
	c.do("SET", "string:number", "-9223372036854775808")
	if fields {
		pairs("HSET", "fields:large")
		c.lines("HSET fields a 1 b 2\nHEXPIRE fields 1000 FIELDS 1 a\nHEXPIRE fields:large 1000 FIELDS 2 3 4\nHSET fields:all a 1\nHEXPIRE fields:all 1000 FIELDS 1 a")
	}
}

// TestEveryFormIsCarriedOver: every type byte of a version reaches every other version: in short a sixth of the pairs, in a soak all.
func TestEveryFormIsCarriedOver(t *testing.T) {
	t.Parallel()
	versions := redistest.Versions
	for i, source := range versions {
		for j, target := range versions {
			if !soak() && j != (i+5)%len(versions) {
				continue
			}
			t.Run(versionName(source)+"_to_"+versionName(target), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, redistest.Options{Version: source}, redistest.Options{Version: target})
				knows := func(v string) bool { return slices.Contains(typeBytes[v], 22) || slices.Contains(typeBytes[v], 24) }
				everyForm(r.a, knows(source))
				seen := map[byte]bool{}
				for k := range contents(t, r.a) {
					seen[r.a.do("DUMP", k.key).str[0]] = true
				}
				if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, typeBytes[source]) {
					t.Fatalf("%s gives the type bytes %v, expected %v", versionName(source), got, typeBytes[source])
				}
				if knows(source) && !knows(target) {
					r.a.do("DEL", "fields", "fields:large", "fields:all")
				}
				pair := r.run(false)
				r.caughtUp()
				r.equal()
				rep, err := pair.VerifyNow(r.ctx())
				if err != nil || rep.Mismatches != 0 {
					t.Fatalf("verify: %+v, %v", rep, err)
				}
			})
		}
	}
}
