package pair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"replicator/replication"
	"replicator/replication/logical"
	"replicator/replication/snapshot"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

// capture is how the changes of one direction are learned on its origin. All methods are idempotent.
type capture interface {
	// name is logical or trigger.
	name() string
	// begin puts the capture in place for these tables, in place of any earlier one, which nobody waits for. From its return on no change
	// is lost; it returns the position from which to stream.
	begin(ctx context.Context, tables []replication.Table) (replication.Position, error)
	// extend takes in tables beside those that are captured already; tables lists all of them.
	extend(ctx context.Context, tables []replication.TableName) error
	// lacks returns those of the origin's tables that aren't captured, or not as they are now: others have taken their names, or what is logged
	// of them was altered.
	lacks(ctx context.Context, tables []replication.Table) ([]replication.TableName, error)
	// check tells whether streaming from the destination's stored position loses nothing.
	check(ctx context.Context, stored replication.Position) error
	// source returns a source; seams are the tables' copies.
	source(ctx context.Context, seams map[replication.TableName]replication.Seam) (replication.Source, error)
	// start returns a position of now to stream from, for a capture that begin has put in place before.
	start(ctx context.Context) (replication.Position, error)
	// beat writes a row of ours with a token, and returns a position that covers everything that had committed when it was called.
	beat(ctx context.Context, token string) (replication.Position, error)
	// observe reads how far the origin is.
	observe(ctx context.Context) (observation, error)
	// standing fails where the capture is gone as a whole, so that the pair has to be copied anew: nothing must be put in its place before.
	standing(ctx context.Context) error
	// relieve gives up what the origin retains: the pair has to be copied anew afterwards. It frees what it can at once; done tells whether that was all, and
	// without anew it goes on with the rest.
	relieve(ctx context.Context, anew bool) (done bool, err error)
	// retire removes what was put on tables of the origin that aren't replicated any more, beside the stream. It waits until ctx ends for those that are busy.
	retire(ctx context.Context, keep []replication.TableName) error
	// align takes a snapshot of the origin and, through l, calls destination while the destination has exactly what that snapshot sees.
	align(ctx context.Context, l *link, destination func(context.Context) error) (*exported, error)
	// end removes the capture.
	end(ctx context.Context) error
}

// observation is how far an origin is at a moment.
type observation struct {
	position replication.Position
	// at is the origin's clock.
	at time.Time
	// retained is what the origin keeps on disk for us, in bytes; nil if nothing can be said.
	retained *int64
	// holder is who has kept the origin from forgetting longest, nil if nobody does.
	holder *trigger.Holder
	// horizon is the age of the oldest transaction that does, however young, 0 if there is none; nil where nothing is emptied.
	horizon *time.Duration
}

// logicalCapture reads a replication slot.
type logicalCapture struct {
	p       *Pair
	reverse bool
}

func (c logicalCapture) name() string { return "logical" }

func (c logicalCapture) origin() *side {
	origin, _ := c.p.ends(c.reverse)
	return origin
}

// slot names the slot, which stands on the origin.
func (c logicalCapture) slot() string {
	if !c.reverse && c.p.o.Adopt != "" {
		return c.p.o.Adopt
	}
	return c.publication()
}

// publication names the publication, which stands on the origin.
func (c logicalCapture) publication() string {
	if c.reverse {
		return c.p.id.ObjectName("reverse")
	}
	return c.p.id.ObjectName("")
}

func (c logicalCapture) errorf(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", c.origin().name, err)
}

// slotWait bounds the wait for open transactions while a slot is made; it is tried again afterwards.
const slotWait = 10 * time.Minute

func (c logicalCapture) begin(ctx context.Context, tables []replication.Table) (replication.Position, error) {
	o := c.origin()
	if err := c.p.identify(ctx, o, tables); err != nil {
		return "", err
	}
	if err := c.extend(ctx, tableNames(tables)); err != nil {
		return "", err
	}
	bounded, cancel := context.WithTimeout(ctx, slotWait)
	defer cancel()
	for {
		if err := logical.DropSlot(ctx, o.pool, c.slot()); err != nil {
			return "", c.errorf(err)
		}
		lsn, err := logical.CreateSlot(bounded, o.url, c.p.id, o.pool, c.slot(), c.p.waiting)
		if err != nil {
			return "", c.errorf(err)
		}
		err = logical.ProveSlot(bounded, o.pool, c.slot(), c.publication(), c.ended)
		if !errors.Is(err, logical.ErrUnreadable) {
			return logical.FormatPosition(lsn), c.errorf(err)
		}
		c.p.log.Warn("a replication slot is of no use and is made anew", "slot", c.slot(), "error", err)
	}
}

