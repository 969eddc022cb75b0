package pair

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/snapshot"
	"replicator/replication/state"
)

// copyAndIndex copies what is pending and builds the keys and indexes of tables as they are done, then all others.
func (p *Pair) copyAndIndex(ctx context.Context, _ *state.Pair) error {
	early, err := p.early(ctx)
	if err != nil {
		return err
	}
	if err := p.copyPending(ctx, early); err != nil {
		return err
	}
	p.phase(Indexing)
	if err := p.apply(ctx, stageKeys, p.o.CopyWorkers); err != nil {
		return err
	}
	return p.apply(ctx, stageIndexes, p.o.CopyWorkers)
}

// early returns the building of keys and indexes that needn't wait for other tables, by table.
func (p *Pair) early(ctx context.Context) (map[replication.TableName]snapshot.Chain, error) {
	var parts [2][]schema.Entry
	from := map[string]string{} // stages by statement, which names its object
	for i, stage := range []string{stageKeys, stageIndexes} {
		all, err := p.stored.Statements(ctx, stage)
		if err != nil {
			return nil, err
		}
		for _, s := range all {
			parts[i] = append(parts[i], entry(s))
			if !s.Done {
				from[s.SQL] = stage
			}
		}
	}
	out := map[replication.TableName]snapshot.Chain{}
	for table, steps := range schema.Early(parts[0], parts[1]) {
		for _, step := range steps {
			var jobs []snapshot.Job
			for _, e := range step {
				if stage, ok := from[e.SQL]; ok {
					jobs = append(jobs, func(ctx context.Context, target *pgx.Conn) error { return p.buildEarly(ctx, target, stage, e) })
				}
			}
			out[table] = append(out[table], jobs)
		}
	}
	return out, nil
}

// buildEarly builds a key or an index. What the target refuses is left for when all is copied, which reports it: it must not keep other
// tables from being copied.
func (p *Pair) buildEarly(ctx context.Context, target *pgx.Conn, stage string, e schema.Entry) error {
	defer p.doing("")
	err := p.applyEntry(ctx, target, stage, e)
	if err == nil || ctx.Err() != nil || target.IsClosed() || postgres.Code(err) == "" {
		return err
	}
	p.log.Warn("left until all tables are copied", "what", e.String(), "error", err)
	return nil
}

// copyPending copies the tables that aren't copied yet, and does with each that is copied what then says.
func (p *Pair) copyPending(ctx context.Context, then map[replication.TableName]snapshot.Chain) error {
	if _, err := p.sameHistory(ctx); err != nil {
		return err
	}
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return err
	}
	// Measuring waits for whoever holds a table exclusively: it is left out where nothing is to be copied.
	list := schema.UnmeasuredTables
	if slices.ContainsFunc(copies, func(c state.Copy) bool { return c.State != state.Copied }) {
		list = schema.Tables
	}
	all, err := list(ctx, p.source.pool, p.o.Filter)
	if err != nil {
		return err
	}
	byName := map[replication.TableName]replication.Table{}
	for _, t := range all {
		byName[t.Name] = t
	}
	if copies, err = p.withoutGone(ctx, copies, byName); err != nil {
		return err
	}
	// Read before the copies' snapshots: what is rewritten in between is compared later in vain, and nothing is missed.
	storage, err := schema.ReadStorage(ctx, p.source.pool)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	var pending []replication.Table
	var jobs []snapshot.Chain
	var progress copyProgress
	progress.total = len(copies)
	for _, c := range copies {
		if c.State == state.Copied {
			progress.copied++
			progress.rows += c.Rows
			progress.bytes += c.Bytes
			if chain := then[c.Table]; chain != nil {
				jobs = append(jobs, chain)
			}
			continue
		}
		t, ok := byName[c.Table]
		if !ok {
			continue // named, and copied when it comes back
		}
		pending = append(pending, t)
		progress.expect += t.Bytes
		p.touch([]replication.Change{{Relation: &replication.Relation{Name: t.Name}}})
	}
	progress.began = time.Now()
	p.mu.Lock()
	p.status.copy = progress
	p.mu.Unlock()
	if len(pending) == 0 {
		return nil // what is left to be built comes next
	}
	p.phase(Copying)
	p.log.Info("copying", "tables", len(pending), "bytes", progress.expect)
	return snapshot.Copy(ctx, snapshot.Options{
		SourceURL: p.source.url, TargetURL: p.target.url, ID: p.id, Workers: p.o.CopyWorkers, Waiting: p.waiting,
		Started: func(ctx context.Context, t replication.Table, s replication.Seam) error {
			return p.stored.StartCopy(ctx, state.Copy{Table: t.Name, Snapshot: s.Snapshot.String(), LSN: pglogrepl.LSN(s.LSN).String(), Storage: storage[t.Name].String()})
		},
		Fence:   func(b *pgx.Batch) { state.QueueFence(b, p.id) },
		Then:    func(t replication.Table) snapshot.Chain { return then[t.Name] },
		Jobs:    jobs,
		Witness: state.WitnessSQL(p.id),
		Finished: func(b *pgx.Batch, t replication.Table, rows, bytes int64, witness string) {
			p.stored.FinishCopy(b, state.Copy{Table: t.Name, Rows: rows, Bytes: bytes, Witness: witness})
		},
		Refused: state.Fenced,
		Progress: func(t replication.Table, rows, bytes int64) {
			p.metrics.Copied(rows, bytes)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.status.copy.rows += rows
			p.status.copy.bytes += bytes
			p.status.copy.moved += bytes
			if bytes == 0 {
				p.status.copy.copied++
				p.log.Info("copied", "table", t.Name.String(), "rows", rows)
			}
		},
	}, pending)
}
