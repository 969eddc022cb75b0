package redissync

import (
	"context"
	"slices"
	"strconv"
	"time"

	"replicator/internal/retry"
)

const (
	scanCount = 1000  // keys asked of one SCAN call
	scanAhead = 20000 // dirty keys beyond which a scan waits for the copying
)

// runReconciler makes both sides equal again after every gap: it scans the origin for keys that differ, and the destination for
// keys that the origin doesn't have. It only marks keys as dirty; the copying does the rest.
func (f *flow) runReconciler(ctx context.Context) error {
	origin := &session{endpoint: f.origin.endpoint, name: f.pair.o.connectionName(f.role("scan")), admit: f.admission()}
	destination := &session{endpoint: f.destination.endpoint, name: f.pair.o.connectionName(f.role("scan"))}
	defer origin.close()
	defer destination.close()
	for {
		f.mu.Lock()
		holds, up, changed, rest := slices.Clone(f.holds), f.feed != nil, f.changed, f.evictionRestLocked()
		if len(holds) > 0 && up && rest <= 0 {
			f.eviction.hold = nil // it is covered by what begins now
		}
		f.mu.Unlock()
		if len(holds) == 0 || !up || rest > 0 {
			var timer <-chan time.Time
			if rest > 0 {
				timer = time.After(rest)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
			case <-timer:
			}
			continue
		}
		started := time.Now()
		err := retry.Do(ctx, f.policy("reconcile", f.origin), func(ctx context.Context) error {
			return f.reconcile(ctx, origin, destination)
		})
		if err != nil {
			return err
		}
		f.pair.solved(f.origin.name, direction(f.reverse)+" reconcile")
		// The gap is closed once what the scan found is copied: until then the lag is as old as the gap. A key that rests because it was
		// copied just before, and written to again, is not waited for at leisure.
		f.queue.hasten()
		if err := f.queue.awaitKeys(ctx, f.queue.state().last); err != nil {
			return err
		}
		f.mu.Lock()
		first := !f.reconciled
		f.mu.Unlock()
		if first && !f.reverse { // in reverse the target may be under a freeze, and the mark stands already
			if err := retry.Do(ctx, f.policy("mark", f.destination), f.pair.markCopied); err != nil {
				return err
			}
			f.pair.solved(f.destination.name, direction(f.reverse)+" mark")
		}
		f.evictionsOver(ctx)
		f.mu.Lock()
		f.reconciled = true
		f.holds = slices.DeleteFunc(f.holds, func(e *entry) bool { return slices.Contains(holds, e) })
		f.wake()
		f.mu.Unlock()
		for _, e := range holds {
			f.queue.drop(e)
		}
		f.log.Info("reconciled", "took", time.Since(started), "keys", f.scanned.Load(), "first", first)
	}
}

