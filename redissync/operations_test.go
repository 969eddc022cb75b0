package redissync

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// operations makes up what an application may do, over few keys so that types and operations collide: mostly a key of the fitting
// type, now and then any.
type operations struct {
	r         *rand.Rand
	fields    bool // fields of hashes may expire: both servers know it
	functions bool // both servers know functions
}

// kinds of keys: string, number, list, set, hash, zset, stream, hyperloglog, bits, geo, hash with expiring fields.
const kinds = "snlShzxpbgf"

func (o *operations) key(kind byte) string {
	if o.r.IntN(10) == 0 {
		kind = kinds[o.r.IntN(len(kinds))]
	}
	return string(kind) + strconv.Itoa(o.r.IntN(6))
}

func (o *operations) any() string { return o.key(kinds[o.r.IntN(len(kinds))]) }

func (o *operations) n(below int) string { return strconv.Itoa(o.r.IntN(below)) }

func (o *operations) word() string {
	switch o.r.IntN(30) {
	case 0: // compressed in a payload
		return strings.Repeat("w"+o.n(9), 100+o.r.IntN(2000))
	case 1:
		b := make([]byte, 200)
		for i := range b {
			b[i] = byte(o.r.Uint32())
		}
		return string(b)
	case 2:
		return strconv.FormatInt(int64(o.r.Uint64()), 10)
	}
	return "w" + o.n(12)
}

func (o *operations) ms() string { return []string{"1", "5", "20", "300", "60000"}[o.r.IntN(5)] }

// at is an absolute time about now, sometimes past.
func (o *operations) at() string {
	return strconv.FormatInt(time.Now().UnixMilli()+int64(o.r.IntN(3000))-500, 10)
}

func (o *operations) group() string { return "g" + o.n(2) }

func (o *operations) side() string { return []string{"LEFT", "RIGHT"}[o.r.IntN(2)] }

// several are enough elements for the large forms of small types, now and then.
func (o *operations) several(each int, element func(i int) string) []string {
	n := 1 + o.r.IntN(4)
	if o.r.IntN(25) == 0 {
		n = 100 + o.r.IntN(500)
	}
	out := make([]string, 0, n*each)
	for range n {
		for i := range each {
			out = append(out, element(i))
		}
	}
	return out
}

func (o *operations) words(head ...string) []command {
	return []command{append(head, o.several(1, func(int) string {
		if o.r.IntN(3) == 0 {
			return o.n(1000)
		}
		return o.word()
	})...)}
}

func one(args ...string) []command { return []command{args} }

// lua is a script over keys and one argument.
func (o *operations) lua(script, arg string, keys ...string) []command {
	return one(append(append([]string{"EVAL", script, strconv.Itoa(len(keys))}, keys...), arg)...)
}

func (o *operations) next() []command {
	groups := []func() []command{o.strings, o.strings, o.lists, o.sets, o.hashes, o.zsets, o.zsets, o.streams, o.streams, o.lives, o.lives, o.moves, o.moves, o.bundles}
	if o.fields {
		groups = append(groups, o.expiringFields)
	}
	return groups[o.r.IntN(len(groups))]()
}

