package pair

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication/state"
)

// leaveReplica puts back what enterReplica put aside, exactly as it was but for the foreign keys' validation, which validate does later: they
// hold for every write from now on, and the rows were compared. What the application's own migrations have dropped meanwhile stays away, and the
// log says so; what was renamed is found. A foreign key that can't be put back is named in Status: without it the side works.
func (p *Pair) leaveReplica(ctx context.Context, s *side) error {
	if err := p.enable(ctx, s); err != nil {
		return err
	}
	return p.restoreForeignKeys(ctx, s)
}

// actorNowSQL finds a trigger ($1) or a rule ($2) by its OID. One without a known OID is found by name, and so is one that was made anew and is
// disabled: by whoever restored the database from a dump.
const actorNowSQL = `
SELECT n.nspname, c.relname, x.name, x.enabled, c.oid, x.oid
FROM (SELECT t.oid, t.tgrelid AS relid, t.tgname::text AS name, t.tgenabled::text AS enabled FROM pg_trigger t
      WHERE t.oid = $3::oid AND $1 <> '' OR t.tgrelid = to_regclass($4) AND t.tgname = $1::text AND ($3::oid = 0 OR t.tgenabled = 'D')
      UNION ALL
      SELECT w.oid, w.ev_class, w.rulename::text, w.ev_enabled::text FROM pg_rewrite w
      WHERE w.oid = $3::oid AND $2 <> '' OR w.ev_class = to_regclass($4) AND w.rulename = $2::text AND ($3::oid = 0 OR w.ev_enabled = 'D')) x
JOIN pg_class c ON c.oid = x.relid JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY x.oid = $3::oid DESC LIMIT 1`

// actorNow is what a note's object is now.
type actorNow struct {
	actorNote
	undo  state.Undo
	was   string // the state that was noted
	table uint32
	gone  bool
}

// actors looks at what the notes of a side name, in one round trip.
func (p *Pair) actors(ctx context.Context, s *side) ([]*actorNow, error) {
	undos, err := p.stored.Undos(ctx, s.name)
	if err != nil {
		return nil, err
	}
	var out []*actorNow
	var b pgx.Batch
	for _, u := range undos {
		if u.What != undoTrigger && u.What != undoRule {
			continue
		}
		var n actorNote
		if err := json.Unmarshal([]byte(u.Previous), &n); err != nil {
			return nil, fmt.Errorf("read the note of %s %s.%s: %w", u.What, u.Schema, u.Name, err)
		}
		now := &actorNow{actorNote: n, undo: u, was: n.Enabled}
		out = append(out, now)
		b.Queue(actorNowSQL, n.Trigger, n.Rule, n.OID, n.Table.Quoted()).QueryRow(func(row pgx.Row) error {
			var name string
			err := row.Scan(&now.Table.Schema, &now.Table.Name, &name, &now.Enabled, &now.table, &now.OID)
			if now.gone = errors.Is(err, pgx.ErrNoRows); now.gone {
				return nil
			}
			if n.Rule != "" {
				now.Rule = name
			} else {
				now.Trigger = name
			}
			return err
		})
	}
	if len(out) == 0 {
		return nil, nil
	}
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("%s: look for triggers and rules: %w", s.name, err)
	}
	return out, nil
}

// passes bounds how often enable looks again: a statement may meet a table that has just been renamed.
const passes = 4

// enable gives triggers and rules the state that was noted.
func (p *Pair) enable(ctx context.Context, s *side) error {
	for range passes {
		all, err := p.actors(ctx, s)
		if err != nil {
			return err
		}
		steps := map[postgres.LockMode][]postgres.LockedStep{}
		for _, now := range all {
			if !now.gone && now.Enabled != now.was {
				step, mode := now.step(now.table, now.was)
				steps[mode] = append(steps[mode], step)
				continue
			}
			if now.gone {
				p.log.Warn("not put back, since it was dropped meanwhile", "side", s.name, "object", now.String(), "was_enabled", now.was)
			}
			if err := p.stored.Undone(ctx, now.undo); err != nil {
				return err
			}
		}
		if len(steps) == 0 {
			return nil
		}
		for mode, some := range steps {
			if err := p.calmly(ctx, s, "put back", some, mode, func(step postgres.LockedStep, err error) error {
				if postgres.Code(err) == postgres.CodeUndefinedObject {
					return nil // dropped or renamed at this moment: looked at again
				}
				return fmt.Errorf("%s: put back %s: %w", s.name, step.Name, err)
			}); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s: put back triggers and rules: somebody goes on changing them", s.name)
}

// putBack restores what was changed of the application's own objects on a side.
func (p *Pair) putBack(ctx context.Context, s *side) error {
	undos, err := p.stored.Undos(ctx, s.name)
	if err != nil {
		return err
	}
	for _, u := range undos {
		if !slices.Contains([]string{undoTrigger, undoRule, undoForeignKey, undoIdentity}, u.What) {
			return fmt.Errorf("%s: put back %q of %s.%s: made by another version of the program: run that one's finish", s.name, u.What, u.Schema, u.Name)
		}
	}
	if err := p.leaveReplica(ctx, s); err != nil {
		return err
	}
	if err := p.validate(ctx, s); err != nil {
		return err
	}
	return p.restoreIdentities(ctx, s, undos)
}
