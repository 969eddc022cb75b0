package redissync

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// leaseTime is how long the lead outlives its holder's last sign of life.
const leaseTime = 10 * time.Second

// grace is how long the second server may take when the first has answered.
const grace = 50 * time.Millisecond

// ErrNotLeader says that another process has taken the lead; whoever gets it must stop.
var ErrNotLeader = &preflight.Hinted{Code: "redis-superseded", Err: errors.New("another process leads this migration"),
	Hint: "nothing to do if you started it; otherwise find the second daemon and stop it"}

// Journal keeps a Redis-only migration's cutover journal and its lead. The record stands on the target, and on the source as well:
// during the freeze of a rollback the target holds every write, ours too, and the source takes them then. The later record counts.
type Journal struct {
	o      Options
	pair   *Pair
	holder string

	mu    sync.Mutex
	epoch int64
	seq   int64
}

// NewJournal builds the journal of the migration that o's pair belongs to; several pairs of one migration share the journal of the first.
func NewJournal(o Options) *Journal {
	b := make([]byte, 8)
	rand.Read(b)
	return &Journal{o: o, pair: New(o), holder: hex.EncodeToString(b), epoch: o.Epoch}
}

func (j *Journal) leaseKey() string  { return ownPrefix + j.o.Migration + ":lease" }
func (j *Journal) recordKey() string { return ownPrefix + j.o.Migration + ":journal" }

// entryRecord and lease are what stands in the two keys. The lease's own expiry is the server's.
type entryRecord struct {
	Epoch  int64  `json:"epoch"`
	Seq    int64  `json:"seq"`
	Record []byte `json:"record"`
}

type lease struct {
	Epoch  int64  `json:"epoch"`
	Holder string `json:"holder"`
	Until  int64  `json:"until"` // milliseconds by the server's clock; 0: given up
}

// keep is how long the keys live without being written: they vanish some time after a migration that was abandoned.
const keep = 365 * 24 * time.Hour

// read returns the documents under a key on target and source; both must answer.
func (j *Journal) read(ctx context.Context, key string, into func(side, string) error) error {
	if j.pair.err != nil {
		return j.pair.err
	}
	for _, at := range []side{j.pair.target, j.pair.source} {
		v, err := j.exchange(ctx, at, "read", command{"GET", key})
		if err != nil {
			return fmt.Errorf("read the journal on the %s: %w", at.name, err)
		}
		if v.str != "" {
			if err := into(at, v.str); err != nil {
				return fmt.Errorf("read the journal on the %s: %w", at.name, err)
			}
		}
	}
	return nil
}

// Load returns the latest record, nil if there is none.
func (j *Journal) Load(ctx context.Context) ([]byte, error) {
	r, err := j.latest(ctx)
	return r.Record, err
}

func (j *Journal) latest(ctx context.Context) (entryRecord, error) {
	var latest entryRecord
	err := j.read(ctx, j.recordKey(), func(_ side, text string) error {
		var r entryRecord
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return err
		}
		if r.Seq > latest.Seq {
			latest = r
		}
		return nil
	})
	return latest, err
}

// Save writes the record; it stands on at least one server when Save returns, on both if both take writes. It fails with
// ErrNotLeader if a later term has begun.
func (j *Journal) Save(ctx context.Context, record []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.fenced(ctx); err != nil {
		return err
	}
	if j.seq == 0 {
		r, err := j.latest(ctx)
		if err != nil {
			return err
		}
		j.seq = r.Seq
	}
	j.seq++
	b, err := json.Marshal(entryRecord{Epoch: j.epoch, Seq: j.seq, Record: record})
	if err != nil {
		return err
	}
	return j.write(ctx, j.recordKey(), string(b))
}

// fenced fails if a later term has begun on either server, or another holder has this one's.
func (j *Journal) fenced(ctx context.Context) error {
	return j.read(ctx, j.leaseKey(), func(_ side, text string) error {
		var l lease
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return err
		}
		if l.Epoch > j.epoch || l.Epoch == j.epoch && l.Holder != j.holder {
			return ErrNotLeader
		}
		return nil
	})
}

// write sets a key on both servers. It returns when one has it and the other has it too, has failed, or has had a moment: a server
// whose writes are held gives no answer.
func (j *Journal) write(ctx context.Context, key, text string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// PSETEX, since the counts of rarer commands than SET tell nothing about strangers that write on a target (watch.go).
	cmd := command{"PSETEX", key, strconv.FormatInt(keep.Milliseconds(), 10), text}
	results := make(chan error, 2)
	for _, at := range []side{j.pair.target, j.pair.source} {
		go func() {
			_, err := j.exchange(ctx, at, "write", cmd)
			results <- err
		}()
	}
	first := <-results
	var wait <-chan time.Time
	if first == nil {
		t := time.NewTimer(grace)
		defer t.Stop()
		wait = t.C
	}
	select {
	case second := <-results:
		if first != nil && second != nil {
			return fmt.Errorf("write the journal: %w", errors.Join(first, second))
		}
	case <-wait:
		cancel() // the connection is closed; what it sent is dropped unread, or overtaken by a later record's number
		j.pair.log.Debug("the journal stands on one side only", "error", <-results)
	}
	return nil
}

