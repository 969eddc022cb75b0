package pair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
	"replicator/replication/logical"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// forward brings the pair from wherever its stored step says to a running stream from source to target, and stays in it.
func (p *Pair) forward(ctx context.Context) error {
	stored, err := p.stored.Load(ctx)
	if err != nil {
		return err
	}
	steps := []struct {
		at   state.Step
		next state.Step
		do   func(context.Context, *state.Pair) error
	}{
		{state.StepNew, state.StepDumped, p.dump},
		{state.StepDumped, state.StepTables, p.makeTables},
		{state.StepTables, state.StepCapture, p.startCapture},
		{state.StepCapture, state.StepIndexed, p.copyAndIndex},
	}
	if p.o.NoCopy && stored.Step == state.StepNew {
		if err := p.adopt(ctx); err != nil {
			return err
		}
		stored.Step, stored.Capture = state.StepComplete, "logical"
		if err := p.stored.Save(ctx, stored); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if stored.Step != s.at {
			continue
		}
		if err := s.do(ctx, &stored); err != nil {
			return err
		}
		stored.Step = s.next
		if err := p.stored.Save(ctx, stored); err != nil {
			return err
		}
		p.clearProblem()
	}
	switch stored.Step {
	case state.StepFinished:
		p.phase(Finished)
		<-ctx.Done()
		return ctx.Err()
	case state.StepIndexed, state.StepComplete:
	default:
		return fmt.Errorf("pair %q is at the unknown step %q: run the program version that wrote it", p.o.Name, stored.Step)
	}
	if err := p.capture(false).standing(ctx); err != nil {
		return err
	}
	if err := p.join(ctx); err != nil {
		return err
	}
	// Tables may have become pending again: a resync, or tables that have just joined.
	if err := p.recapture(ctx); err != nil {
		return err
	}
	// COPY fires triggers too.
	if err := p.enterReplica(ctx, p.target); err != nil {
		return err
	}
	if err := p.copyPending(ctx, nil); err != nil {
		return p.explainRefusal(ctx, err)
	}
	seams, err := p.seams(ctx)
	if err != nil {
		return err
	}
	return p.stream(ctx, false, seams, func(ctx context.Context, l *link) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return p.complete(ctx, l, stored) })
		g.Go(func() error { p.retire(ctx, l); return nil })
		return g.Wait()
	})
}

// retire removes what the capture has put on tables that aren't replicated any more. The stream doesn't depend on it.
func (p *Pair) retire(ctx context.Context, l *link) {
	copies, err := p.stored.Copies(ctx)
	if err == nil {
		keep := make([]replication.TableName, len(copies))
		for i, c := range copies {
			keep[i] = c.Table
		}
		err = l.capture.retire(ctx, keep)
	}
	if err != nil && ctx.Err() == nil {
		p.log.Warn("what was made on tables that aren't replicated any more is left for the next start of the stream", "error", err)
	}
}

// Stages of the stored plan.
const (
	stagePre      = "pre"
	stageKeys     = "keys"
	stageIndexes  = "indexes"
	stageForeign  = "foreign"
	stageValidate = "validate"
	stageLast     = "last"
)

// dump stores the source's schema on the target, so that a restart goes on with the same one.
func (p *Pair) dump(ctx context.Context, stored *state.Pair) error {
	p.phase(Starting)
	if err := p.choose(ctx, false); err != nil {
		return err
	}
	entries, err := schema.Dump(ctx, schema.DumpOptions{PgDump: p.o.PgDump, URL: p.source.url, ID: p.id})
	if err != nil {
		return err
	}
	plan := schema.NewPlan(entries)
	fp, err := schema.ReadFingerprint(ctx, p.source.pool, p.o.Filter)
	if err != nil {
		return err
	}
	stored.Step, stored.Capture, stored.Fingerprint = state.StepDumped, p.capture(false).name(), fp.Hash()
	if err := p.source.pool.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&stored.SourceSystem); err != nil {
		stored.SourceSystem = "" // not everybody may read it; the slot itself belongs to one server
	}
	stages := map[string][]state.Statement{}
	for stage, part := range map[string][]schema.Entry{
		stagePre: plan.Pre, stageKeys: plan.Keys, stageIndexes: plan.Indexes, stageForeign: plan.Foreign, stageValidate: plan.Validate, stageLast: plan.Last,
	} {
		for i, e := range part {
			stages[stage] = append(stages[stage], state.Statement{Seq: i, Section: e.Section, Type: e.Type, Schema: e.Schema, Name: e.Name, SQL: e.SQL})
		}
	}
	return p.stored.SaveStatements(ctx, stages, *stored)
}

