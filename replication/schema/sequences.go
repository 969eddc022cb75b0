package schema

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

// Sequence is a sequence's parameters and state ("CREATE SEQUENCE" and "Sequence Manipulation Functions" in the documentation).
type Sequence struct {
	Name replication.TableName `json:"name"`
	// LastValue and IsCalled are the sequence's own row: the next value is LastValue if not IsCalled, else one Increment on.
	LastValue int64 `json:"last_value"`
	IsCalled  bool  `json:"is_called"`
	Increment int64 `json:"increment"` // never 0; negative: the sequence descends
	Min       int64 `json:"min"`
	Max       int64 `json:"max"`
	Cycle     bool  `json:"cycle"`
}

const readSequences = `
SELECT n.nspname, c.relname, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relpersistence <> 't' AND ` + applicationSchema + `
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY n.nspname, c.relname`

// sequencesAtOnce bounds one statement that reads sequences' rows.
const sequencesAtOnce = 1000

// ReadSequences returns the state of all of the application's sequences, those of identity and serial columns included, sorted by name. It
// needs SELECT on each. The state is read from the sequences themselves, never derived from the tables' contents: a value may have
// been handed out and not be in any row. Sequences aren't transactional: what is read is what holds at that instant. Two round
// trips for up to a thousand sequences.
func ReadSequences(ctx context.Context, q Querier) ([]Sequence, error) {
	rows, err := q.Query(ctx, readSequences)
	if err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (s Sequence, err error) {
		err = r.Scan(&s.Name.Schema, &s.Name.Name, &s.Increment, &s.Min, &s.Max, &s.Cycle)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the sequences: %w", err)
	}
	for part := range slices.Chunk(out, sequencesAtOnce) {
		if err := readState(ctx, q, part); err != nil {
			return nil, fmt.Errorf("read the sequences: %w", err)
		}
	}
	return out, nil
}

func readState(ctx context.Context, q Querier, part []Sequence) error {
	var sql strings.Builder
	for i, s := range part {
		if i > 0 {
			sql.WriteString(" UNION ALL ")
		}
		fmt.Fprintf(&sql, "SELECT %d, last_value, is_called FROM %s", i, s.Name.Quoted())
	}
	rows, err := q.Query(ctx, sql.String())
	if err != nil {
		return err
	}
	defer rows.Close()
	seen := 0
	for rows.Next() {
		var i int32
		var last int64
		var called bool
		if err := rows.Scan(&i, &last, &called); err != nil {
			return err
		}
		part[i].LastValue, part[i].IsCalled = last, called
		seen++
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if seen != len(part) {
		return fmt.Errorf("%d of %d answered", seen, len(part))
	}
	return nil
}

const setSequences = `
SELECT setval(format('%I.%I', s.schema, s.name)::regclass, s.value, s.called)
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[]) AS s (schema, name, value, called)`

// SetSequences gives the destination's sequences the states of the origin's, read after the origin was frozen, plus margin values: nextval isn't
// stopped by a gate, so a session that is about to be refused may still draw some, and hand them to the outside world.
//
//   - A sequence that was called is moved margin increments on in its own direction, but not past its bound: where the margin
//     doesn't fit, it is left out, since values are scarce there (or, with CYCLE, are used again anyway).
//   - A sequence that was never called is set exactly.
//   - A destination's sequence never moves backwards: if it is ahead already, it stays, because what it has handed out may be in use. With
//     CYCLE there is no ahead, and the origin's state counts.
//
// So repeating it, or cutting over again after an abort, doesn't add up margins. It needs UPDATE on each sequence. A
// sequence that the destination lacks is an error that names it.
func SetSequences(ctx context.Context, q Querier, origin []Sequence, margin int64) error {
	have, err := ReadSequences(ctx, q)
	if err != nil {
		return err
	}
	var schemas, names []string
	var values []int64
	var called []bool
	var missing []string
	for _, o := range origin {
		i, ok := slices.BinarySearchFunc(have, o.Name, func(s Sequence, n replication.TableName) int { return s.Name.Compare(n) })
		if !ok {
			missing = append(missing, o.Name.String())
			continue
		}
		value := o.advance(margin)
		if have[i].LastValue == value && have[i].IsCalled == o.IsCalled || have[i].ahead(value, o.IsCalled) {
			continue
		}
		schemas, names = append(schemas, o.Name.Schema), append(names, o.Name.Name)
		values, called = append(values, value), append(called, o.IsCalled)
	}
	if len(missing) > 0 {
		return fmt.Errorf("set the sequences: the destination has no sequence %s: create it as it is on the origin", strings.Join(missing, ", "))
	}
	if len(names) == 0 {
		return nil
	}
	if _, err := q.Exec(ctx, setSequences, schemas, names, values, called); err != nil {
		return fmt.Errorf("set the sequences: %w", err)
	}
	return nil
}

// advance returns the last value with the margin added.
func (s Sequence) advance(margin int64) int64 {
	if !s.IsCalled || margin <= 0 {
		return s.LastValue
	}
	room := uint64(s.Max) - uint64(s.LastValue)
	step := uint64(s.Increment)
	if s.Increment < 0 {
		room, step = uint64(s.LastValue)-uint64(s.Min), -uint64(s.Increment)
	}
	if room/step < uint64(margin) {
		return s.LastValue
	}
	return s.LastValue + s.Increment*margin
}

// ahead tells whether the sequence would hand out only values that one in the given state has left behind or is about to hand out.
func (s Sequence) ahead(value int64, called bool) bool {
	if s.Cycle {
		return false
	}
	c := cmp.Compare(s.LastValue, value)
	if s.Increment < 0 {
		c = -c
	}
	return c > 0 || c == 0 && s.IsCalled && !called
}
