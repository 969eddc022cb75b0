package shop

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// expiryTolerance is how far the expiry of a key may differ between the sides.
const expiryTolerance = 50 * time.Millisecond

// tooShort is the remaining life below which a key isn't compared: it may vanish on one side while we look.
const tooShort = 3 * time.Second

func compareRedis(ctx context.Context, a, b Endpoint) (differences []string, err error) {
	for db := range cacheDatabase + 1 {
		var values [2]map[string]redisValue
		for i, at := range []Endpoint{a, b} {
			if values[i], err = readRedis(ctx, at.RedisURL, db); err != nil {
				return nil, fmt.Errorf("read database %d of %s: %w", db, at.Name, err)
			}
		}
		keys := maps.Clone(values[0])
		maps.Copy(keys, values[1])
		n := 0
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			va, inA := values[0][key]
			vb, inB := values[1][key]
			if d := va.diff(vb, inA, inB, a.Name, b.Name); d != "" {
				if n++; n <= 10 {
					differences = append(differences, fmt.Sprintf("database %d, key %q: %s", db, key, d))
				}
			}
		}
		if n > 10 {
			differences = append(differences, fmt.Sprintf("database %d: %d keys differ in all", db, n))
		}
	}
	return differences, nil
}

// redisValue is a key's whole state in a form that is equal where the states are.
type redisValue struct {
	text    string
	expires time.Time     // zero if never
	slack   time.Duration // how long reading took: the expiry is that uncertain
}

func (v redisValue) diff(o redisValue, has, otherHas bool, name, other string) string {
	soon := func(v redisValue) bool { return !v.expires.IsZero() && time.Until(v.expires) < tooShort }
	switch {
	case has && soon(v), otherHas && soon(o):
		return ""
	case !otherHas:
		return "only " + name + " has it"
	case !has:
		return "only " + other + " has it"
	case v.text != o.text:
		return fmt.Sprintf("%.120s on %s, %.120s on %s", v.text, name, o.text, other)
	case v.expires.IsZero() != o.expires.IsZero() || v.expires.Sub(o.expires).Abs() > expiryTolerance+v.slack+o.slack:
		return fmt.Sprintf("expires %s on %s, %s on %s", v.expires, name, o.expires, other)
	}
	return ""
}

// readRedis reads all of the application's keys of a database. Expiries are points in time, by this machine's clock.
func readRedis(ctx context.Context, url string, db int) (values map[string]redisValue, err error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return nil, err
	}
	options.DB = db
	c := redis.NewClient(options)
	defer func() { err = errors.Join(err, c.Close()) }()
	keys, err := scan(ctx, c, "*")
	if err != nil {
		return nil, err
	}
	keys = slices.DeleteFunc(keys, func(k string) bool { return strings.Contains(k, "replicator") }) // its own books
	values = map[string]redisValue{}
	for batch := range slices.Chunk(keys, 500) {
		types, lives := make([]*redis.StatusCmd, len(batch)), make([]*redis.DurationCmd, len(batch))
		p := c.Pipeline()
		for i, key := range batch {
			types[i], lives[i] = p.Type(ctx, key), p.PTTL(ctx, key)
		}
		now := time.Now()
		if _, err := p.Exec(ctx); err != nil {
			return nil, err
		}
		slack := time.Since(now)
		reads := make([]func() string, len(batch))
		p = c.Pipeline()
		for i, key := range batch {
			reads[i] = readValue(ctx, p, types[i].Val(), key)
		}
		if _, err := p.Exec(ctx); err != nil && ignoreNil(err) != nil {
			return nil, err
		}
		for i, key := range batch {
			life := lives[i].Val()
			if types[i].Val() == "none" || life == -2 {
				continue // it may have gone between the two
			}
			v := redisValue{text: types[i].Val() + " " + reads[i](), slack: slack}
			if life != -1 { // a key in its last millisecond has none left
				v.expires = now.Add(life)
			}
			values[key] = v
		}
	}
	return values, nil
}

// readValue queues the command that reads a key whole and returns what gives its canonical text once the pipeline has run.
func readValue(ctx context.Context, p redis.Pipeliner, kind, key string) func() string {
	switch kind {
	case "string":
		cmd := p.Get(ctx, key)
		return func() string { return fmt.Sprintf("%q", cmd.Val()) }
	case "hash":
		cmd := p.HGetAll(ctx, key)
		return func() string {
			var parts []string
			for k, v := range cmd.Val() {
				parts = append(parts, fmt.Sprintf("%q=%q", k, v))
			}
			sort.Strings(parts)
			return strings.Join(parts, " ")
		}
	case "list":
		cmd := p.LRange(ctx, key, 0, -1)
		return func() string { return fmt.Sprintf("%q", cmd.Val()) }
	case "set":
		cmd := p.SMembers(ctx, key)
		return func() string { return fmt.Sprintf("%q", slices.Sorted(slices.Values(cmd.Val()))) }
	case "zset":
		cmd := p.ZRangeWithScores(ctx, key, 0, -1)
		return func() string {
			var parts []string
			for _, z := range cmd.Val() {
				parts = append(parts, fmt.Sprintf("%q=%x", z.Member, z.Score))
			}
			return strings.Join(parts, " ")
		}
	case "stream":
		cmd := p.XRange(ctx, key, "-", "+")
		return func() string { return fmt.Sprint(cmd.Val()) }
	}
	return func() string { return kind + " is a type that the comparison can't read" }
}
