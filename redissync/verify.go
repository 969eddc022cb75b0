package redissync

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"replicator/internal/retry"
)

// rounds is how often a difference is looked at again before it counts: a key that is being written to differs for a moment.
const rounds = 8

// Report is the outcome of a verification.
type Report struct {
	// Keys counts the keys compared.
	Keys int64
	// Mismatches counts the keys that stayed different.
	Mismatches int
	// Moving counts keys that were written to each time they were looked at, so that nothing can be said of them; a freeze ends that.
	Moving int
	// Differences names the first of them.
	Differences []Difference
	Elapsed     time.Duration
}

// Difference is one key that isn't the same on both sides.
type Difference struct {
	Database int
	Key      string
	Kind     string // missing (on the destination), extra, different, expiry
}

// String names the key and what is wrong with it.
func (d Difference) String() string {
	return fmt.Sprintf("key %s of database %d (%s)", show(d.Key), d.Database, d.Kind)
}

// maxDifferences bounds the names in a Report.
const maxDifferences = 100

// VerifyNow compares every key of both sides, value and expiry, while everything goes on.
func (p *Pair) VerifyNow(ctx context.Context) (Report, error) {
	f, err := p.current(ctx)
	if err != nil {
		return Report{}, err
	}
	if _, err := f.ready(ctx, true); err != nil {
		return Report{}, err
	}
	return p.verify(ctx, f, true, true)
}

// verifier compares keys between the sides of a flow.
type verifier struct {
	f                    *flow
	origin, destination  *session
	originInfo, destInfo serverInfo
	offset               time.Duration
	keys                 int64
}

// verify compares all keys, or those that were touched since they were last compared. A key that is written to all the time is looked at
// again if patient; else it is left to the next incomplete verification, and at last to that in the freeze, so that no load can keep this
// one from ending.
func (p *Pair) verify(ctx context.Context, f *flow, all, patient bool) (Report, error) {
	started := time.Now()
	select { // one at a time
	case p.verifying <- struct{}{}:
		defer func() { <-p.verifying }()
	case <-ctx.Done():
		return Report{}, ctx.Err()
	}
	v, done, err := p.newVerifier(ctx, f)
	if err != nil {
		return Report{}, err
	}
	defer done()
	f.mu.Lock()
	gaps := f.gaps.Load()
	var touched []keyID
	if !f.verifiedFull {
		all = true
	}
	if all {
		f.verified, f.verifiedFull = map[keyID]struct{}{}, false
	} else {
		touched = slices.Collect(maps.Keys(f.verified))
		f.verified = map[keyID]struct{}{} // what is touched from now on
	}
	f.mu.Unlock()
	unsure := touched // to be compared again next time
	defer func() { f.touch(unsure) }()
	suspects, err := v.firstRound(ctx, all, touched)
	if err != nil {
		return Report{}, fmt.Errorf("verify: %w", err)
	}
	var moving []keyID
	for round := 1; round < rounds && len(suspects) > 0; round++ {
		if suspects, err = v.round(ctx, round, suspects); err != nil {
			return Report{}, fmt.Errorf("verify: %w", err)
		}
		if !patient || round == rounds-1 {
			for id, kind := range suspects {
				if kind == inMotion {
					delete(suspects, id)
					moving = append(moving, id)
				}
			}
		}
	}
	unsure = slices.AppendSeq(moving, maps.Keys(suspects))
	r := Report{Keys: v.keys, Moving: len(moving), Mismatches: len(suspects), Elapsed: time.Since(started)}
	for _, id := range sortedKeys(suspects) {
		if len(r.Differences) < maxDifferences {
			r.Differences = append(r.Differences, Difference{id.db, id.key, suspects[id]})
		}
	}
	if len(suspects) == 0 && all {
		f.mu.Lock()
		f.verifiedFull = f.verified != nil && gaps == f.gaps.Load()
		f.mu.Unlock()
	}
	p.o.Metrics.VerifyMismatches(len(suspects))
	return r, nil
}