func (o *operations) strings() []command {
	k := func() string { return o.key('s') }
	number := func() string { return o.key('n') }
	switch o.r.IntN(20) {
	case 0, 1:
		return one("SET", k(), o.word())
	case 2:
		return one("SET", k(), o.word(), "PX", o.ms())
	case 3:
		return one("SET", k(), o.word(), "KEEPTTL")
	case 4:
		return one("INCR", number())
	case 5:
		return one("INCRBYFLOAT", number(), fmt.Sprint(o.r.NormFloat64()))
	case 6:
		return one("APPEND", k(), o.word())
	case 7:
		return one("GETDEL", k())
	case 8:
		return one("GETEX", k(), "PX", o.ms())
	case 9:
		return one("SETRANGE", k(), o.n(3000), o.word())
	case 10:
		return one("SETEX", k(), "100", o.word())
	case 11:
		return one("MSET", k(), o.word(), k(), o.word())
	case 12:
		return one("MSETNX", k(), o.word(), k(), o.word())
	case 13:
		return one("PFADD", o.key('p'), o.word(), o.word())
	case 14:
		return one("PFMERGE", o.key('p'), o.key('p'), o.key('p'))
	case 15:
		return one("SETBIT", o.key('b'), o.n(5000), o.n(2))
	case 16:
		return one("BITOP", "XOR", o.key('b'), o.key('b'), o.key('b'))
	case 17:
		return one("BITFIELD", o.key('b'), "SET", "u8", o.n(500), o.n(200), "INCRBY", "i5", o.n(100), "1")
	case 18:
		return one("GETSET", k(), o.word())
	}
	return one("DECRBY", number(), o.n(100))
}

func (o *operations) lists() []command {
	k := func() string { return o.key('l') }
	switch o.r.IntN(14) {
	case 0, 1:
		return o.words("RPUSH", k())
	case 2:
		return o.words("LPUSH", k())
	case 3:
		return one("LPOP", k(), o.n(4))
	case 4:
		return one("RPOP", k())
	case 5:
		return one("LMOVE", k(), k(), o.side(), o.side())
	case 6:
		return one("RPOPLPUSH", k(), k())
	case 7:
		return one("LTRIM", k(), "0", o.n(200))
	case 8:
		return one("LREM", k(), "1", "w"+o.n(12))
	case 9:
		return one("LSET", k(), o.n(3), o.word())
	case 10:
		return one("LINSERT", k(), "BEFORE", "w"+o.n(12), o.word())
	case 11:
		return one("LMPOP", "2", k(), k(), o.side(), "COUNT", o.n(3))
	case 12:
		return one("BLPOP", k(), k(), "0.002")
	}
	return one("SORT", k(), "ALPHA", "STORE", k())
}

func (o *operations) sets() []command {
	k := func() string { return o.key('S') }
	switch o.r.IntN(10) {
	case 0, 1:
		return o.words("SADD", k())
	case 2:
		return one("SADD", k(), o.n(100), o.n(100), o.n(100000))
	case 3:
		return one("SPOP", k(), o.n(5))
	case 4:
		return one("SMOVE", k(), k(), "w"+o.n(12))
	case 5:
		return one("SUNIONSTORE", k(), k(), k())
	case 6:
		return one("SINTERSTORE", k(), k(), k())
	case 7:
		return one("SDIFFSTORE", k(), k(), k())
	case 8:
		return one("SREM", k(), "w"+o.n(12), o.n(100))
	}
	return one("SPOP", k())
}

func (o *operations) hashes() []command {
	k := func() string { return o.key('h') }
	switch o.r.IntN(8) {
	case 0, 1:
		return o.pairs("HSET", k())
	case 2:
		return one("HDEL", k(), "w"+o.n(12), "w"+o.n(12))
	case 3:
		return one("HINCRBY", k(), "n"+o.n(5), o.n(9))
	case 4:
		return one("HINCRBYFLOAT", k(), "n"+o.n(5), "0.1")
	case 5:
		return one("HSETNX", k(), o.word(), o.word())
	case 6:
		return one("HSET", k(), "w"+o.n(12), strings.Repeat("x", 65+o.r.IntN(100)))
	}
	return one("HGETDEL", o.key('f'), "FIELDS", "1", "w"+o.n(12))
}

func (o *operations) pairs(head ...string) []command {
	return []command{append(head, o.several(2, func(i int) string {
		if i == 0 {
			return "w" + o.n(700)
		}
		return o.word()
	})...)}
}

