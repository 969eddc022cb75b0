package pair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// changed is how the source's tables differ from those that are replicated.
type changed struct {
	// joinable were made on both sides since, lacking only on the source.
	joinable []replication.Table
	lacking  lacking
	// gone were dropped on the source, or renamed; the target still has them. forgotten are gone from both sides, or excluded now.
	gone, forgotten []replication.TableName
	// remade are no longer the tables that were captured: they were dropped and made anew under their names, or what the capture keeps of them
	// was altered.
	remade []replication.Table
	// uncopied came back to the source after their turn.
	uncopied []replication.TableName
	// rewritten are tables whose rows may have been computed anew by ALTER TABLE since they were copied, which no capture carries.
	rewritten []replication.TableName
	// stored says where the rows of the copied tables are stored now, moved those of which only that has changed.
	stored map[replication.TableName]string
	moved  map[replication.TableName]string
	// stay are those that are replicated and go on being so.
	stay []replication.TableName
}

// lacking are tables that the target lacks, and how to make them: by statements, partitions that is, or from a dump of tables.
type lacking struct {
	tables     []replication.TableName
	statements []string
	dump       []replication.TableName
}

// changes compares the source's tables with those that are replicated.
func (p *Pair) changes(ctx context.Context) (c changed, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return c, err
	}
	here, err := schema.UnmeasuredTables(ctx, p.source.pool, p.o.Filter)
	if err != nil {
		return c, fmt.Errorf("source: %w", err)
	}
	there, err := schema.UnmeasuredTables(ctx, p.target.pool, p.o.Filter)
	if err != nil {
		return c, fmt.Errorf("target: %w", err)
	}
	onSource, onTarget, known := map[replication.TableName]bool{}, map[replication.TableName]bool{}, map[replication.TableName]state.CopyState{}
	for _, t := range here {
		onSource[t.Name] = true
	}
	for _, t := range there {
		onTarget[t.Name] = true
	}
	for _, x := range copies {
		known[x.Table] = x.State
		switch {
		case onSource[x.Table]:
		case onTarget[x.Table]:
			c.gone = append(c.gone, x.Table)
		default:
			c.forgotten = append(c.forgotten, x.Table)
		}
	}
	var copied []replication.Table
	for _, t := range here {
		at, replicated := known[t.Name]
		switch {
		case replicated:
			c.stay = append(c.stay, t.Name)
			if at == state.Copied {
				copied = append(copied, t)
			} else {
				c.uncopied = append(c.uncopied, t.Name)
			}
		case onTarget[t.Name]:
			c.joinable = append(c.joinable, t)
		default:
			c.lacking.tables = append(c.lacking.tables, t.Name)
		}
	}
	if len(c.lacking.tables) > 0 {
		a, b, err := p.fingerprints(ctx, false)
		if err != nil {
			return c, err
		}
		c.lacking.statements, c.lacking.dump = a.Lacking(b, c.lacking.tables)
	}
	if err := p.storage(ctx, copies, &c); err != nil {
		return c, err
	}
	if p.o.NoCopy {
		return c, nil // what was adopted with a slot isn't ours to copy
	}
	lacks, err := p.capture(false).lacks(ctx, copied)
	c.remade = slices.DeleteFunc(copied, func(t replication.Table) bool { return !slices.Contains(lacks, t.Name) })
	c.rewritten = slices.DeleteFunc(c.rewritten, func(t replication.TableName) bool { return slices.Contains(lacks, t) })
	return c, err
}

// join takes tables into the replication that were made on both sides since it began, captured first, so that the copy's seam is
// exact, then copied like all others; and lets go of those that are gone from both.
func (p *Pair) join(ctx context.Context) error {
	c, err := p.changes(ctx)
	if err != nil {
		return err
	}
	p.showTables(c)
	if len(c.forgotten) > 0 {
		p.log.Info("tables are gone from both sides and leave the replication", "tables", fmt.Sprint(c.forgotten))
		if err := p.stored.ForgetCopies(ctx, c.forgotten); err != nil {
			return err
		}
	}
	fresh := slices.Concat(c.joinable, c.remade)
	if len(fresh) == 0 {
		return nil
	}
	if err := p.gates(ctx, tableNames(fresh)); err != nil {
		return err
	}
	// Triggers log what they need by themselves.
	if p.capture(false).name() == Logical {
		if err := p.identify(ctx, p.source, fresh); err != nil {
			return err
		}
	}
	if len(c.remade) > 0 {
		names := tableNames(c.remade)
		p.log.Warn("tables were made anew or altered on the source and are copied again", "tables", fmt.Sprint(names))
		if _, err := p.stored.ResetCopies(ctx, names); err != nil {
			return err
		}
	}
	names := tableNames(c.joinable)
	all := slices.Concat(c.stay, names)
	slices.SortFunc(all, replication.TableName.Compare)
	if err := p.capture(false).extend(ctx, all); err != nil {
		return err
	}
	if len(names) == 0 {
		return nil
	}
	p.log.Info("tables join the replication", "tables", fmt.Sprint(names))
	return p.stored.AddCopies(ctx, names)
}

