package redissync

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// grace is how long the second server may take when the first has answered.
const grace = 50 * time.Millisecond

// sideTime bounds an answer of the source, which the journal can do without outside a rollback's freeze.
const sideTime = time.Second

// ErrNotLeader says that another process has taken the lead; whoever gets it must stop. It is returned marked by retry.Stop.
var ErrNotLeader = &preflight.Hinted{Code: "redis-superseded", Err: errors.New("another process leads this migration"),
	Hint: "nothing to do if you started it; otherwise find the second daemon and stop it"}

// Journal keeps a Redis-only migration's cutover journal and its lead. The record stands on the target, and on the source as well:
// during the freeze of a rollback the target holds every write, ours too, and the source takes them then. The later record counts.
//
// The target is always needed. The source is needed only while a mark on the target, set before such a freeze and removed with the next
// record that the target takes, says that the source may know more: so a migration whose source is gone for good after the switch goes
// on, and one that was cut off in a rollback never goes back to an outdated record by itself.
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

func (j *Journal) leaseKey() string  { return j.o.own("lease") }
func (j *Journal) recordKey() string { return j.o.own("journal") }

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

// read hands over the documents under a key on target and source, and tells whether the source may know more than the target. The
// target must answer; the source must if it may know more.
func (j *Journal) read(ctx context.Context, key string, into func(side, string) error) (elsewhere bool, err error) {
	if j.pair.err != nil {
		return false, j.pair.err
	}
	give := func(at side, text string) error {
		if text == "" {
			return nil
		}
		if err := into(at, text); err != nil {
			return fmt.Errorf("read the journal on the %s: %w", at.name, err)
		}
		return nil
	}
	v, err := j.exchange(ctx, j.pair.target, "read", command{"MGET", key, j.o.elsewhereKey()})
	if err != nil {
		return false, fmt.Errorf("read the journal on the target: %w", err)
	}
	if len(v.items) != 2 {
		return false, errors.New("read the journal on the target: unexpected reply")
	}
	if err := give(j.pair.target, v.items[0].str); err != nil {
		return false, err
	}
	elsewhere = v.items[1].str != ""
	source := ctx
	if !elsewhere {
		var cancel context.CancelFunc
		source, cancel = context.WithTimeout(ctx, sideTime)
		defer cancel()
	}
	v, err = j.exchange(source, j.pair.source, "read", command{"GET", key})
	if err != nil {
		if elsewhere || ctx.Err() != nil {
			return elsewhere, j.sourceNeeded(err)
		}
		j.pair.log.Debug("the journal is read from the target only", "error", err)
		return false, nil
	}
	return elsewhere, give(j.pair.source, v.str)
}

// sourceNeeded explains why the source can't be done without.
func (j *Journal) sourceNeeded(err error) error {
	code, _ := classify(err, j.pair.source)
	return &preflight.Hinted{Code: code, Err: fmt.Errorf("read the journal on the source: %w", err),
		Hint: "a rollback was cut off while only the source could take its journal: bring the source back; if it is gone for good, go on from before that rollback by removing the key " + j.o.elsewhereKey() + " from the target"}
}

// Load returns the latest record, nil if there is none.
func (j *Journal) Load(ctx context.Context) ([]byte, error) {
	r, err := j.latest(ctx)
	return r.Record, err
}

