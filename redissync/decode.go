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
)

// errMoved says that a key changed its type, or went, while it was being decoded.
var errMoved = errors.New("the key changed meanwhile")

// decode returns a digest of a key's value that doesn't depend on how the server encodes it: equal values give equal digests. The level is
// that of the older of the servers compared: what it doesn't know doesn't count.
func decode(ctx context.Context, s *session, db int, key string, level version) (string, error) {
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
		return "", err
	}
	var parts []string
	switch t.str {
	case "none":
		return "none", nil
	case "string":
		v, err := ask("GET", key)
		if err != nil {
			return "", err
		}
		parts = []string{v.str}
	case "list":
		v, err := ask("LRANGE", key, "0", "-1")
		if err != nil {
			return "", err
		}
		parts = v.strings()
	case "set":
		v, err := ask("SMEMBERS", key)
		if err != nil {
			return "", err
		}
		parts = v.strings()
		slices.Sort(parts)
	case "hash":
		v, err := ask("HGETALL", key)
		if err != nil {
			return "", err
		}
		parts = sortedPairs(v.strings())
	case "zset":
		v, err := ask("ZRANGE", key, "0", "-1", "WITHSCORES")
		if err != nil {
			return "", err
		}
		parts = v.strings()
		for i := 1; i < len(parts); i += 2 {
			score, err := strconv.ParseFloat(parts[i], 64)
			if err != nil {
				return "", fmt.Errorf("ZRANGE %s: score %q", show(key), parts[i])
			}
			parts[i] = strconv.FormatUint(math.Float64bits(score), 16)
		}
		parts = sortedPairs(parts)
	case "stream":
		v, err := ask("XINFO", "STREAM", key, "FULL", "COUNT", "0")
		if err != nil {
			return "", err
		}
		parts = []string{canonicalStream(v, level)}
	default:
		return "", fmt.Errorf("key %s is of type %s, which can't be compared", show(key), t.str)
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", t.str, len(parts))
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s", len(p), p)
	}
	return string(h.Sum(nil)), nil
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
