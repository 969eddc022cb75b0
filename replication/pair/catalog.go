package pair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// watchEvery is how often the source's catalog is looked at for tables that were made meanwhile.
const watchEvery = 10 * time.Second

// unknown lists the source's tables that aren't replicated yet: those that the target has too, and those that it lacks.
func (p *Pair) unknown(ctx context.Context) (joinable []replication.Table, lacking []replication.TableName, err error) {
	// Measuring a table waits for whoever holds it exclusively.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return nil, nil, err
	}
	here, err := schema.Tables(ctx, p.source.pool, p.o.Filter)
	if err != nil {
		return nil, nil, fmt.Errorf("source: %w", err)
	}
	there, err := schema.Tables(ctx, p.target.pool, p.o.Filter)
	if err != nil {
		return nil, nil, fmt.Errorf("target: %w", err)
	}
	for _, t := range here {
		if slices.ContainsFunc(copies, func(c state.Copy) bool { return c.Table == t.Name }) {
			continue
		}
		if slices.ContainsFunc(there, func(x replication.Table) bool { return x.Name == t.Name }) {
			joinable = append(joinable, t)
		} else {
			lacking = append(lacking, t.Name)
		}
	}
	return joinable, lacking, nil
}

// join takes tables into the replication that were made on both sides since it began: published first, so that the copy's seam is
// exact, then copied like all others.
func (p *Pair) join(ctx context.Context) error {
	joinable, _, err := p.unknown(ctx)
	if err != nil || len(joinable) == 0 {
		return err
	}
	names := tableNames(joinable)
	p.log.Info("tables join the replication", "tables", fmt.Sprint(names))
	if err := p.gates(ctx, names); err != nil {
		return err
	}
	if err := p.identify(ctx, p.source, joinable); err != nil {
		return err
	}
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return err
	}
	here, err := schema.Tables(ctx, p.source.pool, p.o.Filter)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	var published []replication.TableName
	for _, t := range here {
		if slices.Contains(names, t.Name) || slices.ContainsFunc(copies, func(c state.Copy) bool { return c.Table == t.Name }) {
			published = append(published, t.Name)
		}
	}
	if err := p.capture(false).extend(ctx, published); err != nil {
		return err
	}
	return p.stored.AddCopies(ctx, names)
}

// errJoin ends a stream so that tables can join.
var errJoin = errors.New("tables were made on both sides; the stream starts again with them")

// watchTables looks for tables that were made on the source since the replication began. Those that the target has too join; the others
// are named as a problem, and keep a cutover from starting.
func (p *Pair) watchTables(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		joinable, lacking, err := p.unknown(ctx)
		if err == nil {
			p.mu.Lock()
			p.status.lacking = lacking
			p.mu.Unlock()
			if len(joinable) > 0 {
				return errJoin
			}
		}
		// What can't be looked at now is looked at next time; a server that is gone ends the stream itself.
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lackingProblem names tables that only the source has.
func (p *Pair) lackingProblem(tables []replication.TableName) preflight.Finding {
	var names, options []string
	for _, t := range tables {
		names = append(names, t.String())
		options = append(options, "--table='"+strings.ReplaceAll(t.Quoted(), "'", `'\''`)+"'")
	}
	return p.finding("table-missing", preflight.Error, "target", "not replicated, since the target lacks them: "+strings.Join(names, ", "),
		"make them on the target: pg_dump --schema-only "+strings.Join(options, " ")+" SOURCE | psql TARGET; they then join by themselves. Or exclude them")
}

// explainDrift puts the exact statements for the destination into the error of a table that has drifted.
func (p *Pair) explainDrift(ctx context.Context, err error, reverse bool) error {
	var h *preflight.Hinted
	if !errors.As(err, &h) || h.Code != "schema-drift" {
		return err
	}
	origin, destination := p.ends(reverse)
	a, errA := schema.ReadFingerprint(ctx, origin.pool, p.o.Filter)
	b, errB := schema.ReadFingerprint(ctx, destination.pool, p.o.Filter)
	if errA != nil || errB != nil {
		return err
	}
	var statements []string
	for _, d := range a.Diff(b) {
		if d.Statement != "" && d.Blocks {
			statements = append(statements, d.Statement)
		}
	}
	if len(statements) == 0 {
		return err
	}
	return &preflight.Hinted{Code: h.Code, Err: err, Hint: "nothing is lost and the pair waits; run on the " + destination.name + ": " + strings.Join(statements, " ")}
}