// newVerifier opens what a comparison needs; the function that it returns closes that.
func (p *Pair) newVerifier(ctx context.Context, f *flow) (*verifier, func(), error) {
	v := &verifier{
		f:           f,
		origin:      &session{endpoint: f.origin.endpoint, name: p.o.connectionName(f.role("verify"))},
		destination: &session{endpoint: f.destination.endpoint, name: p.o.connectionName(f.role("verify"))},
	}
	done := func() {
		v.origin.close()
		v.destination.close()
	}
	v.origin.admit, v.destination.admit = unnoticed(), unnoticed()
	_, _, err := f.facts(ctx) // the clocks are known
	if err == nil {
		v.originInfo, err = readInfo(ctx, v.origin, "server", "keyspace")
	}
	if err == nil {
		v.destInfo, err = readInfo(ctx, v.destination, "server", "keyspace")
	}
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("verify: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v.offset = f.offset
	return v, done, nil
}

// unnoticed is for sessions that only read.
func unnoticed() func(context.Context, *link) error {
	return func(ctx context.Context, l *link) error {
		if l.admitted != 0 {
			return nil
		}
		info, err := infoOn(ctx, l, "server")
		if err == nil {
			err = l.unnoticed(ctx, info)
		}
		if err == nil {
			l.admitted = 1
		}
		return err
	}
}

// touch adds keys to those that the next incomplete verification compares.
func (f *flow) touch(ids []keyID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.verified == nil {
		return
	}
	for _, id := range ids {
		f.verified[id] = struct{}{}
	}
}

// inMotion marks a suspect that was written to while it was compared.
const inMotion = "in motion"

// round compares suspects again, once the destination has what is known of them now. A difference of a key that was written to between
// then and the comparison says nothing.
func (v *verifier) round(ctx context.Context, round int, suspects map[keyID]string) (left map[keyID]string, err error) {
	still := v.f.gate.shutFor(shutDrained) || v.f.gate.shutFor(shutPaused)
	moved := v.f.observe(suspects)
	defer v.f.observe(nil)
	if !still {
		if err := v.settle(ctx, round, slices.Collect(maps.Keys(suspects))); err != nil {
			return nil, err
		}
	}
	if left, err = v.again(ctx, suspects); err != nil {
		return nil, err
	}
	if !still {
		if _, err := v.f.fence(ctx); err != nil {
			return nil, err
		}
	}
	for id := range left {
		if moved(id) {
			left[id] = inMotion
		}
	}
	return left, nil
}

// observe starts noting which of the keys are written to, instead of any others, and returns what tells.
func (f *flow) observe(ids map[keyID]string) func(keyID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.observed, f.observedAll = nil, false
	if len(ids) == 0 {
		return nil
	}
	f.observed = map[string]bool{}
	for id := range ids {
		f.observed[id.key] = false
	}
	mine := f.observed
	return func(id keyID) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return mine[id.key] || f.observedAll
	}
}

// sawChange notes a change of an observed key.
func (f *flow) sawChange(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range names {
		if _, ok := f.observed[n]; ok {
			f.observed[n] = true
		}
	}
}

// settle lets the copying bring suspects up to date on the destination. What no feed tells is asked for, and given time from the second
// round on.
func (v *verifier) settle(ctx context.Context, round int, suspects []keyID) error {
	wait := time.NewTimer(time.Duration(round-1) * 100 * time.Millisecond)
	defer wait.Stop()
	if round > 1 {
		if err := retry.Do(ctx, retry.Policy{Max: time.Second}, v.f.lookNow); err != nil {
			return err
		}
		v.f.markStreams(suspects...)
	}
	if _, err := v.f.ready(ctx, true); err != nil { // what a gap has hidden is found by the reconcile
		return err
	}
	seq, err := v.f.fence(ctx)
	if err != nil {
		return err
	}
	if err := v.f.queue.awaitOf(ctx, suspects, seq); err != nil {
		return err
	}
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *verifier) firstRound(ctx context.Context, all bool, touched []keyID) (map[keyID]string, error) {
	suspects := map[keyID]string{}
	if !all {
		byDB := map[int][]string{}
		for _, id := range touched {
			byDB[id.db] = append(byDB[id.db], id.key)
		}
		for db, keys := range byDB {
			for part := range slices.Chunk(keys, scanCount) {
				v.keys += int64(len(part))
				if err := v.compare(ctx, db, part, suspects); err != nil {
					return nil, err
				}
			}
		}
		return suspects, nil
	}
	o := v.f.pair.o
	for _, db := range o.ownDatabases(mergeDatabases(v.originInfo.databases, v.destInfo.databases)) {
		err := scanKeys(ctx, v.origin, db, o, func(keys []string) error {
			v.keys += int64(len(keys))
			return v.compare(ctx, db, keys, suspects)
		})
		if err != nil {
			return nil, err
		}
		err = scanKeys(ctx, v.destination, db, o, func(keys []string) error {
			extra, err := missing(ctx, v.origin, db, keys)
			if err != nil || len(extra) == 0 {
				return err
			}
			return v.compare(ctx, db, extra, suspects)
		})
		if err != nil {
			return nil, err
		}
	}
	return suspects, nil
}

