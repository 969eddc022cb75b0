package pair

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/apply"
)

// heartbeatEvery is how often a row of ours passes through an idle stream.
const heartbeatEvery = 5 * time.Second

// link is one running stream: capture on the origin, apply on the destination, acknowledgement of what the destination has flushed.
type link struct {
	p                   *Pair
	reverse             bool
	origin, destination *side
	capture             capture
	source              replication.Source
	applier             *apply.Applier
	// watch sees what the destination has flushed. It is as old as the stream, so that it can't outlive a crash that undid commits.
	watch *pgx.Conn
	holds chan *hold

	mu      sync.Mutex
	durable replication.Position
	commits []commit                           // applied, not yet known to be flushed, in order
	sent    []time.Time                        // of the batches that were sent and not yet applied: the commit time of the oldest source transaction, zero if there is none
	ended   int                                // how many batches were applied
	awaited map[*replication.Position]struct{} // places of the origin that somebody waits for
	moved   chan struct{}                      // closed and replaced when durable moves
	nudge   chan struct{}                      // somebody waits: be quick
}

// commit is one destination transaction that may not be flushed yet.
type commit struct {
	position replication.Position
	lsn      uint64    // on the destination
	oldest   time.Time // commit time of the oldest source transaction in it
}

// stream runs a direction until ctx ends or something fails. running, if not nil, is called beside the stream.
func (p *Pair) stream(ctx context.Context, reverse bool, seams map[replication.TableName]replication.Seam, running func(context.Context, *link) error) (err error) {
	origin, destination := p.ends(reverse)
	if err := p.enterReplica(ctx, destination); err != nil {
		return err
	}
	p.mu.Lock()
	token := ""
	if destination.ordinary {
		token = destination.token
	}
	p.mu.Unlock()
	a, err := apply.Open(ctx, apply.Options{URL: destination.url, ID: p.id, Direction: replication.Direction(reverse), Token: token, Metrics: p.metrics,
		TypeNames: func(ctx context.Context, oids []uint32, mods []int32) ([]string, error) {
			return typeNames(ctx, origin, oids, mods)
		},
		Columns: func(ctx context.Context, table replication.TableName) (map[string]string, error) {
			return columnsNow(ctx, origin, table)
		}})
	if err != nil {
		return fmt.Errorf("%s: %w", destination.name, err)
	}
	defer a.Close(ctx)
	c := p.capture(reverse)
	if !reverse {
		void, err := p.sameHistory(ctx)
		if err != nil {
			return err
		}
		if void {
			return errJoin
		}
	}
	if err := c.check(ctx, a.Position()); err != nil {
		return err
	}
	source, err := c.source(ctx, seams)
	if err != nil {
		return err
	}
	watch, err := postgres.Connect(ctx, destination.url, p.id, "watch")
	if err != nil {
		return fmt.Errorf("%s: %w", destination.name, err)
	}
	defer closeConn(ctx, watch)
	l := &link{
		p: p, reverse: reverse, origin: origin, destination: destination, applier: a, watch: watch, capture: c, source: source,
		durable: a.Position(), holds: make(chan *hold), awaited: map[*replication.Position]struct{}{}, moved: make(chan struct{}), nudge: make(chan struct{}, 1),
	}
	p.mu.Lock()
	p.link = l
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.link = nil
		p.mu.Unlock()
	}()
	p.log.Info("streaming", "direction", replication.Direction(reverse), "from", string(a.Position()))
	batches := make(chan *replication.Batch)
	outer := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.source.Stream(ctx, a.Position(), batches) })
	g.Go(func() error { return l.apply(ctx, batches) })
	g.Go(func() error { return l.acknowledge(ctx) })
	g.Go(func() error { return l.beat(ctx) })
	g.Go(func() error { return p.recovered(ctx) })
	if running != nil {
		g.Go(func() error { return running(ctx, l) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%s stream: %w", replication.Direction(reverse), p.explainDrift(outer, err, reverse))
	}
	return nil
}

// recovered clears the problem once the stream has run for a moment.
func (p *Pair) recovered(ctx context.Context) error {
	timer := time.NewTimer(2 * time.Second)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		p.clearProblem()
	}
	return nil
}

const columnsNowSQL = `
SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`

// columnsNow reads the types of a table's columns by name.
func columnsNow(ctx context.Context, s *side, table replication.TableName) (map[string]string, error) {
	rows, err := s.pool.Query(ctx, columnsNowSQL, table.Quoted())
	if err != nil {
		return nil, fmt.Errorf("read the columns of %s on the %s: %w", table, s.name, err)
	}
	out := map[string]string{}
	var name, typ string
	if _, err := pgx.ForEachRow(rows, []any{&name, &typ}, func() error { out[name] = typ; return nil }); err != nil {
		return nil, fmt.Errorf("read the columns of %s on the %s: %w", table, s.name, err)
	}
	return out, nil
}

