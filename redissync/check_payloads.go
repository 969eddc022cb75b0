package redissync

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"replicator/internal/preflight"
)

// Bounds of the sample that the target is shown in a check.
const (
	samplePages = 4
	sampleBytes = 64 << 10
)

// encoding is one form of values that was found on the source, with a key that has it.
type encoding struct {
	kind    string // as TYPE says
	key     string
	payload string
}

// payloads shows the target one value of each encoding that a sample of the source has, in a transaction that removes it again, and names
// which of them RESTORE takes and what becomes of the others.
func (c *checker) payloads(ctx context.Context, s, t *session) {
	found, seen, err := c.sample(ctx, s)
	if err != nil {
		c.fail(err, c.p.source)
		return
	}
	if len(found) == 0 {
		return
	}
	taken, renamed, rebuilt := []string{}, []string{}, []string{}
	for _, b := range slices.Sorted(maps.Keys(found)) {
		e := found[b]
		name := fmt.Sprintf("%s (encoding %d, such as key %s)", e.kind, b, show(e.key))
		ok, err := c.takes(ctx, t, e.payload)
		if err != nil {
			c.fail(err, c.p.target)
			return
		}
		if ok {
			taken = append(taken, name)
			continue
		}
		older, _ := downgrade(e.payload)
		for _, p := range older {
			if ok, err = c.takes(ctx, t, p); err != nil {
				c.fail(err, c.p.target)
				return
			}
			if ok {
				break
			}
		}
		if ok {
			renamed = append(renamed, name)
		} else {
			rebuilt = append(rebuilt, name)
		}
	}
	if len(renamed)+len(rebuilt) == 0 {
		c.add(preflight.OK, "redis-payloads", "target", fmt.Sprintf("the target takes all %d encodings of values that %d sampled keys have", len(taken), seen), "")
	}
	if len(renamed) > 0 {
		c.add(preflight.OK, "redis-payloads", "target", "the target takes the source's values of these encodings under an older version's name: "+strings.Join(renamed, ", "), "")
	}
	if len(rebuilt) > 0 {
		c.add(preflight.Info, "redis-payloads", "target", "the target doesn't know these encodings of values: "+strings.Join(rebuilt, ", "), "such values are written by commands, exactly but more slowly: better take a target of the same or a newer version")
	}
}

// takes tells whether the target's RESTORE accepts a payload.
func (c *checker) takes(ctx context.Context, t *session, payload string) (bool, error) {
	key := c.p.o.temporaryKey("check")
	r, err := t.exec(ctx, 0, []unit{{key, []command{{"MULTI"}, {"RESTORE", key, "60000", payload, "REPLACE"}, {"UNLINK", key}, {"EXEC"}}}})
	if err != nil {
		return false, err
	}
	done := r[0][3]
	if err := done.err(); err != nil {
		return false, fmt.Errorf("RESTORE: %w", err)
	}
	if len(done.items) != 2 {
		return false, fmt.Errorf("RESTORE: EXEC gave %d replies", len(done.items))
	}
	err = done.items[0].err()
	if err != nil && !badPayload(err) {
		return false, fmt.Errorf("RESTORE: %w", err)
	}
	return err == nil, nil
}

// sample returns one small value of each encoding, by RDB's type byte, among some thousands of the source's keys, and how many it looked at.
func (c *checker) sample(ctx context.Context, s *session) (found map[byte]encoding, seen int, err error) {
	found = map[byte]encoding{}
	info, err := readInfo(ctx, s, "keyspace")
	if err != nil {
		return nil, 0, err
	}
	for _, db := range c.p.o.ownDatabases(mergeDatabases(info.databases)) {
		err := s.everyNode(ctx, func(n *session) error {
			cursor := "0"
			for range samplePages {
				v, err := n.exec(ctx, db, []unit{{"", []command{{"SCAN", cursor, "COUNT", strconv.Itoa(scanCount)}}}})
				if err != nil {
					return err
				}
				if err := v[0][0].err(); err != nil || len(v[0][0].items) != 2 {
					return fmt.Errorf("SCAN: %w", err)
				}
				keys := slices.DeleteFunc(v[0][0].items[1].strings(), func(k string) bool { return !c.p.o.owns(k) })
				seen += len(keys)
				if err := sampleOf(ctx, n, db, keys, found); err != nil {
					return err
				}
				if cursor = v[0][0].items[0].str; cursor == "0" {
					return nil
				}
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return found, seen, nil
}

// sampleOf adds the encodings of small values that found lacks. Keys are asked of the node that was scanned; one that has moved is left out.
func sampleOf(ctx context.Context, n *session, db int, keys []string, found map[byte]encoding) error {
	for keys := range slices.Chunk(keys, batchKeys) {
		units := make([]unit, len(keys))
		for i, k := range keys {
			units[i] = unit{k, []command{{"MEMORY", "USAGE", k}, {"TYPE", k}}}
		}
		sizes, err := n.exec(ctx, db, units)
		if err != nil {
			return err
		}
		var small []int
		var dumps []unit
		for i, r := range sizes {
			if r[0].kind == kindInt && r[0].num <= sampleBytes && r[1].err() == nil {
				small = append(small, i)
				dumps = append(dumps, unit{keys[i], []command{{"DUMP", keys[i]}}})
			}
		}
		values, err := n.exec(ctx, db, dumps)
		if err != nil {
			return err
		}
		for j, r := range values {
			p := r[0]
			if p.err() != nil || len(p.str) < 11 {
				continue
			}
			if _, ok := found[p.str[0]]; !ok {
				found[p.str[0]] = encoding{kind: sizes[small[j]][1].str, key: keys[small[j]], payload: p.str}
			}
		}
	}
	return nil
}
