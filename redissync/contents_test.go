package redissync

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// whole is all that there is to a key, as plain commands tell it.
type whole struct {
	value   string
	since7  string // what only servers from 7.0 on tell; empty elsewhere
	expires int64  // milliseconds since 1970; 0: never
	fields  map[string]int64
}

// expiring tells whether the key, or a field of it, expires about now, so that two readings may differ.
func (w whole) expiring() bool {
	now := time.Now().UnixMilli()
	about := func(at int64) bool { return at > 0 && at < now+2000 }
	if about(w.expires) {
		return true
	}
	for _, at := range w.fields {
		if about(at) {
			return true
		}
	}
	return false
}

// equal fails unless both servers hold the same keys, values and expiries. It reads them by its own means. What is about to expire is
// read again.
func (r *rig) equal() {
	r.t.Helper()
	for try := 0; ; try++ {
		a, b := contents(r.t, r.a), contents(r.t, r.b)
		bad, final := differences(a, b)
		if len(bad) == 0 {
			return
		}
		if final || try == 30 {
			r.t.Fatalf("%d keys differ of %d on the source and %d on the target:\n%s", len(bad), len(a), len(b), strings.Join(bad[:min(len(bad), 10)], "\n"))
		}
		again := time.NewTimer(100 * time.Millisecond)
		<-again.C
	}
}

// differences describes the keys that differ; final tells that some don't because of an expiry about now.
func differences(a, b map[keyID]whole) (bad []string, final bool) {
	now := time.Now().UnixMilli()
	expired := func(w whole) bool { return w.expires > 0 && w.expires <= now } // between the two readings: it is gone on both by now
	for k, x := range a {
		y, ok := b[k]
		if !ok && expired(x) {
			continue
		}
		same := ok && x.value == y.value && near(x.expires, y.expires, 5*time.Millisecond) && nearFields(x.fields, y.fields, 0, 5*time.Millisecond)
		if same && (x.since7 == "" || y.since7 == "" || x.since7 == y.since7) {
			continue
		}
		final = final || !x.expiring() && !y.expiring()
		bad = append(bad, fmt.Sprintf("key %v: source %q %s expires %d %v, target %q %s expires %d %v (there: %v)", k, clipS(x.value), clipS(x.since7), x.expires, x.fields,
			clipS(y.value), clipS(y.since7), y.expires, y.fields, ok))
		if ok && x.value != y.value {
			at := 0
			for at < min(len(x.value), len(y.value)) && x.value[at] == y.value[at] {
				at++
			}
			bad[len(bad)-1] += fmt.Sprintf("; from byte %d: source %q, target %q", at, clipS(x.value[at:]), clipS(y.value[at:]))
		}
	}
	for k, y := range b {
		if _, ok := a[k]; !ok && !expired(y) {
			final = final || !y.expiring()
			bad = append(bad, fmt.Sprintf("key %v is on the target only: %q expires %d %v", k, clipS(y.value), y.expires, y.fields))
		}
	}
	slices.Sort(bad)
	return bad, final
}

// lasting counts the keys that don't expire, nor any field of theirs.
func lasting(all map[keyID]whole) (n int) {
	for _, w := range all {
		if w.expires == 0 && !slices.ContainsFunc(slices.Collect(maps.Values(w.fields)), func(at int64) bool { return at > 0 }) {
			n++
		}
	}
	return n
}

func clipS(s string) string { return s[:min(len(s), 200)] }