// showTables shows what an operator has to do about tables.
func (p *Pair) showTables(c changed) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status.lacking, p.status.gone, p.status.rewritten = c.lacking, c.gone, c.rewritten
}

// errJoin ends a stream so that tables can join.
var errJoin = errors.New("tables were made or dropped; the stream starts again with those that there are")

// watchTables looks for tables that were made or dropped on the source since the replication began. Where the target agrees, they join or leave;
// the others are named as a problem, and keep a cutover from starting.
func (p *Pair) watchTables(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		began := time.Now()
		if err := p.tend(ctx); err != nil && !postgres.IsTransient(err) {
			return err
		}
		c, err := p.changes(ctx)
		took := time.Since(began)
		if err == nil {
			p.showTables(c)
			if len(c.joinable)+len(c.remade)+len(c.forgotten)+len(c.uncopied) > 0 {
				return errJoin
			}
			settled, err := p.recheck(ctx, c)
			if err != nil {
				return err
			}
			if !settled {
				took = time.Since(began) // the comparison comes again
			}
		}
		// What can't be looked at now is looked at next time; a server that is gone ends the stream itself. With many thousands of tables a
		// look takes long, and must not be most of what the source is busy with.
		timer.Reset(max(p.o.WatchEvery, 20*took))
	}
}

// tend puts aside what was made on the target to act there too, and looks whether foreign keys that the source lacks have come back.
func (p *Pair) tend(ctx context.Context) error {
	if err := p.enterReplica(ctx, p.target); err != nil {
		return err
	}
	p.mu.Lock()
	frozen := p.freeze != nil
	p.mu.Unlock()
	if frozen {
		return nil // they are being put back
	}
	return p.checkForeignKeys(ctx, p.source)
}

// lackingProblem names tables that only the source has.
func (p *Pair) lackingProblem(l lacking) preflight.Finding {
	var names, ways []string
	for _, t := range l.tables {
		names = append(names, t.String())
	}
	if len(l.statements) > 0 {
		ways = append(ways, strings.Join(l.statements, "; "))
	}
	if len(l.dump) > 0 {
		dump := "pg_dump --schema-only"
		for _, t := range l.dump {
			dump += " --table='" + strings.ReplaceAll(t.Quoted(), "'", `'\''`) + "'"
		}
		ways = append(ways, dump+" SOURCE | psql TARGET")
	}
	return p.finding("table-missing", preflight.Error, "target", "not replicated, since the target lacks them: "+strings.Join(names, ", "),
		"make them on the target: "+strings.Join(ways, "; and ")+"; they then join by themselves. Or exclude them")
}

// goneProblem names tables that were dropped on the source alone.
func (p *Pair) goneProblem(tables []replication.TableName) preflight.Finding {
	var names, drops []string
	for _, t := range tables {
		names = append(names, t.String())
		drops = append(drops, "DROP TABLE "+t.Quoted())
	}
	return p.finding("table-dropped", preflight.Error, "target", "dropped or renamed on the source, and still on the target: "+strings.Join(names, ", "),
		"if dropped, on the target: "+strings.Join(drops, "; ")+"; if renamed, rename it there too: it is then copied again")
}

// explainDrift puts the exact statements for the destination into the error of a table that has drifted, or that refuses a row for it.
func (p *Pair) explainDrift(ctx context.Context, err error, reverse bool) error {
	var h *preflight.Hinted
	if !errors.As(err, &h) || (h.Code != "schema-drift" && h.Code != "constraint") {
		return err
	}
	a, b, unread := p.fingerprints(ctx, reverse)
	if unread != nil {
		return err
	}
	_, destination := p.ends(reverse)
	var statements []string
	for _, d := range a.Diff(b) {
		if d.Statement != "" && d.Blocks {
			statements = append(statements, d.Statement)
		}
	}
	if len(statements) == 0 {
		return err
	}
	return &preflight.Hinted{Code: h.Code, Err: err, Hint: "nothing is lost and the pair waits; run on the " + destination.name + ": " + strings.Join(statements, "; ")}
}

// explainRefusal does the same for a copy that a constraint of the target refuses, such as one that was dropped on the source.
func (p *Pair) explainRefusal(ctx context.Context, err error) error {
	if !strings.HasPrefix(postgres.Code(err), "23") { // integrity constraint violation
		return err
	}
	return p.explainDrift(ctx, &preflight.Hinted{Code: "constraint", Err: err, Hint: "nothing is lost and the pair waits: remove the constraint or the row on the target"}, false)
}

// fingerprints reads the catalogs of a direction's ends.
func (p *Pair) fingerprints(ctx context.Context, reverse bool) (origin, destination schema.Fingerprint, err error) {
	o, d := p.ends(reverse)
	if origin, err = schema.ReadFingerprint(ctx, o.pool, p.o.Filter); err != nil {
		return origin, destination, fmt.Errorf("%s: %w", o.name, err)
	}
	if destination, err = schema.ReadFingerprint(ctx, d.pool, p.o.Filter); err != nil {
		return origin, destination, fmt.Errorf("%s: %w", d.name, err)
	}
	return origin, destination, nil
}
