package redissync

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// runWorker copies what is dirty: each key as it is now, whatever happened to it.
func (f *flow) runWorker(ctx context.Context, lane int) error {
	origin := &session{endpoint: f.origin.endpoint, name: f.pair.o.connectionName(f.role(fmt.Sprintf("read%d", lane))), admit: f.admission()}
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
		// A database that the destination doesn't have is the trouble of its keys, not of the others.
		if err := destination.enter(ctx, db); isReplyError(err) {
			for _, e := range mine {
				f.refuse(e, err)
			}
			batch = rest
			continue
		}
		left, err := f.copyDatabase(ctx, origin, destination, info.version, offset, db, mine)
		if err != nil {
			return append(left, rest...), err
		}
		batch = rest
	}
	return nil, nil
}

// copyDatabase copies dirty keys of one database and returns those that remain when it fails.
func (f *flow) copyDatabase(ctx context.Context, origin, destination *session, v version, offset time.Duration, db int, batch []*entry) ([]*entry, error) {
	left := make(map[string]*entry, len(batch))
	keys := make([]string, len(batch))
	for i, e := range batch {
		keys[i], left[e.id.key] = e.id.key, e
	}
	started := time.Now()
	big := func(key string, size int64) (bool, error) {
		e := left[key]
		if leave, ok := f.enterLong(size); ok {
			defer leave()
		} else {
			f.queue.back([]*entry{e}, longPoll)
			delete(left, key)
			return true, nil
		}
		started := time.Now()
		done, err := f.copyBig(ctx, origin, destination, v, e.id, size, offset)
		if err != nil && ofTheKey(err) {
			f.refuse(e, err)
			delete(left, key)
			return true, nil
		}
		if !done || err != nil {
			return false, err
		}
		delete(left, key)
		f.copiedKeys([]*entry{e}, []content{{size: size}}, time.Since(started))
		return true, nil
	}
	err := fetch(ctx, origin, v, db, keys, f.pair.o.bigBytes(), big, func(keys []string, got []content) error {
		f.overLarge(db, keys, got)
		refused, err := store(ctx, destination, db, offset, keys, got)
		if err != nil {
			return err
		}
		copied := make([]*entry, 0, len(keys))
		contents := make([]content, 0, len(keys))
		for i, k := range keys {
			e := left[k]
			if at := slices.IndexFunc(refused, func(r refusal) bool { return r.key == k }); at >= 0 {
				err := refused[at].err
				if badPayload(err) {
					err = f.storeOtherwise(ctx, origin, destination, e.id, got[i], offset)
				}
				if err != nil && !errors.Is(err, errMoved) { // a key that moved is marked again already
					if !ofTheKey(err) { // a connection's trouble: what is done is done, the rest is tried again
						f.copiedKeys(copied, contents, time.Since(started))
						return err
					}
					f.refuse(e, err)
					delete(left, k)
					continue
				}
			}
			delete(left, k)
			copied, contents = append(copied, e), append(contents, got[i])
		}
		f.copiedKeys(copied, contents, time.Since(started))
		started = time.Now()
		return nil
	})
	return slices.Collect(maps.Values(left)), err
}

// copiedKeys takes note of keys that are on the destination now. A key that has turned out to be a stream only by this copy stays
// dirty: no feed tells of changes to its groups, and those made since it was read would be missed by all who ask for streams meanwhile.
func (f *flow) copiedKeys(es []*entry, got []content, took time.Duration) {
	var rests []time.Duration
	var done, again []*entry
	var total int64
	for _, c := range got {
		total += c.size
	}
	fresh := f.noteCopies(es, got)
	for i, e := range es {
		if fresh[i] {
			again = append(again, e)
			continue
		}
		rest := time.Duration(0)
		if size := got[i].size; size >= costly {
			rest = restAfter(size, time.Duration(float64(took)*float64(size)/float64(total)))
		}
		done, rests = append(done, e), append(rests, rest)
	}
	f.queue.done(done, rests)
	if len(again) > 0 {
		f.queue.back(again, 0)
	}
	f.copied.Add(int64(len(done)))
	f.pair.o.Metrics.Copied(len(done))
}

// refuse names a key that the destination would not take, and has it tried again later.
func (f *flow) refuse(e *entry, err error) {
	_, p := problemOf(fmt.Errorf("write key %s of database %d: %w", show(e.id.key), e.id.db, err), f.destination, "")
	f.pair.problemFor(f.destination.name+" "+direction(f.reverse)+" key", p, 10*time.Second)
	f.queue.back([]*entry{e}, time.Second)
}

// maxTouched bounds the names remembered since the last complete verification; beyond, the next one is complete again.
const maxTouched = 1 << 20

// restAfter is how long a key that costs much stays dirty before it is copied again: in proportion to its cost, so that a hot one takes
// at most a fifth of a lane, and of what the servers do for it.
func restAfter(size int64, took time.Duration) time.Duration {
	return min(max(4*took, time.Duration(size/costly)*time.Millisecond), 30*time.Second)
}

// longCopy is the size from which a copy takes so long that not every lane may be busy with such, and longPoll when a key of that size is
// looked at again that found all places taken.
const (
	longCopy = 16 << 20
	longPoll = 20 * time.Millisecond
)

// enterLong takes a place for the copy of a big key. Under a freeze, when nothing else comes, every lane may.
func (f *flow) enterLong(size int64) (leave func(), ok bool) {
	if size < longCopy {
		return func() {}, true
	}
	select {
	case f.bigs <- struct{}{}:
		return func() { <-f.bigs }, true
	default:
		return func() {}, f.queue.hurried()
	}
}

// ofTheKey tells whether an error is the key's own trouble, not the connection's.
func ofTheKey(err error) bool {
	var h *preflight.Hinted
	return isReplyError(err) || errors.As(err, &h)
}

// noteCopies remembers which keys hold streams, and which were touched since the last complete verification. It tells which of them
// weren't known to be streams.
func (f *flow) noteCopies(es []*entry, got []content) (fresh map[int]bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fresh = map[int]bool{}
	for i, e := range es {
		if f.noteStreamLocked(e.id, got[i]) {
			fresh[i] = true
		}
		if got[i].overLarge {
			delete(f.large, e.id)
		}
		if f.verified != nil {
			f.verified[e.id] = struct{}{}
		}
	}
	if len(f.verified) > maxTouched {
		f.verified, f.verifiedFull = nil, false
	}
	return fresh
}

func (f *flow) noteStreamLocked(id keyID, c content) (fresh bool) {
	_, known := f.streams[id]
	switch {
	case !c.isStream():
		delete(f.streams, id)
	case !known:
		f.streams[id] = ""
	}
	return c.isStream() && !known
}

// facts returns what copying needs to know of both servers, as the watch has last seen it.
func (f *flow) facts(ctx context.Context) (serverInfo, time.Duration, error) {
	for {
		f.mu.Lock()
		info, offset, ok, changed := f.originInfo, f.offset, f.clocked && f.originSeen.ok && f.destSeen.ok, f.changed
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
	f.mu.Lock()
	v := f.originInfo.version
	f.mu.Unlock()
	return f.rebuild(ctx, origin, destination, v, id, offset)
}
