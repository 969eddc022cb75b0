package redissync

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// A server without persistence that is restarted, or a failover to a replica that never synchronised, leaves an origin with nothing in
// it. Mirrored, that would empty the other side as well, where the only copy is left. So a flow reads from a server process only once it
// has proved that process: it is the one proved before (what it lost since then was taken by commands of the application), or it holds
// a fair part of what the destination holds. Until then nothing is copied, neither values nor deletions.

// The origin counts as emptied with no key where the destination has any, or with less than a tenth of many.
const (
	manyKeys   = 100
	fairPart   = 10
	samplePage = 20 // pages of SCAN from which the number of keys of ours is estimated
)

// errUnproved ends an exchange with an origin that isn't trusted. It is told of once, by prove, not by each loop that meets it.
var errUnproved = errors.New("the origin has yet to show that it still has its data")

// identity names one life of a server: it changes with a restart, a replacement and a failover (Redis documentation, "INFO").
// A cluster's is those of its primaries.
func (i serverInfo) identity() string {
	if len(i.nodes) == 0 {
		return i.runID + "/" + i.replID
	}
	ids := make([]string, len(i.nodes))
	for k, n := range i.nodes {
		ids[k] = n.identity()
	}
	return strings.Join(ids, ",")
}

// trusts tells whether the process of this identity, be it one of a cluster's, may be read from.
func (f *flow) trusts(identity string) bool {
	return slices.Contains(strings.Split(f.trustedOrigin(), ","), identity)
}

// originKey is where the destination keeps the identity of the origin that was proved last.
func (o Options) originKey() string { return o.own("origin:" + o.Name) }

// admission returns what a session that reads from the origin asks before it uses a connection: is this the process that was proved?
// It is asked again after every gap.
func (f *flow) admission() func(context.Context, *link) error {
	return func(ctx context.Context, l *link) error {
		at := f.gaps.Load() + 1 // 0 is never
		if l.admitted == at {
			return nil
		}
		info, err := infoOn(ctx, l, "server", "replication")
		if err != nil {
			return err
		}
		if !f.trusts(info.identity()) {
			if err := f.prove(ctx); err != nil {
				return err
			}
			if !f.trusts(info.identity()) {
				l.close() // it leads to another process than the one proved
				return errUnproved
			}
		}
		if l.admitted == 0 {
			if err := l.unnoticed(ctx, info); err != nil {
				return err
			}
		}
		l.admitted = at
		return nil
	}
}

func (f *flow) trustedOrigin() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.trusted
}

// trust accepts the origin as it is.
func (f *flow) trust(identity string) {
	f.mu.Lock()
	f.trusted, f.emptied = identity, false
	f.wake()
	f.mu.Unlock()
	f.pair.solved(f.origin.name, direction(f.reverse)+" emptied")
}

// trustNow accepts the origin in its present life without asking what it holds: both sides were compared just before.
func (f *flow) trustNow(ctx context.Context) error {
	return f.originEye.look(ctx, func(ctx context.Context, s *session) error {
		info, err := readInfo(ctx, s, "server", "replication")
		if err == nil {
			f.trust(info.identity())
		}
		return err
	})
}