func (v *verifier) again(ctx context.Context, suspects map[keyID]string) (map[keyID]string, error) {
	byDB := map[int][]string{}
	for id := range suspects {
		byDB[id.db] = append(byDB[id.db], id.key)
	}
	left := map[keyID]string{}
	for db, keys := range byDB {
		for part := range slices.Chunk(keys, scanCount) {
			if err := v.compare(ctx, db, part, left); err != nil {
				return nil, err
			}
		}
	}
	return left, nil
}

// compare adds those keys to suspects that aren't the same on both sides.
func (v *verifier) compare(ctx context.Context, db int, keys []string, suspects map[keyID]string) error {
	o := v.f.pair.o
	big := func(key string, size int64) (bool, error) {
		v.f.noteLarge(keyID{db, key})
		kind, ok, err := sameBig(ctx, v.origin, v.destination, v.originInfo, v.destInfo, db, key, size, v.offset, v.f.tolerance())
		if ok && err == nil && kind != "" {
			suspects[keyID{db, key}] = kind
		}
		return ok, err
	}
	return fetchBoth(ctx, v.origin, v.destination, v.originInfo.version, v.destInfo.version, db, keys, o.bigBytes(), big, func(k string, here, there content) error {
		kind, err := v.judge(ctx, db, k, here, there)
		if err == nil && kind != "" {
			suspects[keyID{db, k}] = kind
		}
		return err
	})
}

// judge says how a key differs; empty if it doesn't.
func (v *verifier) judge(ctx context.Context, db int, key string, here, there content) (string, error) {
	switch {
	case here.absent() && there.absent():
		return "", nil
	case here.absent():
		return "extra", nil
	case there.absent():
		if here.fieldsExpire() { // perhaps all of them have, which a server under a freeze doesn't clear away
			d, err := v.decode(ctx, v.origin, v.originInfo, db, key)
			if err == nil && d.emptyHash() {
				return "", nil
			}
			if err != nil && !errors.Is(err, errMoved) {
				return "", err
			}
		}
		return "missing", nil
	}
	if here.body() != there.body() || here.fieldsExpire() && v.offset != 0 {
		// The same value may be encoded in several ways: only the decoded values count.
		a, err := v.decode(ctx, v.origin, v.originInfo, db, key)
		if err != nil && !errors.Is(err, errMoved) {
			return "", err
		}
		b, errB := v.decode(ctx, v.destination, v.destInfo, db, key)
		if errB != nil && !errors.Is(errB, errMoved) {
			return "", errB
		}
		if err != nil || errB != nil || !a.equals(b, v.offset, v.f.tolerance()) {
			return "different", nil
		}
	}
	if !near(expiryThere(here, v.offset), there.expires, v.f.tolerance()) {
		return "expiry", nil
	}
	return "", nil
}

func (v *verifier) decode(ctx context.Context, s *session, at serverInfo, db int, key string) (decoded, error) {
	return decode(ctx, s, db, key, min(v.originInfo.version, v.destInfo.version), at.fieldExpiry())
}

func sortedKeys(m map[keyID]string) []keyID {
	out := slices.Collect(maps.Keys(m))
	slices.SortFunc(out, func(a, b keyID) int {
		if a.db != b.db {
			return a.db - b.db
		}
		if a.key < b.key {
			return -1
		}
		return 1
	})
	return out
}