// contents reads everything but replicator's own keys by plain commands.
func contents(t *testing.T, c *client) map[keyID]whole {
	t.Helper()
	ctx := context.Background()
	out := map[keyID]whole{}
	info, err := readInfo(ctx, c.s, "server", "keyspace")
	if err != nil {
		t.Fatal(err)
	}
	for db := range info.databases {
		err := scanKeys(ctx, c.s, db, Options{}, func(keys []string) error { return readWhole(ctx, c.s, info, db, keys, out) })
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.s.exec(ctx, 0, []unit{{"", []command{{"PING"}}}}); err != nil {
		t.Fatal(err)
	}
	return out
}

var readCommands = map[string]func(key string) command{
	"string": func(k string) command { return command{"GET", k} },
	"list":   func(k string) command { return command{"LRANGE", k, "0", "-1"} },
	"set":    func(k string) command { return command{"SMEMBERS", k} },
	"hash":   func(k string) command { return command{"HGETALL", k} },
	"zset":   func(k string) command { return command{"ZRANGE", k, "0", "-1", "WITHSCORES"} },
	"stream": func(k string) command { return command{"XINFO", "STREAM", k, "FULL", "COUNT", "0"} },
}

// readWhole reads keys of one database in two exchanges, and once more those that were read too slowly.
func readWhole(ctx context.Context, s *session, info serverInfo, db int, keys []string, out map[keyID]whole) error {
	types := make([]unit, len(keys))
	for i, k := range keys {
		types[i] = unit{k, []command{{"TYPE", k}}}
	}
	replies, err := s.exec(ctx, db, types)
	if err != nil {
		return err
	}
	var units []unit
	var kindOf []string
	for i, k := range keys {
		read := readCommands[replies[i][0].str]
		if read == nil {
			continue // gone
		}
		cmds := []command{{"MULTI"}, {"TIME"}, {"PTTL", k}, {"TIME"}, read(k)}
		if info.version >= 70000 {
			cmds = append(cmds, command{"PEXPIRETIME", k})
		}
		units, kindOf = append(units, unit{k, append(cmds, command{"EXEC"})}), append(kindOf, replies[i][0].str)
	}
	if replies, err = s.exec(ctx, db, units); err != nil {
		return err
	}
	var again []string
	for i, u := range units {
		x := replies[i][len(u.cmds)-1].items
		before, after, left := serverTime(x[0]), serverTime(x[2]), x[1].num
		w := whole{}
		switch {
		case left == gone || x[3].err() != nil:
			continue // it has expired, or is of another type by now
		case info.version >= 70000:
			w.expires = max(0, x[4].num)
		case after.Sub(before) > time.Millisecond:
			again = append(again, u.key)
			continue
		case left >= 0:
			w.expires = before.UnixMilli() + left
		}
		w.value, w.since7 = render(kindOf[i], x[3], info.version >= 70000)
		if kindOf[i] == "hash" && info.fieldExpiry() {
			if len(x[3].items) == 0 {
				continue // every field has expired: it is about to go
			}
			if w.fields, err = fieldExpiries(ctx, s, db, u.key, x[3].strings()); err != nil {
				return err
			}
		}
		out[keyID{db, u.key}] = w
	}
	if len(again) > 0 {
		return readWhole(ctx, s, info, db, again, out)
	}
	return nil
}

func fieldExpiries(ctx context.Context, s *session, db int, key string, pairs []string) (map[string]int64, error) {
	cmd := command{"HPEXPIRETIME", key, "FIELDS", strconv.Itoa(len(pairs) / 2)}
	for i := 0; i < len(pairs); i += 2 {
		cmd = append(cmd, pairs[i])
	}
	r, err := s.exec(ctx, db, []unit{{key, []command{cmd}}})
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for i, v := range r[0][0].items {
		switch {
		case v.num == gone: // it has expired since the value was read
			out[pairs[2*i]] = time.Now().UnixMilli()
		case v.num > 0:
			out[pairs[2*i]] = v.num
		}
	}
	return out, nil
}

// render makes a text of a value that is the same on every server.
func render(kind string, v value, since7 bool) (text, more string) {
	items := v.strings()
	switch kind {
	case "set":
		slices.Sort(items)
	case "hash":
		items = sortedPairs(items)
	case "zset": // servers print scores differently, and order equal ones by name
		for i := 1; i < len(items); i += 2 {
			score, _ := strconv.ParseFloat(items[i], 64)
			items[i] = strconv.FormatFloat(score, 'g', -1, 64)
		}
	case "string":
		items = []string{v.str}
	case "stream":
		return renderStream(v, since7)
	}
	return kind + fmt.Sprintf("%q", items), ""
}

// renderStream tells a stream's entries, groups, consumers and pending entries with when and how often they were delivered.
func renderStream(v value, since7 bool) (text, more string) {
	var a, b strings.Builder
	say := func(v value, names ...string) {
		for _, n := range names {
			x, _ := v.field(n)
			fmt.Fprintf(&a, "%s=%v ", n, flat(x))
		}
	}
	sayMore := func(v value, names ...string) {
		for _, n := range names {
			x, _ := v.field(n)
			fmt.Fprintf(&b, "%s=%v ", n, flat(x))
		}
	}
	pending := func(v value) {
		for _, name := range []string{"pel", "pending"} {
			if x, ok := v.field(name); ok && x.kind == kindArray {
				fmt.Fprintf(&a, "pending=%v ", flat(x))
				return
			}
		}
	}
	say(v, "length", "last-generated-id", "entries")
	if since7 {
		sayMore(v, "max-deleted-entry-id", "entries-added")
	}
	groups, _ := v.field("groups")
	for _, g := range groups.items {
		say(g, "name", "last-delivered-id")
		pending(g)
		if since7 {
			sayMore(g, "name", "entries-read")
		}
		consumers, _ := g.field("consumers")
		for _, c := range consumers.items {
			say(c, "name")
			pending(c)
		}
	}
	return a.String(), b.String()
}

func flat(v value) any {
	switch {
	case v.null:
		return nil
	case v.kind == kindInt:
		return v.num
	case len(v.items) > 0:
		out := make([]any, len(v.items))
		for i := range v.items {
			out[i] = flat(v.items[i])
		}
		return out
	}
	return strconv.Quote(v.str)
}
