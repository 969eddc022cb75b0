package pair

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/state"
)

// foreignKeyNote is a foreign key that was dropped. What an earlier version noted has no more than the first five.
type foreignKeyNote struct {
	Table       replication.TableName `json:"table"`
	Constraint  string                `json:"constraint"`
	Definition  string                `json:"definition"`
	Validated   bool                  `json:"validated"`
	Partitioned bool                  `json:"partitioned"` // can't be added NOT VALID
	// Tables and columns by number, since they may be renamed meanwhile; Tail is the definition's part behind them. Without Columns, the
	// definition as it was written is all there is.
	OID        uint32  `json:"oid,omitempty"`
	References uint32  `json:"references,omitempty"`
	Columns    []int16 `json:"columns,omitempty"`
	Referenced []int16 `json:"referenced,omitempty"`
	Tail       string  `json:"tail,omitempty"`
	Comment    *string `json:"comment,omitempty"`
	// Elsewhere: the other side had it too. What isn't there any more when this side is written to again, the application has dropped.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// Refused is why its validation failed, empty if it didn't.
	Refused string `json:"refused,omitempty"`
}

const actingSQL = `
WITH ours AS (
  SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN unnest($1::text[], $2::text[]) AS u(s, r) ON n.nspname = u.s AND c.relname = u.r
), above AS (
  SELECT oid FROM ours UNION SELECT a.relid FROM ours, pg_partition_ancestors(ours.oid) AS a(relid)
)
SELECT n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated, c.relkind = 'p' OR f.relkind = 'p',
       c.oid, f.oid, k.conkey, k.confkey, obj_description(k.oid, 'pg_constraint')
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_class f ON f.oid = k.confrelid
WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid IN (SELECT oid FROM above) OR k.confrelid IN (SELECT oid FROM above))
ORDER BY 1, 2, 3`

// foreignKeyNowSQL names what a note has by numbers; null is what is gone. Its last column tells how the constraint itself stands.
const foreignKeyNowSQL = `
SELECT n.nspname, c.relname, c.oid,
       (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY x.ord) FROM unnest($3::int2[]) WITH ORDINALITY x(num, ord)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = x.num AND NOT a.attisdropped HAVING count(*) = cardinality($3::int2[])),
       (SELECT quote_ident(fn.nspname) || '.' || quote_ident(f.relname) FROM pg_class f JOIN pg_namespace fn ON fn.oid = f.relnamespace WHERE f.oid = $2::oid),
       (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY x.ord) FROM unnest($4::int2[]) WITH ORDINALITY x(num, ord)
        JOIN pg_attribute a ON a.attrelid = $2::oid AND a.attnum = x.num AND NOT a.attisdropped HAVING count(*) = cardinality($4::int2[])),
       (SELECT convalidated FROM pg_constraint k WHERE k.conrelid = c.oid AND k.conname = $5 AND k.contype = 'f')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = CASE WHEN $1::oid = 0 THEN to_regclass($6)::oid ELSE $1::oid END`

// foreignKeyNow is what a note stands for now.
type foreignKeyNow struct {
	foreignKeyNote
	undo  state.Undo
	noted replication.TableName // its table's name at that time
	gone  bool                  // its table
	oid   uint32
	head  string // the definition up to the referenced columns, empty if something of it is gone
	// valid is the constraint's validity, nil if it isn't there.
	valid *bool
}

func (n *foreignKeyNow) String() string {
	return "foreign key " + n.Constraint + " of " + n.Table.String()
}

// lookUp queues the question how a note's objects stand.
func (n *foreignKeyNow) lookUp(b *pgx.Batch) {
	b.Queue(foreignKeyNowSQL, n.OID, n.References, n.Columns, n.Referenced, n.Constraint, n.Table.Quoted()).QueryRow(func(row pgx.Row) error {
		var own, table, referenced *string
		err := row.Scan(&n.Table.Schema, &n.Table.Name, &n.oid, &own, &table, &referenced, &n.valid)
		if n.gone = errors.Is(err, pgx.ErrNoRows); n.gone {
			return nil
		}
		n.head = ""
		if own != nil && table != nil && referenced != nil {
			n.head = "FOREIGN KEY (" + *own + ") REFERENCES " + *table + "(" + *referenced + ")"
		}
		return err
	})
}