func (o *operations) expiringFields() []command {
	k := func() string { return o.key('f') }
	field := func() string { return "w" + o.n(12) }
	switch o.r.IntN(10) {
	case 0, 1:
		return one("HSET", k(), field(), o.word(), field(), o.word(), field(), o.word())
	case 2, 3:
		return one("HPEXPIRE", k(), o.ms(), "FIELDS", "2", field(), field())
	case 4:
		return one("HPEXPIREAT", k(), o.at(), "FIELDS", "1", field())
	case 5:
		return one("HEXPIRE", k(), "100", "NX", "FIELDS", "3", field(), field(), field())
	case 6:
		return one("HPERSIST", k(), "FIELDS", "2", field(), field())
	case 7:
		return one("HGETEX", k(), "PX", o.ms(), "FIELDS", "1", field())
	case 8:
		return one("HSETEX", k(), "PX", o.ms(), "FIELDS", "1", field(), o.word())
	}
	return append(o.pairs("HSET", k()), one("HPEXPIRE", k(), "70000", "FIELDS", "2", "w"+o.n(700), "w"+o.n(700))...)
}

func (o *operations) zsets() []command {
	k := func() string { return o.key('z') }
	switch o.r.IntN(13) {
	case 0, 1:
		return []command{append([]string{"ZADD", k()}, o.several(2, func(i int) string {
			if i == 0 {
				return []string{fmt.Sprint(o.r.NormFloat64()), o.n(1000), "-inf", "+inf", "1e300", "0.1", "1e-300"}[o.r.IntN(7)]
			}
			return o.word()
		})...)}
	case 2:
		return one("ZPOPMIN", k(), o.n(3))
	case 3:
		return one("ZPOPMAX", k())
	case 4:
		return one("ZINCRBY", k(), "0.1", "w"+o.n(12))
	case 5:
		return one("ZREMRANGEBYRANK", k(), "0", "1")
	case 6:
		return one("ZREMRANGEBYSCORE", k(), "-1", "(0.5")
	case 7:
		return one("ZUNIONSTORE", k(), "2", k(), o.key('S'), "WEIGHTS", "1", "2")
	case 8:
		return one("ZINTERSTORE", k(), "2", k(), k())
	case 9:
		return one("ZRANGESTORE", k(), k(), "0", "50")
	case 10:
		return one("GEOADD", o.key('g'), fmt.Sprintf("%.4f", o.r.Float64()*180-90), "38.1", o.word())
	case 11:
		return one("GEOSEARCHSTORE", o.key('g'), o.key('g'), "FROMLONLAT", "13", "38", "BYRADIUS", "3000", "km", "STOREDIST")
	}
	return one("ZMPOP", "1", k(), "MIN")
}

// Entries of streams are chosen on the server, as an application knows those it was given.
const (
	ackScript   = "for _,e in ipairs(redis.call('XPENDING',KEYS[1],ARGV[1],'-','+',2)) do redis.call('XACK',KEYS[1],ARGV[1],e[1]) end"
	claimScript = "for _,e in ipairs(redis.call('XPENDING',KEYS[1],ARGV[1],'-','+',3)) do redis.call('XCLAIM',KEYS[1],ARGV[1],'thief','0',e[1]) end"
	xdelScript  = "for _,e in ipairs(redis.call('XRANGE',KEYS[1],'-','+','COUNT',2)) do redis.call('XDEL',KEYS[1],e[1]) end return ARGV[1]"
)

func (o *operations) streams() []command {
	k := o.key('x')
	switch o.r.IntN(16) {
	case 0, 1, 2:
		return one("XADD", k, "*", o.word(), o.word())
	case 3:
		return one("XADD", k, "MAXLEN", "~", "20", "*", "f", o.word(), "g", o.word())
	case 4:
		return one("XADD", k, "NOMKSTREAM", "*", "f", o.word())
	case 5:
		return one("XGROUP", "CREATE", k, o.group(), "0", "MKSTREAM")
	case 6, 7:
		return one("XREADGROUP", "GROUP", o.group(), "c"+o.n(3), "COUNT", "3", "STREAMS", k, ">")
	case 8:
		return one("XAUTOCLAIM", k, o.group(), "c"+o.n(3), "0", "0")
	case 9:
		return o.lua(ackScript, o.group(), k)
	case 10:
		return o.lua(claimScript, o.group(), k)
	case 11:
		return o.lua(xdelScript, "", k)
	case 12:
		return one("XTRIM", k, "MAXLEN", o.n(8))
	case 13:
		return one("XGROUP", "SETID", k, o.group(), []string{"0", "$"}[o.r.IntN(2)])
	case 14:
		return one("XGROUP", "DELCONSUMER", k, o.group(), "c"+o.n(3))
	}
	return one("XGROUP", []string{"DESTROY", "CREATECONSUMER"}[o.r.IntN(2)], k, o.group(), "c"+o.n(3))
}

