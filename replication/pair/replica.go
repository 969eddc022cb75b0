package pair

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// While a side only follows, whatever of the application's would act on applied changes is put aside. In replica role that is what fires there
// too: triggers and rules with ENABLE ALWAYS or REPLICA, whose effects arrive from the origin anyway. A side whose role may not set
// session_replication_role, as on Heroku, has all the others act as well: triggers and rules are disabled by name there (never by
// DISABLE TRIGGER USER, which would also take the gate, and whose ENABLE forgets ALWAYS), and the foreign keys are dropped: the owner can't disable
// their triggers, and a net change need not come in the order they want. What was there is noted first, and comes back before the
// application writes (restore.go).

// The notes' kinds.
const (
	undoTrigger    = "trigger"
	undoRule       = "rule"
	undoForeignKey = "foreign key"
	undoIdentity   = "replica identity"
)

// actorNote is a trigger or a rule that was disabled. The application's migrations may rename it or its table meanwhile: it is found again by
// its OID. Notes of earlier versions have none.
type actorNote struct {
	Table   replication.TableName `json:"table"`
	Trigger string                `json:"trigger,omitempty"`
	Rule    string                `json:"rule,omitempty"`
	Enabled string                `json:"enabled"` // pg_trigger.tgenabled or pg_rewrite.ev_enabled: O, A or R
	OID     uint32                `json:"oid,omitempty"`
}

func (n actorNote) kind() string {
	if n.Rule != "" {
		return undoRule
	}
	return undoTrigger
}

func (n actorNote) name() string { return n.Trigger + n.Rule }

func (n actorNote) String() string { return n.kind() + " " + n.name() + " of " + n.Table.String() }

