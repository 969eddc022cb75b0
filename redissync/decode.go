package redissync

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errMoved says that a key changed its type, or went, while it was being decoded.
var errMoved = errors.New("the key changed meanwhile")

// decoded is a key's value as far as it doesn't depend on how a server encodes it: equal values have equal digests.
type decoded struct {
	digest  string
	expires map[string]int64 // of a hash's fields, by the server's clock
}

// equals compares values of two servers; offset is how far the other one's clock is ahead.
func (d decoded) equals(other decoded, offset, tolerance time.Duration) bool {
	return d.digest == other.digest && nearFields(d.expires, other.expires, offset, tolerance)
}

// emptyHash tells whether the key is a hash whose fields have all expired, but which its server hasn't removed yet.
func (d decoded) emptyHash() bool { return d.digest == digest("hash", nil) }

// decode reads a key's value. The level is that of the older of the servers compared: what it doesn't know doesn't count. Fields tells
// whether this server knows expiries of hash fields.
func decode(ctx context.Context, s *session, db int, key string, level version, fields bool) (decoded, error) {
	ask := func(args ...string) (value, error) {
		r, err := s.exec(ctx, db, []unit{{key, []command{args}}})
		if err != nil {
			return value{}, err
		}
		if err := r[0][0].err(); err != nil {
			return value{}, fmt.Errorf("%s %s: %w: %w", args[0], show(key), errMoved, err)
		}
		return r[0][0], nil
	}
	t, err := ask("TYPE", key)
	if err != nil {
		return decoded{}, err
	}
	var parts []string
	switch t.str {
	case "none":
		return decoded{digest: "none"}, nil
	case "string":
		v, err := ask("GET", key)
		if err != nil {
			return decoded{}, err
		}
		parts = []string{v.str}
	case "list":
		v, err := ask("LRANGE", key, "0", "-1")
		if err != nil {
			return decoded{}, err
		}
		parts = v.strings()
	case "set":
		v, err := ask("SMEMBERS", key)
		if err != nil {
			return decoded{}, err
		}
		parts = v.strings()
		slices.Sort(parts)
	case "hash":
		if fields {
			h, _, err := readHashCalmly(ctx, s, db, key)
			return decoded{digest("hash", sortedPairs(h.pairs)), h.expires}, err
		}
		v, err := ask("HGETALL", key)
		if err != nil {
			return decoded{}, err
		}
		parts = sortedPairs(v.strings())
	case "zset":
		v, err := ask("ZRANGE", key, "0", "-1", "WITHSCORES")
		if err != nil {
			return decoded{}, err
		}
		parts = v.strings()
		for i := 1; i < len(parts); i += 2 {
			score, err := strconv.ParseFloat(parts[i], 64)
			if err != nil {
				return decoded{}, fmt.Errorf("ZRANGE %s: score %q", show(key), parts[i])
			}
			parts[i] = strconv.FormatUint(math.Float64bits(score), 16)
		}
		parts = sortedPairs(parts)
	case "stream":
		v, err := ask("XINFO", "STREAM", key, "FULL", "COUNT", "0")
		if err != nil {
			return decoded{}, err
		}
		parts = []string{canonicalStream(v, level)}
	default:
		return decoded{}, fmt.Errorf("key %s is of type %s, which can't be compared", show(key), t.str)
	}
	return decoded{digest: digest(t.str, parts)}, nil
}

func digest(kind string, parts []string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", kind, len(parts))
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return string(h.Sum(nil))
}

// sortedPairs sorts name, value, name, value by name and value.
func sortedPairs(in []string) []string {
	pairs := make([]string, 0, len(in)/2)
	for i := 0; i+1 < len(in); i += 2 {
		pairs = append(pairs, fmt.Sprintf("%d:%s%s", len(in[i]), in[i], in[i+1]))
	}
	slices.Sort(pairs)
	return pairs
}

// canonicalStream renders XINFO STREAM FULL without what isn't the stream's content: its memory layout, and when consumers were seen.
func canonicalStream(v value, level version) string {
	var b strings.Builder
	var walk func(v value, field string)
	walk = func(v value, field string) {
		if v.null || len(v.items) == 0 {
			fmt.Fprintf(&b, "%d:%s/%d;", len(v.str), v.str, v.num)
			return
		}
		named := v.kind == kindMap || len(v.items)%2 == 0 && field != "entries" && field != "pel" && field != "pending" && v.items[0].kind != kindArray && v.items[0].kind != kindMap && isFieldName(v.items[0].str)
		b.WriteByte('[')
		for i := 0; i < len(v.items); i++ {
			if !named {
				walk(v.items[i], field)
				continue
			}
			name := v.items[i].str
			i++
			switch name {
			case "radix-tree-keys", "radix-tree-nodes", "seen-time", "active-time", "lag", "idle", "inactive":
				continue
			case "entries-added", "max-deleted-entry-id", "recorded-first-entry-id", "entries-read":
				if level < 70000 {
					continue
				}
			case "pending": // as Redis 6.0 calls it
				name = "pel"
			}
			b.WriteString(name)
			b.WriteByte('=')
			walk(v.items[i], name)
		}
		b.WriteByte(']')
	}
	walk(v, "")
	return b.String()
}

// isFieldName recognises the first field of the maps in XINFO's RESP2 form.
func isFieldName(s string) bool { return s == "length" || s == "name" }