func typeNames(ctx context.Context, s *side, oids []uint32, mods []int32) ([]string, error) {
	rows, err := s.pool.Query(ctx, `SELECT format_type(o, m) FROM unnest($1::oid[], $2::int4[]) WITH ORDINALITY AS u(o, m, n) ORDER BY n`, oids, mods)
	if err != nil {
		return nil, fmt.Errorf("read type names on the %s: %w", s.name, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read type names on the %s: %w", s.name, err)
	}
	return names, nil
}

// apply is the loop that owns the applier.
func (l *link) apply(ctx context.Context, batches <-chan *replication.Batch) error {
	var idle *replication.Batch // the newest bare position, written when it is time
	open := false               // between the pieces of a transaction
	var written time.Time
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	gathered := time.NewTimer(0)
	defer gathered.Stop()
	send := func(b *replication.Batch) error {
		open, idle, written = !b.Last, nil, time.Now()
		return l.send(ctx, b)
	}
	for {
		holds := l.holds
		if open {
			holds = nil
		}
		ready := batches
		if wait := l.applier.Gather(); wait > 0 {
			ready = nil
			gathered.Reset(wait)
		}
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-gathered.C:
			// What has gathered is sent behind the one that is under way.
		case h := <-holds:
			if err := l.settle(ctx); err != nil {
				h.done <- err
				return err
			}
			err := l.hold(ctx, h, batches)
			h.done <- err
			if err != nil && ctx.Err() != nil {
				return ctx.Err()
			}
			if h.broken != nil {
				return h.broken
			}
			idle = nil
		case <-l.applier.Ended():
			err = l.applier.Wait(ctx)
			l.collect()
		case b := <-ready:
			if b.PositionOnly() {
				idle = b
				if time.Since(written) < time.Second && !l.hurried() {
					continue
				}
			}
			err = send(b)
		case <-tick.C:
			if idle != nil {
				err = send(idle)
			}
		case <-l.nudge:
			if idle != nil {
				err = send(idle)
			}
		}
		if err != nil {
			return err
		}
	}
}

// send has a batch applied, and waits only where the applier does.
func (l *link) send(ctx context.Context, b *replication.Batch) error {
	if b.PositionOnly() {
		if err := l.settle(ctx); err != nil || b.Position == l.applier.Position() {
			return err
		}
	}
	var oldest time.Time
	if len(b.Marks) > 0 {
		oldest = b.Marks[0].Commit
	}
	l.mu.Lock()
	l.sent = append(l.sent, oldest)
	l.mu.Unlock()
	l.p.touch(b.Changes)
	err := l.applier.Send(ctx, b)
	l.collect()
	return err
}

// settle waits until everything that was sent is applied.
func (l *link) settle(ctx context.Context) error {
	err := l.applier.Settle(ctx)
	l.collect()
	return err
}

// applyOne applies a batch.
func (l *link) applyOne(ctx context.Context, b *replication.Batch) error {
	if err := l.send(ctx, b); err != nil {
		return err
	}
	return l.settle(ctx)
}

// collect notes the commits of what was applied, for the acknowledgement.
func (l *link) collect() {
	done := l.applier.Collect()
	if len(done) == 0 {
		return
	}
	l.mu.Lock()
	for _, d := range done {
		if d.Batch.Last {
			l.p.applied.Add(int64(len(d.Batch.Marks)))
			l.commits = append(l.commits, commit{position: d.Batch.Position, lsn: d.LSN, oldest: l.sent[0]})
		}
		l.sent = l.sent[1:]
		l.ended++
	}
	l.mu.Unlock()
	for _, d := range done {
		d.Batch.Release()
	}
}

// oldest is the commit time of the oldest source transaction that may not be durable yet, zero where there is none. The caller holds mu.
func (l *link) oldest() time.Time {
	for _, c := range l.commits {
		if !c.oldest.IsZero() {
			return c.oldest
		}
	}
	for _, t := range l.sent {
		if !t.IsZero() {
			return t
		}
	}
	return time.Time{}
}

// beat writes a heartbeat on the origin now and then, so that the slot moves even where nothing of ours is written.
func (l *link) beat(ctx context.Context) error {
	tick := time.NewTicker(heartbeatEvery)
	defer tick.Stop()
	for {
		if _, err := l.capture.beat(ctx, "heartbeat"); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// hurried tells whether somebody waits for a place.
func (l *link) hurried() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.awaited) > 0
}

// await waits until everything that a position of the origin covers is durable on the destination.
func (l *link) await(ctx context.Context, position replication.Position) error {
	l.mu.Lock()
	l.awaited[&position] = struct{}{}
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.awaited, &position)
		l.mu.Unlock()
	}()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		l.mu.Lock()
		durable, moved := l.durable, l.moved
		l.mu.Unlock()
		reached, err := l.source.Reached(durable, position)
		if err != nil || reached {
			return err
		}
		select {
		case l.nudge <- struct{}{}:
		default:
		}
		if s, ok := l.source.(interface{ Nudge() }); ok {
			s.Nudge()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s has everything up to %s (it has up to %s): %w", l.destination.name, position, durable, ctx.Err())
		case <-moved:
		case <-tick.C:
		}
	}
}

// errLinkDown is the answer to whoever needs a running stream while there is none.
var errLinkDown = errors.New("the stream is not running at the moment")

// running returns the current stream, waiting a while for one that is being started again.
func (p *Pair) running(ctx context.Context, reverse bool) (*link, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		p.mu.Lock()
		l, failure := p.link, p.status.failure
		p.mu.Unlock()
		if l != nil && l.reverse == reverse {
			return l, nil
		}
		select {
		case <-ctx.Done():
			err := errors.Join(errLinkDown, ctx.Err())
			if failure != nil {
				err = errors.Join(err, errors.New(failure.Message))
			}
			return nil, err
		case <-tick.C:
		}
	}
}

// awaitDurable waits, across restarts of the stream, until everything that the position covers is durable on the destination.
func (p *Pair) awaitDurable(ctx context.Context, reverse bool, position replication.Position) error {
	for {
		l, err := p.running(ctx, reverse)
		if err != nil {
			return err
		}
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		err = l.await(attempt, position)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
	}
}
