package pair

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/state"
)

// A side whose role may not set session_replication_role, as on Heroku, can't apply changes without the application's triggers firing and
// its foreign keys acting. While such a side only follows, those triggers are disabled by name (never by DISABLE TRIGGER USER, which would
// also take the gate, and whose ENABLE forgets ALWAYS), and the foreign keys are dropped: the owner can't disable their triggers, and a net
// change need not come in the order they want. What was there is noted first, and comes back before the application writes.

// What a note holds; the notes' kinds.
const (
	undoTrigger    = "trigger"
	undoForeignKey = "foreign key"
)

type triggerNote struct {
	Table   replication.TableName `json:"table"`
	Trigger string                `json:"trigger"`
	Enabled string                `json:"enabled"` // pg_trigger.tgenabled: O or A
}

type foreignKeyNote struct {
	Table       replication.TableName `json:"table"`
	Constraint  string                `json:"constraint"`
	Definition  string                `json:"definition"`
	Validated   bool                  `json:"validated"`
	Partitioned bool                  `json:"partitioned"` // can't be added NOT VALID
}

// isOrdinary tells whether the side's role may not set session_replication_role.
func (p *Pair) isOrdinary(ctx context.Context, s *side) (bool, error) {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SET LOCAL session_replication_role = replica`)
		return err
	})
	if postgres.Code(err) == postgres.CodeInsufficientPriv {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: try session_replication_role: %w", s.name, err)
	}
	return false, nil
}

// remember notes the token of a side's gate, by which our own writes pass where the role is an ordinary one.
func (p *Pair) remember(ctx context.Context, s *side, token string) error {
	if err := p.stored.Set(ctx, settingToken+s.name, token); err != nil {
		return err
	}
	p.mu.Lock()
	s.token = token
	p.mu.Unlock()
	return nil
}

const firingSQL = `
SELECT n.nspname, c.relname, t.tgname, t.tgenabled::text
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN unnest($1::text[], $2::text[]) AS u(s, r) ON n.nspname = u.s AND c.relname = u.r
WHERE NOT t.tgisinternal AND t.tgname NOT LIKE 'replicator\_%' AND t.tgenabled IN ('O', 'A')
ORDER BY 1, 2, 3`

const actingSQL = `
WITH ours AS (
  SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN unnest($1::text[], $2::text[]) AS u(s, r) ON n.nspname = u.s AND c.relname = u.r
), above AS (
  SELECT oid FROM ours UNION SELECT a.relid FROM ours, pg_partition_ancestors(ours.oid) AS a(relid)
)
SELECT n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated, c.relkind = 'p' OR f.relkind = 'p'
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_class f ON f.oid = k.confrelid
WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid IN (SELECT oid FROM above) OR k.confrelid IN (SELECT oid FROM above))
ORDER BY 1, 2, 3`

// enterReplica puts aside what would act on applied changes on a side with an ordinary role. It does so only where the gate is shut for good: a
// side that may open by itself, when the deadline of a freeze passes, must never be without its triggers and foreign keys. Until it is
// shut so, no change of the application's arrives there anyway.
func (p *Pair) enterReplica(ctx context.Context, s *side) error {
	if !s.ordinary {
		return nil
	}
	st, err := s.gate.State(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if !st.Armed || !st.Permanent {
		return nil
	}
	copies, err := p.stored.Copies(ctx)
	if err != nil {
		return err
	}
	var schemas, names []string
	for _, c := range copies {
		schemas, names = append(schemas, c.Table.Schema), append(names, c.Table.Name)
	}
	rows, err := s.pool.Query(ctx, firingSQL, schemas, names)
	if err != nil {
		return fmt.Errorf("%s: list the triggers: %w", s.name, err)
	}
	triggers, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (n triggerNote, err error) {
		err = r.Scan(&n.Table.Schema, &n.Table.Name, &n.Trigger, &n.Enabled)
		return n, err
	})
	if err != nil {
		return fmt.Errorf("%s: list the triggers: %w", s.name, err)
	}
	for _, n := range triggers {
		if err := p.note(ctx, s, undoTrigger, n.Table, n.Trigger, n); err != nil {
			return err
		}
		if err := lockedly(ctx, s, n.Table, p.waiting, "ALTER TABLE ONLY "+n.Table.Quoted()+" DISABLE TRIGGER "+replication.QuoteIdent(n.Trigger)); err != nil {
			return err
		}
	}
	rows, err = s.pool.Query(ctx, actingSQL, schemas, names)
	if err != nil {
		return fmt.Errorf("%s: list the foreign keys: %w", s.name, err)
	}
	keys, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (n foreignKeyNote, err error) {
		err = r.Scan(&n.Table.Schema, &n.Table.Name, &n.Constraint, &n.Definition, &n.Validated, &n.Partitioned)
		return n, err
	})
	if err != nil {
		return fmt.Errorf("%s: list the foreign keys: %w", s.name, err)
	}
	for _, n := range keys {
		if err := p.note(ctx, s, undoForeignKey, n.Table, n.Constraint, n); err != nil {
			return err
		}
		if err := lockedly(ctx, s, n.Table, p.waiting, "ALTER TABLE "+n.Table.Quoted()+" DROP CONSTRAINT "+replication.QuoteIdent(n.Constraint)); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pair) note(ctx context.Context, s *side, what string, table replication.TableName, object string, n any) error {
	previous, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return p.stored.SaveUndo(ctx, state.Undo{Side: s.name, What: what, Schema: table.Schema, Name: table.Name + "/" + object, Previous: string(previous)})
}

const constraintSQL = `SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass($1) AND conname = $2)`

// leaveReplica puts back what enterReplica put aside, exactly as it was but for the foreign keys' validation, which validate does later: they
// hold for every write from now on, and the rows were compared.
func (p *Pair) leaveReplica(ctx context.Context, s *side) error {
	undos, err := p.stored.Undos(ctx, s.name)
	if err != nil {
		return err
	}
	for _, u := range undos {
		switch u.What {
		case undoTrigger:
			var n triggerNote
			if err := json.Unmarshal([]byte(u.Previous), &n); err != nil {
				return err
			}
			always := ""
			if n.Enabled == "A" {
				always = "ALWAYS "
			}
			if err := lockedly(ctx, s, n.Table, p.waiting, "ALTER TABLE ONLY "+n.Table.Quoted()+" ENABLE "+always+"TRIGGER "+replication.QuoteIdent(n.Trigger)); err != nil {
				return err
			}
			if err := p.stored.Undone(ctx, u); err != nil {
				return err
			}
		case undoForeignKey:
			if err := p.restoreForeignKey(ctx, s, u); err != nil {
				return err
			}
		}
	}
	return nil
}

// restoreForeignKey adds a foreign key again; its note stays until it is as valid as it was.
func (p *Pair) restoreForeignKey(ctx context.Context, s *side, u state.Undo) error {
	var n foreignKeyNote
	if err := json.Unmarshal([]byte(u.Previous), &n); err != nil {
		return err
	}
	var there bool
	if err := s.pool.QueryRow(ctx, constraintSQL, n.Table.Quoted(), n.Constraint).Scan(&there); err != nil {
		return fmt.Errorf("%s: look for constraint %s: %w", s.name, n.Constraint, err)
	}
	if there {
		return nil
	}
	sql := "ALTER TABLE " + n.Table.Quoted() + " ADD CONSTRAINT " + replication.QuoteIdent(n.Constraint) + " " + n.Definition
	if n.Validated && !n.Partitioned {
		sql += " NOT VALID"
	}
	return lockedly(ctx, s, n.Table, p.waiting, sql)
}

// validate validates the foreign keys that leaveReplica has added; readers and writers go on meanwhile.
func (p *Pair) validate(ctx context.Context, s *side) error {
	undos, err := p.stored.Undos(ctx, s.name)
	if err != nil {
		return err
	}
	for _, u := range slices.DeleteFunc(undos, func(u state.Undo) bool { return u.What != undoForeignKey }) {
		var n foreignKeyNote
		if err := json.Unmarshal([]byte(u.Previous), &n); err != nil {
			return err
		}
		if n.Validated && !n.Partitioned {
			if err := lockedly(ctx, s, n.Table, p.waiting, "ALTER TABLE "+n.Table.Quoted()+" VALIDATE CONSTRAINT "+replication.QuoteIdent(n.Constraint)); err != nil {
				return err
			}
		}
		if err := p.stored.Undone(ctx, u); err != nil {
			return err
		}
	}
	return nil
}