// ended waits until all transactions have ended that are open now.
func (c logicalCapture) ended(ctx context.Context) error {
	conn, err := c.origin().pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	_, err = snapshot.Horizon(ctx, conn.Conn(), c.p.waiting)
	return err
}

func (c logicalCapture) extend(ctx context.Context, tables []replication.TableName) error {
	return c.errorf(logical.EnsurePublication(ctx, c.origin().pool, c.publication(), tables))
}

func (c logicalCapture) lacks(ctx context.Context, tables []replication.Table) ([]replication.TableName, error) {
	published, err := logical.Published(ctx, c.origin().pool, c.publication())
	if err != nil {
		return nil, c.errorf(err)
	}
	var out []replication.TableName
	for _, t := range tables {
		// A primary key that was dropped leaves a table without an identity, of which the application can update and delete nothing while it is published.
		unidentified := t.ReplicaIdentity == replication.IdentityDefault && !t.HasPrimaryKey
		if unidentified || !slices.Contains(published, t.Name) {
			out = append(out, t.Name)
		}
	}
	return out, nil
}

func (c logicalCapture) check(ctx context.Context, stored replication.Position) error {
	lsn, err := logical.ParsePosition(stored)
	if err != nil {
		return err
	}
	return c.errorf(logical.CheckSlot(ctx, c.origin().pool, c.slot(), lsn))
}

func (c logicalCapture) source(_ context.Context, seams map[replication.TableName]replication.Seam) (replication.Source, error) {
	return logical.NewSource(logical.Options{URL: c.origin().url, ID: c.p.id, Slot: c.slot(), Publication: c.publication(), Seams: seams, Log: c.p.log}), nil
}

func (c logicalCapture) start(ctx context.Context) (replication.Position, error) {
	return c.beat(ctx, "start")
}

func (c logicalCapture) beat(ctx context.Context, token string) (replication.Position, error) {
	lsn, err := state.Beat(ctx, c.origin().pool, token)
	return logical.FormatPosition(lsn), c.errorf(err)
}

func (c logicalCapture) observe(ctx context.Context) (observation, error) {
	o := c.origin()
	var out observation
	if err := o.pool.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text, clock_timestamp()`).Scan(&out.position, &out.at); err != nil {
		return out, c.errorf(err)
	}
	slot, err := logical.ReadSlot(ctx, o.pool, c.slot())
	if err != nil {
		return out, c.errorf(err)
	}
	if slot != nil {
		out.retained = &slot.Retained
	}
	return out, nil
}

// standing is left to check, which looks at the slot.
func (c logicalCapture) standing(context.Context) error { return nil }

func (c logicalCapture) relieve(ctx context.Context, anew bool) (bool, error) {
	if !anew {
		return true, nil
	}
	return true, c.errorf(logical.DropSlot(ctx, c.origin().pool, c.slot()))
}

// retire has nothing to do: what isn't replicated is filtered, and no table keeps anything.
func (c logicalCapture) retire(context.Context, []replication.TableName) error { return nil }

// alignWait bounds how long the stream may stand still while both sides' snapshots are taken.
const alignWait = 20 * time.Second

// align uses a temporary slot's snapshot, whose place in the stream is known, and holds the stream there.
func (c logicalCapture) align(ctx context.Context, l *link, destination func(context.Context) error) (*exported, error) {
	o := c.origin()
	var e *exported
	holding, cancel := context.WithTimeout(ctx, alignWait)
	defer cancel()
	err := l.holdAt(holding, func(loop context.Context) (replication.Position, error) {
		bounded, cancel := context.WithTimeout(loop, alignWait)
		defer cancel()
		s, err := logical.ExportSnapshot(bounded, o.url, c.p.id, o.pool, c.p.id.ObjectName("verify"), c.p.waiting)
		if err != nil {
			return "", c.errorf(err)
		}
		e = &exported{side: o, name: s.Snapshot, end: s.Close}
		return logical.FormatPosition(s.LSN), nil
	}, destination)
	if err != nil {
		e.close(ctx)
		return nil, err
	}
	return e, nil
}

func (c logicalCapture) end(ctx context.Context) error {
	o := c.origin()
	if err := logical.DropSlot(ctx, o.pool, c.slot()); err != nil {
		return c.errorf(err)
	}
	return c.errorf(logical.DropPublication(ctx, o.pool, c.publication()))
}