func (p *Pair) makeTables(ctx context.Context, _ *state.Pair) error { return p.apply(ctx, stagePre, 1) }

// apply carries out a stage of the plan on the target, workers statements at once where their order allows it. The others go together: a large
// schema has thousands, and the target may be far.
func (p *Pair) apply(ctx context.Context, stage string, workers int) error {
	entries, err := p.undone(ctx, stage)
	if err != nil {
		return err
	}
	waves := schema.Waves(entries)
	for len(waves) > 0 {
		var serial []schema.Entry
		for len(waves) > 0 && len(waves[0]) == 1 {
			serial, waves = append(serial, waves[0][0]), waves[1:]
		}
		if err := p.applySerial(ctx, stage, serial); err != nil {
			return fmt.Errorf("target: %w", err)
		}
		if len(waves) == 0 {
			break
		}
		work := make(chan schema.Entry, len(waves[0]))
		for _, e := range waves[0] {
			work <- e
		}
		close(work)
		waves = waves[1:]
		g, ctx := errgroup.WithContext(ctx)
		for range min(workers, len(work)) {
			g.Go(func() error { return p.applyEach(ctx, stage, work) })
		}
		if err := g.Wait(); err != nil {
			return fmt.Errorf("target: %w", err)
		}
	}
	return nil
}

// undone lists what is left of a stage.
func (p *Pair) undone(ctx context.Context, stage string) ([]schema.Entry, error) {
	all, err := p.stored.Statements(ctx, stage)
	if err != nil {
		return nil, err
	}
	var entries []schema.Entry
	for _, s := range all {
		if !s.Done {
			entries = append(entries, entry(s))
		}
	}
	return entries, nil
}

func entry(s state.Statement) schema.Entry {
	return schema.Entry{Section: s.Section, Type: s.Type, Schema: s.Schema, Name: s.Name, SQL: s.SQL, Seq: s.Seq}
}

// together is how many statements of the schema are sent at once.
const together = 50

// applySerial carries out entries in their order over one session.
func (p *Pair) applySerial(ctx context.Context, stage string, entries []schema.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	conn, err := postgres.Connect(ctx, p.target.url, p.id, "schema")
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	note := func(e schema.Entry) string { return p.stored.StatementDone(stage, e.Seq) }
	for some := range slices.Chunk(entries, together) {
		if len(some) > 1 {
			p.doing(fmt.Sprintf("the target makes %s and %d more", some[0], len(some)-1))
			p.log.Debug("making", "what", some[0].String(), "and_more", len(some)-1)
			err := schema.ApplyTogether(ctx, conn, some, note)
			if err == nil {
				continue
			}
			if ctx.Err() != nil || conn.IsClosed() {
				return err
			}
			// The one that failed says why, unless it is there already.
			left, err := p.undone(ctx, stage)
			if err != nil {
				return err
			}
			some = slices.DeleteFunc(slices.Clone(some), func(e schema.Entry) bool {
				return !slices.ContainsFunc(left, func(l schema.Entry) bool { return l.Seq == e.Seq })
			})
		}
		for _, e := range some {
			if err := p.applyEntry(ctx, conn, stage, e); err != nil {
				return err
			}
		}
	}
	p.doing("")
	return nil
}

func (p *Pair) applyEach(ctx context.Context, stage string, work <-chan schema.Entry) error {
	conn, err := postgres.Connect(ctx, p.target.url, p.id, "schema")
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	for e := range work {
		if err := p.applyEntry(ctx, conn, stage, e); err != nil {
			return err
		}
	}
	p.doing("")
	return nil
}