// step is the change to the state given as in pg_trigger.tgenabled. ALTER TABLE … TRIGGER locks SHARE ROW EXCLUSIVE, … RULE all.
func (n actorNote) step(table uint32, enabled string) (postgres.LockedStep, postgres.LockMode) {
	verbs := map[string]string{"O": "ENABLE ", "A": "ENABLE ALWAYS ", "R": "ENABLE REPLICA ", "D": "DISABLE "}
	word, mode := "TRIGGER ", postgres.ShareRowExclusive
	if n.Rule != "" {
		word, mode = "RULE ", postgres.AccessExclusive
	}
	return postgres.LockedStep{OID: table, Name: n.String(), Statements: []string{"ALTER TABLE ONLY " + n.Table.Quoted() + " " + verbs[enabled] + word + replication.QuoteIdent(n.name())}}, mode
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

// actorsSQL lists triggers and rules in the given states, without ours, which are known by their functions. A partitioned table's row triggers
// stand on its leaves as clones, which count as internal before PostgreSQL 15; what is internal by itself belongs to a constraint.
const actorsSQL = `
WITH ours AS (
  SELECT c.oid, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN unnest($1::text[], $2::text[]) AS u(s, r) ON n.nspname = u.s AND c.relname = u.r
)
SELECT o.nspname, o.relname, t.tgname, '', t.tgenabled::text, o.oid, t.oid
FROM ours o JOIN pg_trigger t ON t.tgrelid = o.oid JOIN pg_proc f ON f.oid = t.tgfoid
WHERE t.tgenabled::text = ANY($3::text[]) AND f.pronamespace IS DISTINCT FROM to_regnamespace('replicator')
  AND (NOT t.tgisinternal OR EXISTS (
    WITH RECURSIVE above AS (
      SELECT a.tgisinternal, a.tgparentid FROM pg_trigger a WHERE a.oid = t.tgparentid
      UNION ALL SELECT a.tgisinternal, a.tgparentid FROM above JOIN pg_trigger a ON a.oid = above.tgparentid)
    SELECT FROM above WHERE NOT tgisinternal))
UNION ALL
SELECT o.nspname, o.relname, '', w.rulename, w.ev_enabled::text, o.oid, w.oid
FROM ours o JOIN pg_rewrite w ON w.ev_class = o.oid WHERE w.ev_enabled::text = ANY($3::text[]) AND w.ev_type <> '1'
ORDER BY 1, 2, 3, 4`

// enterReplica puts aside what would act on applied changes on a side that only follows. It does so only where the gate is shut for good: a
// side that may open by itself, when the deadline of a freeze passes, must never be without its triggers and foreign keys. Until it is
// shut so, no change of the application's arrives there anyway.
func (p *Pair) enterReplica(ctx context.Context, s *side) error {
	st, err := s.gate.State(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	if !st.Armed || !st.Permanent {
		return nil
	}
	// Those that are there now: since the copy, tables may have been renamed.
	tables, err := schema.Names(ctx, s.pool, p.o.Filter)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	firing := []string{"A", "R"}
	if s.ordinary {
		firing = []string{"O", "A"}
	}
	if err := p.disable(ctx, s, tables, firing); err != nil {
		return err
	}
	if !s.ordinary {
		return nil
	}
	return p.dropForeignKeys(ctx, s, tables)
}

// disable disables the tables' triggers and rules that are in one of the states given.
func (p *Pair) disable(ctx context.Context, s *side, tables []replication.TableName, firing []string) error {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := s.pool.Query(ctx, actorsSQL, schemas, names, firing)
	if err != nil {
		return fmt.Errorf("%s: list triggers and rules: %w", s.name, err)
	}
	steps := map[postgres.LockMode][]postgres.LockedStep{}
	var notes []actorNote
	var n actorNote
	var table uint32
	if _, err := pgx.ForEachRow(rows, []any{&n.Table.Schema, &n.Table.Name, &n.Trigger, &n.Rule, &n.Enabled, &table, &n.OID}, func() error {
		step, mode := n.step(table, "D")
		notes, steps[mode] = append(notes, n), append(steps[mode], step)
		return nil
	}); err != nil {
		return fmt.Errorf("%s: list triggers and rules: %w", s.name, err)
	}
	if len(notes) == 0 {
		return nil
	}
	for _, n := range notes {
		if err := p.note(ctx, s, n.kind(), n.Table, fmt.Sprintf("%s#%d", n.name(), n.OID), n); err != nil {
			return err
		}
	}
	p.log.Info("triggers and rules are put aside while this side only follows", "side", s.name, "number", len(notes))
	for _, mode := range []postgres.LockMode{postgres.ShareRowExclusive, postgres.AccessExclusive} {
		if err := p.calmly(ctx, s, "put aside", steps[mode], mode, nil); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pair) note(ctx context.Context, s *side, what string, table replication.TableName, object string, n any) error {
	u, err := undoOf(s, what, table, object, n)
	if err != nil {
		return err
	}
	return p.stored.SaveUndo(ctx, u)
}

func undoOf(s *side, what string, table replication.TableName, object string, n any) (state.Undo, error) {
	previous, err := json.Marshal(n)
	return state.Undo{Side: s.name, What: what, Schema: table.Schema, Name: table.Name + "/" + object, Previous: string(previous)}, err
}

// calmly carries out statements that lock tables of the application's against others, and says meanwhile whom they wait for. What fails for another
// reason than a lock is passed to explain; if that is nil, or returns an error, it is in the error.
func (p *Pair) calmly(ctx context.Context, s *side, what string, steps []postgres.LockedStep, mode postgres.LockMode, explain func(postgres.LockedStep, error) error) error {
	if len(steps) == 0 {
		return nil
	}
	if explain == nil {
		explain = func(step postgres.LockedStep, err error) error {
			return fmt.Errorf("%s: %s %s: %w", s.name, what, step.Name, err)
		}
	}
	run := postgres.Calm{Pool: s.pool, Log: p.log.With("side", s.name), What: what, Waiting: func(on string) {
		if on != "" {
			on = s.name + ": " + on
		}
		p.doing(on)
	}}
	return run.Run(ctx, steps, mode, explain)
}

// follow looks again and again for what was made on the destination since it began to follow, so that it doesn't act there: a migration of the
// application's is run on both sides.
func (p *Pair) follow(ctx context.Context, l *link) error {
	timer := time.NewTimer(p.o.WatchEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		began := time.Now()
		if err := p.enterReplica(ctx, l.destination); err != nil && !postgres.IsTransient(err) {
			return err
		}
		timer.Reset(max(p.o.WatchEvery, 20*time.Since(began)))
	}
}
