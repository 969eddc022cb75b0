package pair

import (
	"context"
	"fmt"
	"slices"

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

func (c triggerCapture) begin(ctx context.Context, tables []replication.Table) (replication.Position, error) {
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
	all, err := schema.Tables(ctx, c.origin().pool, c.p.o.Filter)
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

// check converts the log of an earlier version, voids copies that are older than their log, and leaves the rest to the stream, which looks for lost
// commits, missing triggers and drift in every window.
func (c triggerCapture) check(ctx context.Context, stored replication.Position) error {
	if !c.reverse {
		if err := c.void(ctx, stored); err != nil {
			return err
		}
	}
	tables, err := schema.Tables(ctx, c.origin().pool, c.p.o.Filter)
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
	return trigger.NewSource(trigger.Options{URL: c.origin().url, ID: c.p.id, Tables: tables, Seams: seams, Log: c.p.log, Waiting: c.p.waiting, Drift: c.drift}), nil
}

// drift compares the origin's catalog, as a window sees it, with the destination's.
func (c triggerCapture) drift(ctx context.Context, q trigger.Querier) error {
	_, destination := c.p.ends(c.reverse)
	a, err := schema.ReadFingerprint(ctx, q, c.p.o.Filter)
	if err != nil {
		return c.errorf(err)
	}
	b, err := schema.ReadFingerprint(ctx, destination.pool, c.p.o.Filter)
	if err != nil {
		return fmt.Errorf("%s: %w", destination.name, err)
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
	o, err := trigger.Observe(ctx, c.origin().pool)
	if err != nil {
		return "", c.errorf(err)
	}
	_, err = state.Beat(ctx, c.origin().pool, token)
	return o.Position, c.errorf(err)
}

func (c triggerCapture) observe(ctx context.Context) (observation, error) {
	o, err := trigger.Observe(ctx, c.origin().pool)
	return observation{position: o.Position, at: o.At, retained: &o.Bytes, holder: o.Oldest, horizon: &o.OldestAge}, c.errorf(err)
}

func (c triggerCapture) relieve(ctx context.Context) error { return c.end(ctx) }

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
	return c.errorf(trigger.Uninstall(ctx, c.origin().pool, c.p.log))
}