// reconcile scans both sides once.
func (f *flow) reconcile(ctx context.Context, origin, destination *session) error {
	if _, _, err := f.facts(ctx); err != nil {
		return err
	}
	if !f.reverse {
		if err := f.pair.markClaimed(ctx); err != nil {
			return err
		}
	}
	here, err := readInfo(ctx, origin, "server", "keyspace")
	if err != nil {
		return err
	}
	there, err := readInfo(ctx, destination, "server", "keyspace")
	if err != nil {
		return err
	}
	f.learn(mergeDatabases(here.databases, there.databases))
	f.mu.Lock()
	f.total = here.keys()
	f.mu.Unlock()
	f.scanned.Store(0)
	var empties []int // databases where the destination had nothing of ours, so that it can't have anything in excess now
	for _, db := range f.pair.o.ownDatabases(mergeDatabases(here.databases)) {
		empty, err := f.holdsNone(ctx, destination, db, there.databases[db])
		if err != nil {
			return err
		}
		if empty {
			empties = append(empties, db)
		}
		err = f.scan(ctx, origin, db, func(keys []string) error {
			f.scanned.Add(int64(len(keys)))
			if !empty {
				if keys, err = f.differing(ctx, origin, destination, here, there, db, keys); err != nil {
					return err
				}
			}
			f.markAll(db, keys)
			return f.queue.room(ctx, scanAhead)
		})
		if err != nil {
			return err
		}
	}
	for _, db := range f.pair.o.ownDatabases(mergeDatabases(there.databases)) {
		if slices.Contains(empties, db) {
			continue
		}
		err := f.scan(ctx, destination, db, func(keys []string) error {
			keys, err := missing(ctx, origin, db, keys)
			if err != nil {
				return err
			}
			f.markAll(db, keys)
			return f.queue.room(ctx, scanAhead)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// holdsNone tells whether a database holds no key that is ours to move.
func (f *flow) holdsNone(ctx context.Context, s *session, db int, keys int64) (bool, error) {
	if keys > 10 {
		return false, nil
	}
	none := true
	err := f.scan(ctx, s, db, func([]string) error { none = false; return nil })
	return none, err
}

func (f *flow) markAll(db int, keys []string) {
	ids := make([]keyID, len(keys))
	for i, k := range keys {
		ids[i] = keyID{db, k}
	}
	if len(ids) > 0 {
		f.queue.mark(ids...)
	}
}

func (f *flow) scan(ctx context.Context, s *session, db int, each func(keys []string) error) error {
	return scanKeys(ctx, s, db, f.pair.o, each)
}

// scanKeys hands every key of ours in a database to each, in pieces; a key may come twice, and one that was there all the time comes
// at least once (Redis documentation, "SCAN").
func scanKeys(ctx context.Context, s *session, db int, o Options, each func(keys []string) error) error {
	return scanAll(ctx, s, db, func(keys []string) error {
		if keys = slices.DeleteFunc(keys, func(k string) bool { return !o.owns(k) }); len(keys) == 0 {
			return nil
		}
		return each(keys)
	})
}

// scanAll is scanKeys for every key, replicator's own too. Of a cluster, it scans one primary after the other: a key that is moved
// meanwhile may be missed, but the feeds of both primaries report the move.
func scanAll(ctx context.Context, s *session, db int, each func(keys []string) error) error {
	return s.everyNode(ctx, func(n *session) error { return scanNode(ctx, n, db, each) })
}

func scanNode(ctx context.Context, s *session, db int, each func(keys []string) error) error {
	for cursor := "0"; ; {
		replies, err := s.exec(ctx, db, []unit{{"", []command{{"SCAN", cursor, "COUNT", strconv.Itoa(scanCount)}}}})
		if err != nil {
			return err
		}
		v := replies[0][0]
		if err := v.err(); err != nil {
			return err
		}
		if len(v.items) != 2 {
			return replyError("SCAN: unexpected reply")
		}
		if len(v.items[1].items) > 0 {
			if err := each(v.items[1].strings()); err != nil {
				return err
			}
		}
		if cursor = v.items[0].str; cursor == "0" {
			return nil
		}
	}
}

// differing returns those keys whose value or expiry isn't the same on both sides as far as their payloads tell. Different bytes
// may mean the same value; such a key is copied for nothing.
func (f *flow) differing(ctx context.Context, origin, destination *session, here, there serverInfo, db int, keys []string) ([]string, error) {
	f.mu.Lock()
	offset := f.offset
	f.mu.Unlock()
	var out []string
	big := func(key string, size int64) (bool, error) {
		f.noteLarge(keyID{db, key})
		kind, ok, err := sameBig(ctx, origin, destination, here, there, db, key, size, offset, f.tolerance())
		if ok && err == nil && kind != "" {
			out = append(out, key)
		}
		return ok, err
	}
	err := fetchBoth(ctx, origin, destination, here.version, there.version, db, keys, f.pair.o.bigBytes(), big, func(k string, g, have content) error {
		fresh := false // its groups may have changed since it was read, of which no feed tells
		if g.isStream() {
			f.mu.Lock()
			fresh = f.noteStreamLocked(keyID{db, k}, g)
			f.mu.Unlock()
		}
		if fresh || g.body() != have.body() || !near(expiryThere(g, offset), have.expires, f.tolerance()) {
			out = append(out, k)
		}
		return nil
	})
	return out, err
}

func (o Options) tolerance() time.Duration {
	if o.ExpiryTolerance <= 0 {
		return 5 * time.Millisecond
	}
	return o.ExpiryTolerance
}

// near tells whether two expiries are the same within the tolerance; never is near only to never.
func near(a, b int64, tolerance time.Duration) bool {
	if a == 0 || b == 0 {
		return a == b
	}
	return time.Duration(max(a, b)-min(a, b))*time.Millisecond <= tolerance
}

// missing returns those keys that the server doesn't have.
func missing(ctx context.Context, s *session, db int, keys []string) ([]string, error) {
	units := make([]unit, len(keys))
	for i, k := range keys {
		units[i] = unit{k, []command{{"EXISTS", k}}}
	}
	replies, err := s.exec(ctx, db, units)
	if err != nil {
		return nil, err
	}
	var out []string
	for i, r := range replies {
		if err := r[0].err(); err != nil {
			return nil, err
		}
		if r[0].num == 0 {
			out = append(out, keys[i])
		}
	}
	return out, nil
}
