package pair

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// withoutGone forgets copies whose tables are gone from both sides or excluded by now, before or after their turn, and names those that are gone from
// the source alone. The others needn't wait for what an operator does about them: a long copy lives through many partitions.
func (p *Pair) withoutGone(ctx context.Context, copies []state.Copy, source map[replication.TableName]replication.Table) ([]state.Copy, error) {
	there, err := schema.UnmeasuredTables(ctx, p.target.pool, p.o.Filter)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	onTarget := map[replication.TableName]bool{}
	for _, t := range there {
		onTarget[t.Name] = true
	}
	var gone, forgotten, stay []replication.TableName
	for _, c := range copies {
		_, ok := source[c.Table]
		switch {
		case ok:
			stay = append(stay, c.Table)
		case onTarget[c.Table]:
			gone = append(gone, c.Table)
		default:
			forgotten = append(forgotten, c.Table)
		}
	}
	p.mu.Lock()
	p.status.gone = gone
	p.mu.Unlock()
	if len(gone) > 0 {
		p.log.Warn("tables were dropped or renamed on the source and are still on the target: the others go on", "tables", fmt.Sprint(gone))
	}
	if len(forgotten) == 0 {
		return copies, nil
	}
	p.log.Info("tables are gone from both sides, or excluded, and leave the replication", "tables", fmt.Sprint(forgotten))
	if !p.o.NoCopy {
		if err := p.capture(false).extend(ctx, stay); err != nil {
			return nil, err
		}
	}
	if err := p.stored.ForgetCopies(ctx, forgotten); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(copies, func(c state.Copy) bool { return slices.Contains(forgotten, c.Table) }), nil
}

// overtaken tells whether a statement of the stored plan failed because what it is made on is gone from both sides since the plan was stored.
func (p *Pair) overtaken(ctx context.Context, target *pgx.Conn, stage string, e schema.Entry, failed error) (bool, error) {
	if stage == stageValidate && postgres.Code(failed) == postgres.CodeUndefinedObject {
		var here bool
		if err := p.source.pool.QueryRow(ctx, namedConstraintSQL, e.Schema, e.Name).Scan(&here); err != nil {
			return false, fmt.Errorf("source: look for %s: %w", e, err)
		}
		return !here, nil
	}
	if stage == stagePre || postgres.Code(failed) != postgres.CodeUndefinedTable {
		return false, nil
	}
	for _, name := range schema.Relations(e) {
		var here, there bool
		if err := target.QueryRow(ctx, isThereSQL, name.Quoted()).Scan(&there); err != nil {
			return false, fmt.Errorf("target: look for %s: %w", name, err)
		}
		if err := p.source.pool.QueryRow(ctx, isThereSQL, name.Quoted()).Scan(&here); err != nil {
			return false, fmt.Errorf("source: look for %s: %w", name, err)
		}
		if !here && !there {
			return true, nil
		}
	}
	return false, nil
}

// namedConstraintSQL looks for a constraint by the name of pg_dump's entry, which is the table's and its own.
const namedConstraintSQL = `SELECT EXISTS (SELECT FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname || ' ' || k.conname = $2)`

const isThereSQL = `SELECT to_regclass($1) IS NOT NULL`