// prove looks whether the origin may be followed, and shows a problem as long as it may not; the error is errUnproved then.
func (f *flow) prove(ctx context.Context) error {
	if f.gate.shutFor(shutIdle) {
		return nil // nothing is copied, and the destination's writes may be held
	}
	select {
	case f.proving <- struct{}{}:
		defer func() { <-f.proving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	origin := &session{endpoint: f.origin.endpoint, name: f.pair.o.connectionName(f.role("prove"))}
	destination := &session{endpoint: f.destination.endpoint, name: f.pair.o.connectionName(f.role("prove"))}
	defer origin.close()
	defer destination.close()
	info, err := readInfo(ctx, origin, "server", "replication", "keyspace")
	if err != nil {
		return err
	}
	if f.trustedOrigin() == info.identity() {
		f.noteOrigin(ctx, destination, info.identity())
		return nil
	}
	noted, err := destination.do(ctx, "GET", f.pair.o.originKey())
	if err != nil {
		return err
	}
	if noted.str == info.identity() {
		f.trust(noted.str)
		return nil
	}
	shards, err := origin.layout(ctx)
	if err != nil {
		return err
	}
	here, err := f.pair.o.ownKeys(ctx, origin, shards)
	if err != nil {
		return err
	}
	there, err := f.pair.o.ownKeys(ctx, destination, shards)
	if err != nil {
		return err
	}
	for i := range here {
		if emptied(here[i], there[i]) {
			f.mu.Lock()
			f.emptied = true
			f.mu.Unlock()
			f.pair.problem(f.origin.name+" "+direction(f.reverse)+" emptied", f.emptyFinding(here[i], there[i]))
			return errUnproved
		}
	}
	f.trust(info.identity())
	f.noteOrigin(ctx, destination, info.identity())
	return nil
}

// emptied tells whether an origin with so many keys must have lost its data, as measured by what the destination has.
func emptied(here, there int64) bool {
	return here == 0 && there > 0 || there >= manyKeys && here < there/fairPart
}

func (f *flow) emptyFinding(here, there int64) preflight.Finding {
	return preflight.Finding{Code: "redis-origin-empty", Severity: preflight.Error, Side: f.origin.name,
		Message: fmt.Sprintf("the %s Redis came back with %d keys after a restart or failover, while the %s holds %d: nothing is copied or deleted until that is settled", f.origin.name, here, f.destination.name, there),
		Hint: fmt.Sprintf("restore the %s's data, and it goes on by itself; if the data is meant to be gone, empty the %s too with: replicator resync --pair %s",
			f.origin.name, f.destination.name, f.pair.o.Name)}
}

// noteOrigin keeps the identity on the destination, so that the next process knows it too. Without the note it judges by what both
// sides hold, so a failure matters little.
func (f *flow) noteOrigin(ctx context.Context, destination *session, identity string) {
	if f.noted.Load() != nil && *f.noted.Load() == identity {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	// PSETEX for the reason that the journal uses it: its count tells nothing about strangers.
	key := f.pair.o.originKey()
	r, err := destination.exec(ctx, 0, []unit{{key, []command{{"PSETEX", key, strconv.FormatInt(keep.Milliseconds(), 10), identity}}}})
	if err == nil {
		err = r[0][0].err()
	}
	if err != nil {
		f.log.Debug("the origin's identity isn't noted", "error", err)
		return
	}
	f.noted.Store(&identity)
}

// ownKeys estimates how many keys of ours a side holds, for each of the origin's primaries how many of its slots. It is exact up to
// some thousands.
func (o Options) ownKeys(ctx context.Context, s *session, by *layout) ([]int64, error) {
	n := make([]int64, by.shards())
	err := s.everyNode(ctx, func(node *session) error { return o.ownKeysOf(ctx, node, by, n) })
	return n, err
}

// ownKeysOf adds what one server holds to n.
func (o Options) ownKeysOf(ctx context.Context, s *session, by *layout, n []int64) error {
	info, err := readInfo(ctx, s, "keyspace")
	if err != nil {
		return err
	}
	for _, db := range o.ownDatabases(mergeDatabases(info.databases)) {
		total := info.databases[db]
		var seen int64
		ours := make([]int64, len(n))
		pages, whole := 0, false
		cursor := "0"
		for pages < samplePage && !whole {
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
			for _, k := range v.items[1].strings() {
				seen++
				if shard := by.shard(k); shard >= 0 && o.owns(k) {
					ours[shard]++
				}
			}
			pages++
			cursor = v.items[0].str
			whole = cursor == "0"
		}
		for i := range n {
			switch {
			case whole:
				n[i] += ours[i]
			case seen > 0:
				n[i] += total * ours[i] / seen
			}
		}
	}
	return nil
}

// accept is the operator's word that the origin is right as it is, even empty.
func (f *flow) accept(ctx context.Context) error {
	f.mu.Lock()
	held := f.emptied
	f.mu.Unlock()
	if !held {
		return nil
	}
	f.log.Warn("the operator has the origin mirrored as it is", "side", f.origin.name)
	return f.trustNow(ctx)
}