func (o *operations) lives() []command {
	k := o.any()
	switch o.r.IntN(9) {
	case 0:
		return one("EXPIRE", k, "1000")
	case 1, 2:
		return one("PEXPIRE", k, o.ms())
	case 3, 4:
		return one("PEXPIREAT", k, o.at())
	case 5:
		return one("PERSIST", k)
	case 6:
		return one("DEL", k, o.any())
	case 7:
		return one("UNLINK", k)
	}
	return one("TTL", k)
}

// database is one of four, rarely of twelve.
func (o *operations) database() string {
	if o.r.IntN(20) == 0 {
		return o.n(12)
	}
	return o.n(4)
}

func (o *operations) moves() []command {
	kind := kinds[o.r.IntN(len(kinds))]
	from, to := o.key(kind), o.key(kind)
	switch o.r.IntN(7) {
	case 0:
		return one("RENAME", from, to)
	case 1:
		return one("RENAMENX", from, to)
	case 2:
		return one("MOVE", from, o.database())
	case 3:
		return one("COPY", from, to, "DB", o.database(), "REPLACE")
	case 4:
		return one("COPY", from, to)
	}
	return one("SELECT", o.database())
}

// bundles change several keys at once.
func (o *operations) bundles() []command {
	s := func() string { return o.key('s') }
	switch o.r.IntN(7) {
	case 0:
		return o.lua("redis.call('SET',KEYS[1],ARGV[1]); redis.call('DEL',KEYS[2]); return redis.call('RPUSH',KEYS[3],ARGV[1])", o.word(), s(), s(), o.key('l'))
	case 1:
		return o.lua("for i=1,20 do redis.call('SADD',KEYS[1],i..ARGV[1]) end redis.call('PEXPIRE',KEYS[1],ARGV[1]) return redis.call('SELECT',3)", o.ms(), o.key('S'))
	case 2:
		return []command{{"MULTI"}, {"SET", s(), o.word()}, {"INCR", o.key('n')}, {"DEL", o.any()}, {"EXPIRE", s(), "50"}, {"EXEC"}}
	case 3:
		return []command{{"MULTI"}, {"SELECT", o.database()}, {"HSET", o.key('h'), o.word(), o.word()}, {"XADD", o.key('x'), "*", "f", "v"}, {"EXEC"}}
	case 4:
		return []command{{"WATCH", s()}, {"MULTI"}, {"APPEND", s(), "x"}, {"RENAME", s(), s()}, {"EXEC"}}
	case 5:
		return []command{{"MULTI"}, {"SET", s(), "x"}, {"DISCARD"}}
	}
	if o.functions {
		return one("FCALL", "double", "2", o.key('n'), o.key('l'), o.n(100))
	}
	return o.lua("return redis.call('SPOP',KEYS[1],ARGV[1])", "2", o.key('S'))
}

// library is what FCALL needs, in one of several versions.
func library(n int) command {
	return command{"FUNCTION", "LOAD", "REPLACE", fmt.Sprintf(`#!lua name=model
-- version %d
redis.register_function('double', function(keys, args) redis.call('INCRBY', keys[1], args[1]) return redis.call('LPUSH', keys[2], args[1]) end)
`, n)}
}
