package redissync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// runWorker copies what is dirty: each key as it is now, whatever happened to it.
func (f *flow) runWorker(ctx context.Context, lane int) error {
	origin := &session{endpoint: f.origin.endpoint, name: f.pair.o.connectionName(f.role(fmt.Sprintf("read%d", lane)))}
	destination := &session{endpoint: f.destination.endpoint, name: f.pair.o.connectionName(f.role(fmt.Sprintf("write%d", lane))), exclusive: true}
	defer origin.close()
	defer destination.close()
	loop := fmt.Sprintf("copy %d", lane)
	for {
		batch, err := f.queue.take(ctx, batchKeys)
		if err != nil {
			return err
		}
		left := slices.Clone(batch)
		err = retry.Do(ctx, f.policy(loop, f.destination), func(ctx context.Context) error {
			if err := f.gate.enter(ctx); err != nil {
				return err
			}
			defer f.gate.leave()
			var err error
			left, err = f.copyKeys(ctx, origin, destination, left)
			return err
		})
		if err != nil {
			f.queue.back(left, 0)
			return err
		}
		f.pair.solved(f.destination.name, direction(f.reverse)+" "+loop)
	}
}

// copyKeys copies dirty keys and returns those that remain to be copied when it fails. Keys that the destination refuses for
// their own sake go back to the queue, to be tried again later, and are named.
func (f *flow) copyKeys(ctx context.Context, origin, destination *session, batch []*entry) ([]*entry, error) {
	info, offset, err := f.facts(ctx)
	if err != nil {
		return batch, err
	}
	for len(batch) > 0 {
		db := batch[0].id.db
		var mine, rest []*entry
		for _, e := range batch {
			if e.id.db == db {
				mine = append(mine, e)
			} else {
				rest = append(rest, e)
			}
		}
		keys := make([]string, len(mine))
		for i, e := range mine {
			keys[i] = e.id.key
		}
		started := time.Now()
		done := 0
		err := fetch(ctx, origin, info.version, db, keys, func(keys []string, got []content) error {
			refused, err := store(ctx, destination, db, offset, keys, got)
			if err != nil {
				return err
			}
			took := time.Since(started)
			started = time.Now()
			copied := make([]*entry, 0, len(keys))
			rests := make([]time.Duration, 0, len(keys))
			f.noteCopies(mine[done:done+len(keys)], got)
			for i, k := range keys {
				e := mine[done+i]
				if at := slices.IndexFunc(refused, func(r refusal) bool { return r.key == k }); at >= 0 {
					err := refused[at].err
					if badPayload(err) {
						err = f.storeOtherwise(ctx, origin, destination, e.id, got[i], offset)
					}
					if errors.Is(err, errMoved) { // it is marked again already
						err = nil
					}
					if err != nil {
						f.refuse(e, err)
						continue
					}
				}
				copied = append(copied, e)
				rests = append(rests, restAfter(got[i], took))
			}
			f.queue.done(copied, rests)
			f.copied.Add(int64(len(copied)))
			f.pair.o.Metrics.Copied(len(copied))
			done += len(keys)
			return nil
		})
		if err != nil {
			return append(mine[done:], rest...), err
		}
		batch = rest
	}
	return nil, nil
}

// refuse names a key that the destination would not take, and has it tried again later.
func (f *flow) refuse(e *entry, err error) {
	_, p := problemOf(fmt.Errorf("write key %s of database %d: %w", show(e.id.key), e.id.db, err), f.destination, "")
	f.pair.problemFor(f.destination.name+" "+direction(f.reverse)+" key", p, 10*time.Second)
	f.queue.back([]*entry{e}, time.Second)
}

// maxTouched bounds the names remembered since the last complete verification; beyond, the next one is complete again.
const maxTouched = 1 << 20

// restAfter is how long a key that costs much stays dirty before it is copied again: in proportion to its cost.
func restAfter(c content, took time.Duration) time.Duration {
	if c.size < costly {
		return 0
	}
	return min(max(10*took, time.Duration(c.size/costly)*time.Millisecond), 2*time.Second)
}

// noteCopies remembers which keys hold streams, and which were touched since the last complete verification.
func (f *flow) noteCopies(es []*entry, got []content) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, e := range es {
		f.noteStreamLocked(e.id, got[i])
		if f.verified != nil {
			f.verified[e.id] = struct{}{}
		}
	}
	if len(f.verified) > maxTouched {
		f.verified, f.verifiedFull = nil, false
	}
}

func (f *flow) noteStreamLocked(id keyID, c content) {
	if !c.isStream() {
		delete(f.streams, id)
	} else if _, ok := f.streams[id]; !ok {
		f.streams[id] = ""
	}
}

// facts returns what copying needs to know of both servers, as the watch has last seen it.
func (f *flow) facts(ctx context.Context) (serverInfo, time.Duration, error) {
	for {
		f.mu.Lock()
		info, offset, ok, changed := f.originInfo, f.offset, f.originSeen.ok && f.destSeen.ok, f.changed
		f.mu.Unlock()
		if ok {
			return info, offset, nil
		}
		select {
		case <-ctx.Done():
			return serverInfo{}, 0, ctx.Err()
		case <-changed:
		}
	}
}

// storeOtherwise writes a value whose payload RESTORE refused.
func (f *flow) storeOtherwise(ctx context.Context, origin, destination *session, id keyID, c content, offset time.Duration) error {
	// Small steps first: the same bytes may pass under an older version's name.
	if older, ok := downgrade(c.payload); ok {
		for _, p := range older {
			c.payload = p
			refused, err := store(ctx, destination, id.db, offset, []string{id.key}, []content{c})
			if err != nil {
				return err
			}
			if len(refused) == 0 {
				return nil
			}
			if !badPayload(refused[0].err) {
				return refused[0].err
			}
		}
	}
	if len(c.payload) > 0 && c.payload[0] >= 22 {
		return &preflight.Hinted{Code: "redis-payload-refused", Err: errors.New("the server knows no expiry of single hash fields"),
			Hint: "move to Redis 7.4 or newer, or exclude the key"}
	}
	f.mu.Lock()
	v := f.originInfo.version
	f.mu.Unlock()
	return f.rebuild(ctx, origin, destination, v, id, offset)
}