func (p *Pair) applyEntry(ctx context.Context, conn *pgx.Conn, stage string, e schema.Entry) error {
	p.doing(fmt.Sprintf("the target makes %s", e))
	p.log.Debug("making", "what", e.String())
	note := p.stored.StatementDone(stage, e.Seq)
	err := schema.Apply(ctx, conn, e, note)
	if err == nil || conn.IsClosed() {
		return err
	}
	moot, lookErr := p.overtaken(ctx, conn, stage, e, err)
	if lookErr != nil {
		return errors.Join(err, lookErr)
	}
	if !moot {
		return err
	}
	p.log.Info("left out, since what it is made on is gone from both sides", "what", e.String())
	return postgres.Several(ctx, conn, note)
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// startCapture shuts the target's gate, publishes the tables and makes the slot, from which on no change is lost.
func (p *Pair) startCapture(ctx context.Context, _ *state.Pair) error {
	tables, err := schema.Tables(ctx, p.source.pool, p.o.Filter)
	if err != nil {
		return err
	}
	names := tableNames(tables)
	if err := p.gates(ctx, names); err != nil {
		return err
	}
	if err := p.begin(ctx, false, tables); err != nil {
		return err
	}
	return p.stored.AddCopies(ctx, names)
}

// adopt takes over a slot whose position the target's contents correspond to.
func (p *Pair) adopt(ctx context.Context) error {
	slot, err := logical.ReadSlot(ctx, p.source.pool, p.o.Adopt)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if slot == nil {
		return retry.Stop(&preflight.Hinted{Code: "slot-missing", Err: fmt.Errorf("replication slot %q, which is to be adopted, is not there", p.o.Adopt),
			Hint: "name the slot at whose position the target was loaded, or set copy: full"})
	}
	publication := logicalCapture{p, false}.publication()
	there, err := logical.PublicationExists(ctx, p.source.pool, publication)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if !there {
		return retry.Stop(&preflight.Hinted{Code: "publication-missing", Err: fmt.Errorf("publication %q is not there", publication),
			Hint: "a slot only streams what was published when it was made: create the publication, then the slot, then load the target at the slot's snapshot"})
	}
	tables, err := schema.Tables(ctx, p.source.pool, p.o.Filter)
	if err != nil {
		return err
	}
	names := tableNames(tables)
	if err := p.gates(ctx, names); err != nil {
		return err
	}
	if err := p.identify(ctx, p.source, tables); err != nil {
		return err
	}
	if err := p.stored.AddCopies(ctx, names); err != nil {
		return err
	}
	if err := p.stored.AdoptCopies(ctx); err != nil {
		return err
	}
	return state.StartPosition(ctx, p.target.pool, p.id, replication.Forward, logical.FormatPosition(slot.Confirmed))
}

// gates installs the target's gate and shuts it. The source's is left to Prepare: even open it costs every statement there a call.
func (p *Pair) gates(ctx context.Context, names []replication.TableName) error {
	if err := p.target.gate.Install(ctx, names); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	return p.shut(ctx, p.target)
}

// begin puts a direction's capture in place and, where it is the one that flows now, notes its start.
func (p *Pair) begin(ctx context.Context, reverse bool, tables []replication.Table) error {
	_, destination := p.ends(reverse)
	position, err := p.capture(reverse).begin(ctx, tables)
	if err != nil {
		return err
	}
	if reverse != p.isActive() {
		return nil // its start is noted when it is armed
	}
	return state.StartPosition(ctx, destination.pool, p.id, replication.Direction(reverse), position)
}

func (p *Pair) isActive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.active
}

func tableNames(tables []replication.Table) []replication.TableName {
	out := make([]replication.TableName, len(tables))
	for i, t := range tables {
		out[i] = t.Name
	}
	return out
}

// recapture makes sure, before tables are copied again, that they are still captured: what stopped the stream may have been that they aren't.
func (p *Pair) recapture(ctx context.Context) error {
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	gone := p.status.gone
	p.mu.Unlock()
	var names, pending []replication.TableName
	for _, c := range copies {
		if slices.Contains(gone, c.Table) {
			continue
		}
		names = append(names, c.Table)
		if c.State != state.Copied {
			pending = append(pending, c.Table)
		}
	}
	if len(pending) == 0 {
		return nil
	}
	if err := p.capture(false).extend(ctx, names); err != nil {
		return err
	}
	return p.sameColumns(ctx, pending)
}