// definition is the constraint's with the names of now, if they are known.
func (n *foreignKeyNow) definition() string {
	if len(n.Columns) == 0 || n.head == "" {
		return n.Definition
	}
	return n.head + n.Tail
}

func (n *foreignKeyNow) add() string {
	return "ALTER TABLE " + n.Table.Quoted() + " ADD CONSTRAINT " + replication.QuoteIdent(n.Constraint) + " " + n.definition()
}

func (n *foreignKeyNow) validation() string {
	return "ALTER TABLE " + n.Table.Quoted() + " VALIDATE CONSTRAINT " + replication.QuoteIdent(n.Constraint)
}

// step adds the constraint; it is validated later where that is possible.
func (n *foreignKeyNow) step() postgres.LockedStep {
	sql := n.add()
	if n.Validated && !n.Partitioned {
		sql += " NOT VALID"
	}
	step := postgres.LockedStep{OID: n.oid, Name: n.String(), Statements: []string{sql}}
	if n.References != 0 {
		step.Also = []uint32{n.References}
	}
	if n.Comment != nil {
		step.Statements = append(step.Statements, "COMMENT ON CONSTRAINT "+replication.QuoteIdent(n.Constraint)+" ON "+n.Table.Quoted()+" IS "+replication.QuoteLiteral(*n.Comment))
	}
	return step
}

// dropForeignKeys notes the foreign keys from and to the tables and drops them.
func (p *Pair) dropForeignKeys(ctx context.Context, s *side, tables []replication.TableName) error {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := s.pool.Query(ctx, actingSQL, schemas, names)
	if err != nil {
		return fmt.Errorf("%s: list the foreign keys: %w", s.name, err)
	}
	keys, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (*foreignKeyNow, error) {
		n := &foreignKeyNow{}
		err := r.Scan(&n.Table.Schema, &n.Table.Name, &n.Constraint, &n.Definition, &n.Validated, &n.Partitioned, &n.OID, &n.References, &n.Columns, &n.Referenced, &n.Comment)
		return n, err
	})
	if err != nil {
		return fmt.Errorf("%s: list the foreign keys: %w", s.name, err)
	}
	if len(keys) == 0 {
		return nil
	}
	if err := p.lookUp(ctx, s, keys); err != nil {
		return err
	}
	elsewhere, err := foreignKeys(ctx, p.other(s))
	if err != nil {
		return err
	}
	noted, err := p.foreignKeyNotes(ctx, s)
	if err != nil {
		return err
	}
	var steps []postgres.LockedStep
	for _, n := range keys {
		var ok bool
		if n.Tail, ok = strings.CutPrefix(n.Definition, n.head); !ok || n.head == "" {
			n.Columns, n.Referenced, n.Tail = nil, nil, ""
		}
		n.Elsewhere = elsewhere[constraintOf{n.Table, n.Constraint}]
		if err := p.noteForeignKey(ctx, s, n, noted); err != nil {
			return err
		}
		steps = append(steps, postgres.LockedStep{OID: n.OID, Also: []uint32{n.References}, Name: n.String(),
			Statements: []string{"ALTER TABLE " + n.Table.Quoted() + " DROP CONSTRAINT IF EXISTS " + replication.QuoteIdent(n.Constraint)}})
	}
	p.log.Info("foreign keys are dropped while this side only follows", "side", s.name, "number", len(keys))
	return p.calmly(ctx, s, "put aside", steps, postgres.AccessExclusive, nil)
}

// noteForeignKey notes a foreign key. An earlier note of the same one stands: what it was noted of may have been put back without being valid yet.
// Another one under its name is what the application has made of it since.
func (p *Pair) noteForeignKey(ctx context.Context, s *side, n *foreignKeyNow, noted []*foreignKeyNow) error {
	u, err := undoOf(s, undoForeignKey, n.Table, fmt.Sprintf("%s#%d", n.Constraint, n.OID), n.foreignKeyNote)
	if err != nil {
		return err
	}
	for _, before := range noted {
		same := strings.TrimSuffix(before.definition(), " NOT VALID") == strings.TrimSuffix(n.Definition, " NOT VALID")
		if before.undo.Schema == u.Schema && before.undo.Name == u.Name && !same {
			if err := p.stored.Undone(ctx, before.undo); err != nil {
				return err
			}
		}
	}
	return p.stored.SaveUndo(ctx, u)
}

// other is the side opposite to s.
func (p *Pair) other(s *side) *side {
	if s == p.source {
		return p.target
	}
	return p.source
}

