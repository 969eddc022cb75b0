package pair

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

// triggerCapture reads a change log that triggers write.
type triggerCapture struct {
	p       *Pair
	reverse bool
}

func (c triggerCapture) name() string { return Trigger }

func (c triggerCapture) origin() *side {
	origin, _ := c.p.ends(c.reverse)
	return origin
}

func (c triggerCapture) errorf(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", c.origin().name, err)
}

// owner is whose the change log is.
func (c triggerCapture) owner() string { return c.p.id.Migration + "/" + c.p.id.Pair }

func (c triggerCapture) begin(ctx context.Context, tables []replication.Table) (replication.Position, error) {
	if err := trigger.Own(ctx, c.origin().pool, c.owner()); err != nil {
		return "", c.errorf(err)
	}
	if err := trigger.Renew(ctx, c.origin().pool); err != nil {
		return "", c.errorf(err)
	}
	if _, err := trigger.Install(ctx, c.origin().pool, c.p.log, tables); err != nil {
		return "", c.errorf(err)
	}
	return c.start(ctx)
}

func (c triggerCapture) start(ctx context.Context) (replication.Position, error) {
	position, err := trigger.Begin(ctx, c.origin().pool, c.p.id)
	return position, c.errorf(err)
}

func (c triggerCapture) extend(ctx context.Context, tables []replication.TableName) error {
	all, err := schema.UnmeasuredTables(ctx, c.origin().pool, c.p.o.Filter)
	if err != nil {
		return c.errorf(err)
	}
	all = slices.DeleteFunc(all, func(t replication.Table) bool { return !slices.Contains(tables, t.Name) })
	_, err = trigger.Install(ctx, c.origin().pool, c.p.log, all) // check looks for copies that are void now
	return c.errorf(err)
}

// void makes copies pending that are older than their tables' logs, where the stream is too: what came between is nowhere. (A rollback has logs made
// anew, and streams from a place after them, at which both sides were equal.) It looks at what stands on the origin, since the process that made a log
// may have died before it could tell.
func (c triggerCapture) void(ctx context.Context, position replication.Position) error {
	copies, err := c.p.stored.Copies(ctx)
	if err != nil {
		return err
	}
	var tables, void []replication.TableName
	copies = slices.DeleteFunc(copies, func(x state.Copy) bool { return x.State != state.Copied })
	for _, x := range copies {
		tables = append(tables, x.Table)
	}
	made, err := trigger.Made(ctx, c.origin().pool, tables)
	if err != nil {
		return c.errorf(err)
	}
	for _, x := range copies {
		seam, err := replication.ParseSnapshot(x.Snapshot)
		if err != nil {
			return fmt.Errorf("seam of %s: %w", x.Table, err)
		}
		streamed, err := trigger.Sees(position, made[x.Table])
		if err != nil {
			return err
		}
		if !streamed && !seam.Sees(made[x.Table]) {
			void = append(void, x.Table)
		}
	}
	if len(void) == 0 {
		return nil
	}
	c.p.log.Warn("the change log of tables was made after their copies, which are void: they are copied again", "tables", fmt.Sprint(void))
	if _, err := c.p.stored.ResetCopies(ctx, void); err != nil {
		return err
	}
	return errJoin
}

func (c triggerCapture) lacks(ctx context.Context, tables []replication.Table) ([]replication.TableName, error) {
	out, err := trigger.Uncaptured(ctx, c.origin().pool, tables)
	return out, c.errorf(err)
}

// check makes sure that the log is this pair's, converts the log of an earlier version, voids copies that are older than their log, and leaves the rest to the stream, which looks for lost
// commits, missing triggers and drift in every window.
func (c triggerCapture) check(ctx context.Context, stored replication.Position) error {
	if err := trigger.Own(ctx, c.origin().pool, c.owner()); err != nil {
		return c.errorf(err)
	}
	if !c.reverse {
		if err := c.void(ctx, stored); err != nil {
			return err
		}
	}
	tables, err := schema.UnmeasuredTables(ctx, c.origin().pool, c.p.o.Filter)
	if err != nil {
		return c.errorf(err)
	}
	return c.errorf(trigger.Convert(ctx, c.origin().pool, c.p.log, tables))
}

func (c triggerCapture) source(ctx context.Context, seams map[replication.TableName]replication.Seam) (replication.Source, error) {
	copies, err := c.p.stored.Copies(ctx)
	if err != nil {
		return nil, err
	}
	// A table that was dropped has nothing more to say.
	c.p.mu.Lock()
	gone := c.p.status.gone
	c.p.mu.Unlock()
	var tables []replication.TableName
	for _, t := range copies {
		if c.reverse || !slices.Contains(gone, t.Table) {
			tables = append(tables, t.Table)
		}
	}
	if c.reverse {
		if tables, err = c.present(ctx, tables); err != nil {
			return nil, err
		}
	}
	return trigger.NewSource(trigger.Options{URL: c.origin().url, ID: c.p.id, Tables: tables, Seams: seams, Log: c.p.log, Waiting: c.p.waiting, Drift: c.drift}), nil
}

