package pair

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// storage finds the copied tables that may have been rewritten since, and those whose rows have only moved.
func (p *Pair) storage(ctx context.Context, copies []state.Copy, c *changed) error {
	stored, err := schema.ReadStorage(ctx, p.source.pool)
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	c.stored, c.moved = map[replication.TableName]string{}, map[replication.TableName]string{}
	for _, x := range copies {
		now, ok := stored[x.Table]
		if x.State != state.Copied || !ok {
			continue
		}
		c.stored[x.Table] = now.String()
		if x.Storage == "" { // adopted, or copied by an earlier version
			c.moved[x.Table] = now.String()
			continue
		}
		was, err := schema.ParseStorage(x.Storage)
		if err != nil {
			return err
		}
		switch {
		case was.Rewritten(now):
			c.rewritten = append(c.rewritten, x.Table)
		default:
			if now := now.Since(was); was != now {
				c.moved[x.Table] = now.String()
			}
		}
	}
	return nil
}

// recheck compares the tables that may have been rewritten, beside the running stream. Those that differ are made pending, and errJoin is returned so
// that they are copied again; what the target was loaded with by other means is left to the operator. settled: no comparison is left for the next
// look.
func (p *Pair) recheck(ctx context.Context, c changed) (settled bool, err error) {
	settled = true
	equal, differ := c.moved, []replication.TableName(nil)
	if len(c.rewritten) > 0 {
		p.log.Warn("tables were altered and rewritten on the source, which no capture carries: they are compared", "tables", fmt.Sprint(c.rewritten))
		report, err := p.VerifyNow(ctx, c.rewritten)
		if err != nil {
			p.log.Warn("tables that were rewritten can't be compared yet", "error", err)
			settled = false
		}
		for _, t := range report.Tables {
			switch {
			case err != nil:
			case t.Equal:
				equal[t.Table] = c.stored[t.Table]
			default:
				differ = append(differ, t.Table)
			}
		}
	}
	if len(equal) > 0 {
		if err := p.stored.SaveStorage(ctx, equal); err != nil {
			return false, err
		}
		p.mu.Lock()
		p.status.rewritten = slices.DeleteFunc(slices.Clone(p.status.rewritten), func(t replication.TableName) bool { return equal[t] != "" })
		p.mu.Unlock()
	}
	if len(differ) == 0 || p.o.NoCopy {
		return settled && len(differ) == 0, nil
	}
	p.log.Warn("tables that were rewritten on the source differ and are copied again", "tables", fmt.Sprint(differ))
	if _, err := p.stored.ResetCopies(ctx, differ); err != nil {
		return false, err
	}
	return false, errJoin
}

// rewrittenProblem names tables that may have been rewritten, until they are compared.
func (p *Pair) rewrittenProblem(tables []replication.TableName) preflight.Finding {
	var names, options []string
	for _, t := range tables {
		names = append(names, t.String())
		options = append(options, "--table "+t.String())
	}
	hint := "they are being compared, and copied again if they differ; to copy them at once: replicator resync --pair " + p.o.Name + " " + strings.Join(options, " ")
	if p.o.NoCopy {
		hint = "they are being compared; if this stays, they differ: replicator verify --repair --pair " + p.o.Name + " " + strings.Join(options, " ")
	}
	return p.finding("table-rewritten", preflight.Error, "source", "altered and rewritten on the source since they were copied, which no capture carries: "+strings.Join(names, ", "), hint)
}

// knownStorage is where both sides stored a table's rows when they were found equal.
type knownStorage struct{ origin, destination schema.Storage }

// storages reads where both sides of a direction store their tables' rows.
func (p *Pair) storages(ctx context.Context, reverse bool) (map[replication.TableName]knownStorage, error) {
	origin, destination := p.ends(reverse)
	a, err := schema.ReadStorage(ctx, origin.pool)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", origin.name, err)
	}
	b, err := schema.ReadStorage(ctx, destination.pool)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", destination.name, err)
	}
	out := make(map[replication.TableName]knownStorage, len(a))
	for t, s := range a {
		out[t] = knownStorage{s, b[t]}
	}
	return out, nil
}

// knownEqual lists the tables that need no comparison: found equal, by VerifyNow, and since then neither touched by the stream nor rewritten on
// either side.
func (p *Pair) knownEqual(ctx context.Context, reverse bool) (map[replication.TableName]bool, error) {
	now, err := p.storages(ctx, reverse)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[replication.TableName]bool{}
	for t, was := range p.verified {
		if reverse {
			was.origin, was.destination = was.destination, was.origin
		}
		// A column more or less is looked at too: a log of all columns (trigger capture without a key) knows nothing of one that was added.
		if is, ok := now[t]; ok && was.origin.Names == is.origin.Names && !was.origin.Rewritten(is.origin) && !was.destination.Rewritten(is.destination) {
			out[t] = true
		}
	}
	return out, nil
}