// exchange runs one command on a connection of its own. A write's predecessor is ended first, so that nothing it had sent comes later.
func (j *Journal) exchange(ctx context.Context, at side, kind string, cmd command) (value, error) {
	s := &session{endpoint: at.endpoint, name: j.o.connectionNameIn("journal-" + kind + "-" + j.holder), exclusive: kind == "write"}
	defer s.close()
	return s.do(ctx, cmd...)
}

// connectionNameIn names connections that belong to the migration rather than to a pair, and to no term.
func (o Options) connectionNameIn(role string) string {
	return "replicator:" + sanitize(o.Migration) + ":" + role
}

// Lead waits until no other process leads, takes the lead and returns its term. Then it must be kept by Keep.
func (j *Journal) Lead(ctx context.Context) (epoch int64, err error) {
	err = retry.Do(ctx, retry.Policy{First: 500 * time.Millisecond, Max: 2 * time.Second}, func(ctx context.Context) error {
		epoch, err = j.tryLead(ctx)
		return err
	})
	return epoch, err
}

func (j *Journal) tryLead(ctx context.Context) (int64, error) {
	highest, busy, err := j.leases(ctx)
	if err != nil {
		return 0, err
	}
	if busy {
		return 0, errors.New("another process leads")
	}
	j.mu.Lock()
	j.epoch = highest + 1
	j.mu.Unlock()
	if err := j.renew(ctx); err != nil {
		return 0, err
	}
	// Two that took the lead at once both find the other's lease on one of the servers: the later writer of both has it.
	timer := time.NewTimer(500 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := j.fenced(ctx); err != nil {
		return 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.epoch, nil
}

// leases returns the highest term on either server and whether somebody else's lease is still alive.
func (j *Journal) leases(ctx context.Context) (highest int64, busy bool, err error) {
	err = j.read(ctx, j.leaseKey(), func(at side, text string) error {
		var l lease
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return err
		}
		now, err := j.serverTime(ctx, at)
		if err != nil {
			return err
		}
		highest = max(highest, l.Epoch)
		busy = busy || l.Holder != j.holder && l.Until > now
		return nil
	})
	return highest, busy, err
}

func (j *Journal) serverTime(ctx context.Context, at side) (int64, error) {
	v, err := j.exchange(ctx, at, "time", command{"TIME"})
	if err != nil || len(v.items) != 2 {
		return 0, errors.Join(err, fmt.Errorf("read the clock of the %s", at.name))
	}
	sec, _ := strconv.ParseInt(v.items[0].str, 10, 64)
	return sec * 1000, nil
}

func (j *Journal) renew(ctx context.Context) error {
	j.mu.Lock()
	epoch := j.epoch
	j.mu.Unlock()
	now, err := j.serverTime(ctx, j.pair.target)
	if err != nil {
		return err
	}
	b, err := json.Marshal(lease{Epoch: epoch, Holder: j.holder, Until: now + leaseTime.Milliseconds()})
	if err != nil {
		return err
	}
	return j.write(ctx, j.leaseKey(), string(b))
}

// Keep renews the lead until ctx ends, then gives it up so that a successor need not wait. It returns ErrNotLeader when the lead is
// lost: to another process, or because it could not be renewed in time.
func (j *Journal) Keep(ctx context.Context) error {
	tick := time.NewTicker(leaseTime / 4)
	defer tick.Stop()
	renewed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return j.release(context.WithoutCancel(ctx))
		case <-tick.C:
		}
		started := time.Now()
		err := j.fenced(ctx)
		if err == nil {
			err = j.renew(ctx)
		}
		switch {
		case err == nil:
			renewed = started
		case errors.Is(err, ErrNotLeader):
			return ErrNotLeader
		case ctx.Err() == nil && time.Since(renewed) > leaseTime*3/4:
			return errors.Join(ErrNotLeader, err)
		}
	}
}

func (j *Journal) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := j.fenced(ctx); err != nil {
		return nil // it isn't ours to give up
	}
	j.mu.Lock()
	b, err := json.Marshal(lease{Epoch: j.epoch, Holder: j.holder})
	j.mu.Unlock()
	if err != nil {
		return err
	}
	return j.write(ctx, j.leaseKey(), string(b))
}

// Finish removes the journal and the lead from both servers.
func (j *Journal) Finish(ctx context.Context) error {
	for _, at := range []side{j.pair.target, j.pair.source} {
		if _, err := j.exchange(ctx, at, "write", command{"UNLINK", j.recordKey(), j.leaseKey()}); err != nil {
			return fmt.Errorf("remove the journal on the %s: %w", at.name, err)
		}
	}
	return nil
}