func (j *Journal) latest(ctx context.Context) (entryRecord, error) {
	var latest entryRecord
	_, err := j.read(ctx, j.recordKey(), func(_ side, text string) error {
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

// Save writes the record; it stands on the target when Save returns, or in a rollback's freeze on the source, and on both if both take
// writes. It fails with ErrNotLeader if a later term has begun.
func (j *Journal) Save(ctx context.Context, record []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	elsewhere, err := j.fenced(ctx)
	if err != nil {
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
	return j.write(ctx, j.recordKey(), string(b), elsewhere, command{"UNLINK", j.o.elsewhereKey()})
}

// fenced fails if a later term has begun on either server, or another holder has this one's. It tells what read tells.
func (j *Journal) fenced(ctx context.Context) (elsewhere bool, err error) {
	return j.read(ctx, j.leaseKey(), func(_ side, text string) error {
		var l lease
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return err
		}
		if l.Epoch > j.epoch || l.Epoch == j.epoch && l.Holder != j.holder {
			return retry.Stop(ErrNotLeader)
		}
		return nil
	})
}

// write sets a key on both servers. It returns when one has it and the other has it too, has failed, or has had a moment: a server
// whose writes are held gives no answer. The one must be the target unless the source may know more anyway. What follows is run on
// the target together with it.
func (j *Journal) write(ctx context.Context, key, text string, elsewhere bool, also ...command) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// PSETEX, since the counts of rarer commands than SET tell nothing about strangers that write on a target (watch.go).
	cmd := command{"PSETEX", key, strconv.FormatInt(keep.Milliseconds(), 10), text}
	type result struct {
		suffices bool
		err      error
	}
	results := make(chan result, 2)
	go func() {
		_, err := j.exchange(ctx, j.pair.target, "write", slices.Concat([]command{{"MULTI"}, cmd}, also, []command{{"EXEC"}})...)
		results <- result{true, err}
	}()
	go func() {
		_, err := j.exchange(ctx, j.pair.source, "write", cmd)
		results <- result{elsewhere, err}
	}()
	var done bool
	var errs []error
	var wait <-chan time.Time
	for range 2 {
		select {
		case r := <-results:
			if r.err != nil {
				errs = append(errs, r.err)
			} else if r.suffices && !done {
				done = true
				t := time.NewTimer(grace)
				defer t.Stop()
				wait = t.C
			}
		case <-wait:
			cancel() // the connection is closed; what it sent is dropped unread, or overtaken by a later record's number
			j.pair.log.Debug("the journal stands on one side only", "error", (<-results).err)
			return nil
		}
	}
	if !done {
		return fmt.Errorf("write the journal: %w", errors.Join(errs...))
	}
	return nil
}

// exchange runs commands on a connection of their own and returns the last reply. A write's predecessor is ended first, so that
// nothing it had sent comes later.
func (j *Journal) exchange(ctx context.Context, at side, kind string, cmds ...command) (value, error) {
	s := &session{endpoint: at.endpoint, name: j.o.connectionNameIn("journal-" + kind + "-" + j.holder), exclusive: kind == "write"}
	defer s.close()
	r, err := s.exec(ctx, 0, []unit{{j.recordKey(), cmds}}) // all keys of the journal are in one slot
	if err != nil {
		return value{}, err
	}
	vs := r[0]
	for i, v := range vs {
		if err := v.err(); err != nil {
			return value{}, fmt.Errorf("%s: %w", cmds[i][0], err)
		}
	}
	return vs[len(vs)-1], nil
}

// elsewhereKey is the mark on the target that the source's copy of the journal may be the later one.
func (o Options) elsewhereKey() string { return o.own("journal-elsewhere") }

// markElsewhere sets that mark before the target's writes are held. Where they are held already it stands, or somebody else holds them.
func (p *Pair) markElsewhere(ctx context.Context) error {
	s := &session{endpoint: p.target.endpoint, name: p.o.connectionName("mark")}
	defer s.close()
	v, err := s.do(ctx, "GET", p.o.elsewhereKey())
	if err != nil {
		return err
	}
	if v.str != "" {
		return nil
	}
	if _, err := s.do(ctx, "PSETEX", p.o.elsewhereKey(), strconv.FormatInt(keep.Milliseconds(), 10), "1"); err != nil {
		return fmt.Errorf("mark the journal on the target: %w", err)
	}
	return nil
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
	highest, busy, elsewhere, err := j.leases(ctx)
	if err != nil {
		return 0, err
	}
	if busy {
		return 0, errors.New("another process leads")
	}
	j.mu.Lock()
	j.epoch = highest + 1
	j.mu.Unlock()
	if err := j.renew(ctx, elsewhere); err != nil {
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
	if _, err := j.fenced(ctx); errors.Is(err, ErrNotLeader) {
		return 0, errors.New("another process has just taken the lead") // unmarked: this one waits for its turn
	} else if err != nil {
		return 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.epoch, nil
}

// leases returns the highest term on either server and whether somebody else's lease is still alive.
func (j *Journal) leases(ctx context.Context) (highest int64, busy, elsewhere bool, err error) {
	elsewhere, err = j.read(ctx, j.leaseKey(), func(at side, text string) error {
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
	return highest, busy, elsewhere, err
}

func (j *Journal) serverTime(ctx context.Context, at side) (int64, error) {
	v, err := j.exchange(ctx, at, "time", command{"TIME"})
	if err != nil || len(v.items) != 2 {
		return 0, errors.Join(err, fmt.Errorf("read the clock of the %s", at.name))
	}
	sec, _ := strconv.ParseInt(v.items[0].str, 10, 64)
	return sec * 1000, nil
}

func (j *Journal) renew(ctx context.Context, elsewhere bool) error {
	j.mu.Lock()
	epoch := j.epoch
	j.mu.Unlock()
	now, err := j.serverTime(ctx, j.pair.target)
	if err != nil {
		return err
	}
	b, err := json.Marshal(lease{Epoch: epoch, Holder: j.holder, Until: now + j.o.lease().Milliseconds()})
	if err != nil {
		return err
	}
	return j.write(ctx, j.leaseKey(), string(b), elsewhere)
}

// Keep renews the lead until ctx ends, then gives it up so that a successor need not wait. It returns ErrNotLeader when the lead is
// lost: to another process, or because it could not be renewed in time.
func (j *Journal) Keep(ctx context.Context) error {
	tick := time.NewTicker(j.o.lease() / 4)
	defer tick.Stop()
	renewed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return j.release(context.WithoutCancel(ctx))
		case <-tick.C:
		}
		started := time.Now()
		elsewhere, err := j.fenced(ctx)
		if err == nil {
			err = j.renew(ctx, elsewhere)
		}
		switch {
		case err == nil:
			renewed = started
		case errors.Is(err, ErrNotLeader):
			return retry.Stop(ErrNotLeader)
		case ctx.Err() == nil && time.Since(renewed) > j.o.lease()*3/4:
			return retry.Stop(errors.Join(ErrNotLeader, err))
		}
	}
}

func (j *Journal) release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	elsewhere, err := j.fenced(ctx)
	if err != nil {
		return nil // it isn't ours to give up
	}
	j.mu.Lock()
	b, err := json.Marshal(lease{Epoch: j.epoch, Holder: j.holder})
	j.mu.Unlock()
	if err != nil {
		return err
	}
	return j.write(ctx, j.leaseKey(), string(b), elsewhere)
}

// Finish removes the journal and the lead from both servers.
func (j *Journal) Finish(ctx context.Context) error {
	for _, at := range []side{j.pair.target, j.pair.source} {
		if _, err := j.exchange(ctx, at, "write", command{"UNLINK", j.recordKey(), j.leaseKey(), j.pausedKey(), j.o.elsewhereKey()}); err != nil {
			return fmt.Errorf("remove the journal on the %s: %w", at.name, err)
		}
	}
	return nil
}