// sameColumns stops, with the statements that mend it, where the target can't take the tables' rows as they are now.
func (p *Pair) sameColumns(ctx context.Context, tables []replication.TableName) error {
	a, b, err := p.fingerprints(ctx, false)
	if err != nil {
		return err
	}
	for _, d := range a.Diff(b) {
		if d.Blocks && d.Kind == schema.KindColumn && slices.Contains(tables, d.Table) {
			err := retry.Stop(&preflight.Hinted{Code: "schema-drift", Err: fmt.Errorf("table %s has drifted: %s", d.Table, d.Message), Hint: "on the target: " + d.Statement})
			return p.explainDrift(ctx, err, false)
		}
	}
	return nil
}

// seams reads where each table's copy and the stream meet.
func (p *Pair) seams(ctx context.Context) (map[replication.TableName]replication.Seam, error) {
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[replication.TableName]replication.Seam, len(copies))
	for _, c := range copies {
		if c.State != state.Copied {
			continue // gone from the source, see withoutGone
		}
		s, err := replication.ParseSnapshot(c.Snapshot)
		if err != nil {
			return nil, fmt.Errorf("seam of %s: %w", c.Table, err)
		}
		lsn, err := pglogrepl.ParseLSN(c.LSN)
		if err != nil {
			return nil, fmt.Errorf("seam of %s: %w", c.Table, err)
		}
		out[c.Table] = replication.Seam{Snapshot: s, LSN: uint64(lsn), Witness: c.Witness}
	}
	return out, nil
}

// complete waits beside the running stream until it has passed every seam (what has committed by now lies beyond them all), then adds
// what only holds from there on: foreign keys, triggers, rules, materialized views.
func (p *Pair) complete(ctx context.Context, l *link, stored state.Pair) error {
	now, err := l.capture.beat(ctx, "seams")
	if err != nil {
		return err
	}
	p.doing("the stream passes the copies' last seam")
	if err := l.await(ctx, now); err != nil {
		return err
	}
	p.doing("")
	if err := p.passed(ctx); err != nil {
		return err
	}
	if stored.Step != state.StepComplete {
		// Adding a foreign key locks two tables, and would meet the apply's own locks in the other order.
		if err := l.still(ctx, func(ctx context.Context) error { return p.apply(ctx, stageForeign, 1) }); err != nil {
			return err
		}
		if err := p.apply(ctx, stageValidate, 1); err != nil {
			return err
		}
		if err := p.applyLast(ctx, l); err != nil {
			return err
		}
		stored.Step = state.StepComplete
		if err := p.stored.Save(ctx, stored); err != nil {
			return err
		}
	}
	p.phase(Streaming)
	return p.watchTables(ctx)
}

// applyLast carries out the plan's last stage. What fires in replica role too is put aside before the stream goes on.
func (p *Pair) applyLast(ctx context.Context, l *link) error {
	entries, err := p.undone(ctx, stageLast)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(entries, func(e schema.Entry) bool {
		return strings.Contains(e.SQL, " ENABLE ALWAYS ") || strings.Contains(e.SQL, " ENABLE REPLICA ")
	}) {
		return p.apply(ctx, stageLast, 1)
	}
	return l.still(ctx, func(ctx context.Context) error {
		if err := p.apply(ctx, stageLast, 1); err != nil {
			return err
		}
		return p.enterReplica(ctx, p.target)
	})
}

// shut makes a side refuse the application's writes until it is opened.
func (p *Pair) shut(ctx context.Context, s *side) error {
	st, err := s.gate.State(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if st.Armed && st.Permanent {
		return nil
	}
	token := newToken()
	if err := p.remember(ctx, s, token); err != nil {
		return err
	}
	if err := s.gate.Arm(ctx, token, 0); err != nil {
		return fmt.Errorf("shut the %s's gate: %w", s.name, err)
	}
	return nil
}