type constraintOf struct {
	table replication.TableName
	name  string
}

const foreignKeysSQL = `
SELECT n.nspname, c.relname, k.conname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.contype = 'f' AND k.conparentid = 0`

// foreignKeys lists a side's foreign keys.
func foreignKeys(ctx context.Context, s *side) (map[constraintOf]bool, error) {
	rows, err := s.pool.Query(ctx, foreignKeysSQL)
	if err != nil {
		return nil, fmt.Errorf("%s: list the foreign keys: %w", s.name, err)
	}
	out := map[constraintOf]bool{}
	var c constraintOf
	if _, err := pgx.ForEachRow(rows, []any{&c.table.Schema, &c.table.Name, &c.name}, func() error { out[c] = true; return nil }); err != nil {
		return nil, fmt.Errorf("%s: list the foreign keys: %w", s.name, err)
	}
	return out, nil
}

// lookUp asks how the notes' objects stand, in one round trip.
func (p *Pair) lookUp(ctx context.Context, s *side, keys []*foreignKeyNow) error {
	if len(keys) == 0 {
		return nil
	}
	var b pgx.Batch
	for _, n := range keys {
		n.lookUp(&b)
	}
	if err := s.pool.SendBatch(ctx, &b).Close(); err != nil {
		return fmt.Errorf("%s: look for foreign keys: %w", s.name, err)
	}
	return nil
}

// foreignKeyNotes reads the notes of a side, and how they stand.
func (p *Pair) foreignKeyNotes(ctx context.Context, s *side) ([]*foreignKeyNow, error) {
	undos, err := p.stored.Undos(ctx, s.name)
	if err != nil {
		return nil, err
	}
	var out []*foreignKeyNow
	for _, u := range slices.DeleteFunc(undos, func(u state.Undo) bool { return u.What != undoForeignKey }) {
		n := &foreignKeyNow{undo: u}
		if err := json.Unmarshal([]byte(u.Previous), &n.foreignKeyNote); err != nil {
			return nil, fmt.Errorf("read the note of foreign key %s.%s: %w", u.Schema, u.Name, err)
		}
		n.noted = n.Table
		out = append(out, n)
	}
	return out, p.lookUp(ctx, s, out)
}

// restoreForeignKeys adds foreign keys again. Their notes stay until they are as valid as they were.
func (p *Pair) restoreForeignKeys(ctx context.Context, s *side) error {
	notes, err := p.foreignKeyNotes(ctx, s)
	if err != nil || len(notes) == 0 {
		p.showForeignKeys(s, nil)
		return err
	}
	elsewhere, err := foreignKeys(ctx, p.other(s))
	if err != nil {
		return err
	}
	var steps []postgres.LockedStep
	var added []*foreignKeyNow
	refused := map[string]string{}
	for _, n := range notes {
		why := ""
		switch {
		case n.gone:
			why = "its table was dropped"
		case n.valid != nil:
			continue
		case n.Elsewhere && !elsewhere[constraintOf{n.Table, n.Constraint}] && !elsewhere[constraintOf{n.noted, n.Constraint}]:
			why = "the other side has dropped it, or what it rests on"
		}
		if why != "" {
			p.log.Warn("not put back", "side", s.name, "object", n.String(), "reason", why, "definition", n.Definition)
			if err := p.stored.Undone(ctx, n.undo); err != nil {
				return err
			}
			continue
		}
		steps, added = append(steps, n.step()), append(added, n)
	}
	if err := p.calmly(ctx, s, "put back", steps, postgres.ShareRowExclusive, func(step postgres.LockedStep, err error) error {
		if postgres.Code(err) == "" {
			return fmt.Errorf("%s: put back %s: %w", s.name, step.Name, err)
		}
		refused[step.Name] = err.Error()
		return nil
	}); err != nil {
		return err
	}
	if err := p.lookUp(ctx, s, added); err != nil {
		return err
	}
	var missing []preflight.Finding
	for _, n := range added {
		if n.valid == nil {
			why := refused[n.String()]
			if why == "" {
				why = "what it rests on is gone"
			}
			p.log.Error("a foreign key could not be put back", "side", s.name, "object", n.String(), "reason", why, "statement", n.add())
			missing = append(missing, p.foreignKeyProblem(s, n, why))
		}
	}
	p.showForeignKeys(s, missing)
	return nil
}
