package redissync

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"replicator/internal/preflight"
)

// Fields of a hash may have expiries of their own (Redis 7.4 and Valkey 9.0, "HPEXPIRE"). Both servers save them in forms of their own by
// the same type bytes, and absolute, so that a payload that holds some is carried over as it is only between servers of one family whose
// clocks agree; else the hash is written by commands. A server that doesn't know them gets no such hash: its fields would live for ever.

// RDB's type bytes of hashes with fields that expire (rdb.h of the Redis and Valkey sources).
const (
	redisFieldsFirst, redisFieldsLast = 22, 25
	valkeyFields                      = 22
)

// fieldsExpire tells whether the value is a hash with fields that expire.
func (c content) fieldsExpire() bool {
	if len(c.payload) < 11 {
		return false
	}
	if binary.LittleEndian.Uint16([]byte(c.payload[len(c.payload)-10:])) >= valkeyRDB {
		return c.payload[0] == valkeyFields
	}
	return c.payload[0] >= redisFieldsFirst && c.payload[0] <= redisFieldsLast
}

// fieldExpiry tells whether the origin knows expiries of fields.
func (f *flow) fieldExpiry() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.originInfo.fieldExpiry()
}

// hashValue is a hash with its fields' expiries, in milliseconds since 1970 by its server's clock; fields without one are not in expires.
type hashValue struct {
	pairs   []string // field, value, field, value
	expires map[string]int64
}

// readHash reads a hash and its fields' expiries at one instant, together with what more commands reply. It fails with errMoved if the
// hash changes its fields meanwhile.
func readHash(ctx context.Context, s *session, db int, key string, more ...command) (h hashValue, extra []value, err error) {
	r, err := s.exec(ctx, db, []unit{{key, []command{{"HKEYS", key}}}})
	if err != nil {
		return h, nil, err
	}
	if err := r[0][0].err(); err != nil {
		return h, nil, fmt.Errorf("HKEYS %s: %w: %w", show(key), errMoved, err)
	}
	fields := r[0][0].strings()
	// The expiries come before the values: time goes on within a transaction, and a field with a value but no longer an expiry would be taken
	// for one that never expires.
	cmds := []command{{"MULTI"}}
	var asked [][]string
	for part := range slices.Chunk(fields, argumentsAtOnce) {
		asked = append(asked, part)
		cmds = append(cmds, slices.Concat(command{"HPEXPIRETIME", key, "FIELDS", strconv.Itoa(len(part))}, part))
	}
	cmds = slices.Concat(cmds, []command{{"HGETALL", key}}, more, []command{{"EXEC"}})
	if r, err = s.exec(ctx, db, []unit{{key, cmds}}); err != nil {
		return h, nil, err
	}
	x := r[0][len(cmds)-1]
	if err := x.err(); err != nil {
		return h, nil, fmt.Errorf("read hash %s: %w", show(key), err)
	}
	if len(x.items) != 1+len(asked)+len(more) || x.items[len(asked)].err() != nil {
		return h, nil, errMoved
	}
	until := map[string]int64{}
	for i, part := range asked {
		times := x.items[i]
		if times.err() != nil || len(times.items) != len(part) {
			return h, nil, errMoved // gone, or of another type by now
		}
		for j, field := range part {
			until[field] = times.items[j].num
		}
	}
	h.expires = map[string]int64{}
	all := x.items[len(asked)].strings()
	for i := 0; i+1 < len(all); i += 2 {
		t, known := until[all[i]]
		if !known { // it came since the names were read
			return h, nil, errMoved
		}
		if t == gone { // expired, though the server still shows it
			continue
		}
		h.pairs = append(h.pairs, all[i], all[i+1])
		if t >= 0 {
			h.expires[all[i]] = t
		}
	}
	return h, x.items[1+len(asked):], nil
}

// commands are what makes the hash anew.
func (h hashValue) commands(key string, offset time.Duration) []command {
	cmds := inPieces([]string{"HSET", key}, h.pairs)
	together := map[int64][]string{}
	for field, at := range h.expires {
		at = max(at+offset.Milliseconds(), 1)
		together[at] = append(together[at], field)
	}
	for _, at := range slices.Sorted(maps.Keys(together)) {
		for part := range slices.Chunk(together[at], argumentsAtOnce) {
			cmds = append(cmds, slices.Concat(command{"HPEXPIREAT", key, strconv.FormatInt(at, 10), "FIELDS", strconv.Itoa(len(part))}, part))
		}
	}
	return cmds
}

// errFieldsImmortal refuses a hash to a server on which its fields would never expire.
func errFieldsImmortal(n int) error {
	return &preflight.Hinted{Code: "redis-field-expiry", Err: fmt.Errorf("%d fields of the hash have an expiry of their own, which the server doesn't know: they would live for ever", n),
		Hint: "move to Redis 7.4, Valkey 9.0 or newer, or exclude the key"}
}

// nearFields tells whether the same fields expire at the same times.
func nearFields(a, b map[string]int64, offset, tolerance time.Duration) bool {
	if len(a) != len(b) {
		return false
	}
	for field, at := range a {
		there, ok := b[field]
		if !ok || !near(at+offset.Milliseconds(), there, tolerance) {
			return false
		}
	}
	return true
}

// readHashCalmly is readHash that tries again while the hash changes.
func readHashCalmly(ctx context.Context, s *session, db int, key string, more ...command) (h hashValue, extra []value, err error) {
	for range 5 {
		if h, extra, err = readHash(ctx, s, db, key, more...); !errors.Is(err, errMoved) {
			return h, extra, err
		}
	}
	return h, nil, err
}
