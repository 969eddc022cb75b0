package redissync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of one exchange: the memory of payloads in flight, and what counts as costly to copy.
const (
	batchKeys  = 512
	batchBytes = 1 << 20
	costly     = 64 << 10
)

// content is a key's value and expiry as one moment had them.
type content struct {
	payload string // DUMP's form; empty: the key doesn't exist
	expires int64  // milliseconds since 1970 by the server's clock; 0: never
	size    int64  // the server's own estimate in memory
	// overLarge is set where the destination holds a big value under the key.
	overLarge bool
}

func (c content) absent() bool { return c.payload == "" }

// body is the payload without its footer of RDB version and checksum (Redis documentation, "DUMP").
func (c content) body() string {
	if len(c.payload) < 10 {
		return ""
	}
	return c.payload[:len(c.payload)-10]
}

// isStream tells by RDB's type byte whether the value is a stream.
func (c content) isStream() bool {
	if c.payload == "" {
		return false
	}
	t := c.payload[0]
	return t == 15 || t == 19 || t == 21
}

// fetch reads keys of one database and hands them to f in pieces of bounded memory. Each key's value and expiry are of the same
// instant. It asks for sizes first, so that no reply is large by surprise. Keys from limit bytes on are offered to big first, after all
// others; what it declines (false) is read whole. No big means no limit.
func fetch(ctx context.Context, s *session, v version, db int, keys []string, limit int64, big func(key string, size int64) (bool, error), f func(keys []string, got []content) error) error {
	sizes := make([]unit, len(keys))
	args, cmds := make([]string, 0, 3*len(keys)), make([]command, 0, len(keys)) // the memory of all, at once
	for i, k := range keys {
		args = append(args, "MEMORY", "USAGE", k)
		cmds = append(cmds, args[3*i:3*i+3:3*i+3])
		sizes[i] = unit{k, cmds[i : i+1]}
	}
	replies, err := s.exec(ctx, db, sizes)
	if err != nil {
		return err
	}
	got := make([]content, len(keys))
	for i, r := range replies {
		if r[0].kind == kindInt {
			got[i].size = r[0].num
		}
	}
	if big != nil {
		var large []content
		var names []string
		kept := 0
		keys = slices.Clone(keys)
		for i, k := range keys {
			if got[i].size >= limit {
				names, large = append(names, k), append(large, got[i])
				continue
			}
			keys[kept], got[kept] = k, got[i]
			kept++
		}
		keys, got = keys[:kept], got[:kept]
		if err := fetchWhole(ctx, s, v, db, keys, got, f); err != nil {
			return err
		}
		for i, k := range names {
			done, err := big(k, large[i].size)
			if err != nil {
				return err
			}
			if !done {
				if err := fetchWhole(ctx, s, v, db, names[i:i+1], large[i:i+1], f); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return fetchWhole(ctx, s, v, db, keys, got, f)
}

func fetchWhole(ctx context.Context, s *session, v version, db int, keys []string, got []content, f func(keys []string, got []content) error) error {
	for from := 0; from < len(keys); {
		to, bytes := from, int64(0)
		for to < len(keys) && (to == from || bytes+got[to].size <= batchBytes) {
			bytes += got[to].size
			to++
		}
		if err := dumpInto(ctx, s, v, db, keys[from:to], got[from:to]); err != nil {
			return err
		}
		if err := f(keys[from:to], got[from:to]); err != nil {
			return err
		}
		clear(got[from:to])
		from = to
	}
	return nil
}

// fetchBoth reads keys of one database on both sides and hands the contents to f together. A key that is large on either side is offered to
// big.
func fetchBoth(ctx context.Context, origin, destination *session, here, there version, db int, keys []string, limit int64, big func(key string, size int64) (bool, error), f func(key string, here, there content) error) error {
	return fetch(ctx, origin, here, db, keys, limit, big, func(keys []string, got []content) error {
		at := 0
		return fetch(ctx, destination, there, db, keys, limit, big, func(names []string, have []content) error {
			for i, k := range names {
				if at >= len(keys) || keys[at] != k { // large ones come last, if at all
					at = slices.Index(keys, k)
				}
				if err := f(k, got[at], have[i]); err != nil {
					return err
				}
				at++
			}
			return nil
		})
	})
}

// Bounds of one transaction that reads: it holds the server up as a whole.
const (
	readKeys  = 32
	readBytes = 256 << 10
)

// dumpInto reads values and expiries. From Redis 7.0 on, both come one after the other without a transaction: whatever changes the key
// between the two is an event, which has it copied again.
func dumpInto(ctx context.Context, s *session, v version, db int, keys []string, got []content) error {
	if v < 70000 {
		return dumpTimed(ctx, s, v, db, keys, got)
	}
	args := make([]string, 0, 4*len(keys))
	cmds := make([]command, 0, 2*len(keys))
	units := make([]unit, len(keys))
	for i, k := range keys {
		args = append(args, "PEXPIRETIME", k, "DUMP", k)
		cmds = append(cmds, args[4*i:4*i+2:4*i+2], args[4*i+2:4*i+4:4*i+4])
		units[i] = unit{k, cmds[2*i : 2*i+2]}
	}
	replies, err := s.exec(ctx, db, units)
	if err != nil {
		return err
	}
	for i, r := range replies {
		if err := contentsOf(r, v, keys[i:i+1], got[i:i+1]); err != nil {
			return fmt.Errorf("read database %d: %w", db, err)
		}
	}
	return nil
}

// dumpTimed reads keys in transactions of a few: before 7.0, an expiry is told relative to the server's clock, which must be of the same
// instant.
func dumpTimed(ctx context.Context, s *session, v version, db int, keys []string, got []content) error {
	var units []unit
	var first []int // the key with which each transaction begins
	y, err := s.layout(ctx)
	if err != nil {
		return err
	}
	alone := y.cluster // keys of a transaction must share a slot, and even then not while it is being moved
	for from := 0; from < len(keys); {
		bytes, to := int64(0), from
		for to < len(keys) && (to == from || !alone && to-from < readKeys && bytes+got[to].size <= readBytes) {
			bytes += got[to].size
			to++
		}
		cmds := append([]command{{"MULTI"}}, expiryCommands(v, keys[from:to])...)
		for _, k := range keys[from:to] {
			cmds = append(cmds, command{"DUMP", k})
		}
		units = append(units, unit{keys[from], append(cmds, command{"EXEC"})})
		first = append(first, from)
		from = to
	}
	replies, err := s.exec(ctx, db, units)
	if err != nil {
		return err
	}
	for i, r := range replies {
		for _, q := range r {
			if err := q.err(); err != nil {
				return fmt.Errorf("read keys such as %s of database %d: %w", show(keys[first[i]]), db, err)
			}
		}
		to := len(keys)
		if i+1 < len(first) {
			to = first[i+1]
		}
		err := contentsOf(r[len(r)-1].items, v, keys[first[i]:to], got[first[i]:to])
		if errors.Is(err, errHeldUp) {
			err = dumpTimed(ctx, s, v, db, keys[first[i]:to], got[first[i]:to])
		}
		if err != nil {
			return fmt.Errorf("read database %d: %w", db, err)
		}
	}
	return nil
}

// contentsOf takes a transaction's replies apart.
func contentsOf(x []value, v version, keys []string, got []content) error {
	expires, x, err := expiriesOf(x, v, len(keys))
	if err != nil {
		return fmt.Errorf("read key %s: %w", show(keys[0]), err)
	}
	if len(x) != len(keys) {
		return fmt.Errorf("read key %s: EXEC gave %d payloads for %d keys", show(keys[0]), len(x), len(keys))
	}
	for i, k := range keys {
		if err := x[i].err(); err != nil {
			return fmt.Errorf("read key %s: %w", show(k), err)
		}
		got[i].payload, got[i].expires = x[i].str, expires[i]
		if expires[i] == gone {
			got[i].payload, got[i].expires = "", 0
		}
	}
	return nil
}

// refusal is a key that the destination would not take.
type refusal struct {
	key string
	err error
}

// store writes keys of one database as they were read and returns those that were refused. An error means that nothing is known
// of any of them.
func store(ctx context.Context, s *session, db int, offset time.Duration, keys []string, got []content) ([]refusal, error) {
	if err := s.enter(ctx, db); err != nil {
		return nil, err
	}
	units := make([]unit, 0, len(keys))
	args, cmds := make([]string, 0, 6*len(keys)), make([]command, 0, 2*len(keys))
	var refused []refusal
	for i, k := range keys {
		if offset != 0 && got[i].fieldsExpire() { // the payload's own times are absolute
			refused = append(refused, refusal{k, errOtherClock})
			continue
		}
		from := len(cmds)
		if got[i].overLarge && !got[i].absent() { // RESTORE would free it at once, which holds the server up
			cmds = append(cmds, command{"UNLINK", k})
		}
		at := len(args)
		args = appendStore(args, k, got[i], offset)
		cmds = append(cmds, args[at:len(args):len(args)])
		units = append(units, unit{k, cmds[from:len(cmds):len(cmds)]})
	}
	replies, err := s.exec(ctx, db, units)
	if err != nil {
		return nil, err
	}
	for i, r := range replies {
		if err := r[len(r)-1].err(); err != nil {
			refused = append(refused, refusal{units[i].key, err})
		}
	}
	return refused, nil
}

func appendStore(args []string, key string, c content, offset time.Duration) []string {
	if c.absent() {
		return append(args, "UNLINK", key)
	}
	return append(args, "RESTORE", key, strconv.FormatInt(expiryThere(c, offset), 10), c.payload, "REPLACE", "ABSTTL")
}

// expiryThere is the content's expiry by the destination's clock. It is never 0 for a key that expires: RESTORE takes 0 for "never".
func expiryThere(c content, offset time.Duration) int64 {
	if c.expires == 0 {
		return 0
	}
	return max(c.expires+offset.Milliseconds(), 1)
}

// errOtherClock refuses a payload whose fields expire by the origin's clock.
var errOtherClock = errors.New("the fields of the hash expire by another clock")

// badPayload tells whether RESTORE refused the form of a value, so that another form may do.
func badPayload(err error) bool {
	if errors.Is(err, errOtherClock) {
		return true
	}
	var r replyError
	return errors.As(err, &r) && (strings.Contains(string(r), "DUMP payload version or checksum") || strings.Contains(string(r), "Bad data format"))
}

// show is a key as it may stand in logs and messages: quoted and cut.
func show(key string) string {
	if len(key) > 100 {
		return strconv.Quote(key[:100]) + "…"
	}
	return strconv.Quote(key)
}
