package pair

import (
	"context"
	"fmt"

	"replicator/replication"
	"replicator/replication/state"
	"replicator/replication/trigger"
)

// sameHistory makes sure, before anything is copied or streamed, that the source has lost no commit that the target has taken over. After a failover
// to a standby that lagged behind, or a crash that undid commits nobody had flushed, the source gives their transaction ids and places in the log
// again, and a copy's seam would count others as seen. Copies that have seen more than the source has are made pending again. void tells whether any
// is; a lost position is an error, since what was streamed can't be told apart.
func (p *Pair) sameHistory(ctx context.Context) (void bool, err error) {
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return false, err
	}
	if p.capture(false).name() == Trigger {
		position, ok, err := state.Position(ctx, p.target.pool, p.id, replication.Forward)
		if err != nil {
			return false, err
		}
		if ok {
			if err := trigger.SameHistory(ctx, p.source.pool, position); err != nil {
				return false, fmt.Errorf("source: %w", err)
			}
		}
	}
	var witnesses []string
	for _, c := range copies {
		if c.Witness != "" {
			witnesses = append(witnesses, c.Witness)
		}
	}
	if len(witnesses) == 0 {
		return false, nil
	}
	missing, err := state.Missing(ctx, p.source.pool, witnesses)
	if err != nil {
		return false, fmt.Errorf("source: %w", err)
	}
	var tables []replication.TableName
	for _, c := range copies {
		if missing[c.Witness] {
			tables = append(tables, c.Table)
		}
	}
	if len(tables) == 0 {
		return false, nil
	}
	p.log.Warn("the source has lost commits that tables' copies have seen: it failed over to a standby that lagged behind, or was restored; they are copied again", "tables", fmt.Sprint(tables))
	_, err = p.stored.ResetCopies(ctx, tables)
	return true, err
}

// passed forgets what sameHistory needs for copies whose seams the stream has passed.
func (p *Pair) passed(ctx context.Context) error {
	if err := p.stored.Witnessed(ctx); err != nil {
		return err
	}
	if err := state.ForgetWitnesses(ctx, p.source.pool, p.id); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	return nil
}