// present takes the tables' names as they are on the origin now. Forth, tables that are renamed leave the replication and join it anew; back, nothing
// can be copied, and a table that the application's migrations have renamed on both sides goes on under its log, which knows it by its OID.
func (c triggerCapture) present(ctx context.Context, tables []replication.TableName) ([]replication.TableName, error) {
	names, err := schema.Names(ctx, c.origin().pool, c.p.o.Filter)
	if err != nil {
		return nil, c.errorf(err)
	}
	logged, err := trigger.Made(ctx, c.origin().pool, names)
	if err != nil {
		return nil, c.errorf(err)
	}
	out := slices.DeleteFunc(names, func(t replication.TableName) bool {
		_, ok := logged[t]
		return !ok && !slices.Contains(tables, t)
	})
	if gone := slices.DeleteFunc(slices.Clone(tables), func(t replication.TableName) bool { return slices.Contains(out, t) }); len(gone) > 0 {
		c.p.log.Warn("tables are gone from the side that is written to, and no longer followed", "side", c.origin().name, "tables", fmt.Sprint(gone))
	}
	return out, nil
}

// drift compares the origin's catalog, as a window sees it, with the destination's.
func (c triggerCapture) drift(ctx context.Context, q trigger.Querier) error {
	_, destination := c.p.ends(c.reverse)
	var a, b schema.Fingerprint
	both, bctx := errgroup.WithContext(ctx) // the window waits for the slower one
	both.Go(func() (err error) {
		if b, err = schema.ReadFingerprint(bctx, destination.pool, c.p.o.Filter); err != nil {
			err = fmt.Errorf("%s: %w", destination.name, err)
		}
		return err
	})
	a, err := schema.ReadFingerprint(ctx, q, c.p.o.Filter) // ctx: cut off, the window's session would be lost
	if e := both.Wait(); err == nil && e != nil {
		return e
	}
	if err != nil {
		return c.errorf(err)
	}
	c.p.mu.Lock()
	gone := c.p.status.gone
	c.p.mu.Unlock()
	for _, d := range a.Diff(b) {
		if !c.reverse && slices.Contains(gone, d.Table) {
			continue // it was dropped or renamed, which is named, and the others go on
		}
		if d.Blocks && d.Kind == schema.KindColumn {
			return retry.Stop(&preflight.Hinted{Code: "schema-drift", Err: fmt.Errorf("table %s has drifted: %s", d.Table, d.Message),
				Hint: "nothing is lost and the pair waits; on the " + destination.name + ": " + d.Statement})
		}
	}
	return nil
}

func (c triggerCapture) beat(ctx context.Context, token string) (replication.Position, error) {
	// Looked at before the beat, so that the window which carries the beat is certain to reach it.
	here, err := trigger.Here(ctx, c.origin().pool)
	if err != nil {
		return "", c.errorf(err)
	}
	_, err = state.Beat(ctx, c.origin().pool, token)
	return here, c.errorf(err)
}

func (c triggerCapture) observe(ctx context.Context) (observation, error) {
	o, err := trigger.Observe(ctx, c.origin().pool)
	out := observation{position: o.Position, at: o.At, retained: &o.Bytes, horizon: new(time.Duration)}
	if o.Oldest != nil {
		*out.horizon = o.Oldest.Age
		out.holder = o.Oldest
	}
	return out, c.errorf(err)
}

func (c triggerCapture) standing(ctx context.Context) error {
	return c.errorf(trigger.Standing(ctx, c.origin().pool))
}

func (c triggerCapture) relieve(ctx context.Context, anew bool) (bool, error) {
	relieve := trigger.Free
	if anew {
		relieve = trigger.Relieve
	}
	left, err := relieve(ctx, c.origin().pool)
	return left == 0, c.errorf(err)
}

func (c triggerCapture) retire(ctx context.Context, keep []replication.TableName) error {
	return c.errorf(trigger.Retire(ctx, c.origin().pool, c.p.log, keep))
}

// align ends a window now: its snapshot is the origin at a place that the stream stands at until it is let go.
func (c triggerCapture) align(ctx context.Context, l *link, destination func(context.Context) error) (*exported, error) {
	ctx, cancel := context.WithTimeout(ctx, alignWait)
	defer cancel()
	source, ok := l.source.(*trigger.Source)
	if !ok {
		return nil, errLinkDown
	}
	b, err := source.Boundary(ctx)
	if err != nil {
		return nil, c.errorf(err)
	}
	if err = l.await(ctx, b.Position); err == nil {
		err = destination(ctx)
	}
	b.Release()
	if err != nil {
		b.Close(ctx)
		return nil, err
	}
	return &exported{side: c.origin(), name: b.Snapshot, end: b.Close}, nil
}

func (c triggerCapture) end(ctx context.Context) error {
	if err := trigger.Owned(ctx, c.origin().pool, c.owner()); err != nil {
		return c.errorf(err)
	}
	return c.errorf(trigger.Uninstall(ctx, c.origin().pool, c.p.log))
}
