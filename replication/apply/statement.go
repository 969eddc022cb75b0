package apply

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"replicator/internal/postgres"
	"replicator/replication"
)

// statement is what was sent as one statement, and what must come of it.
type statement struct {
	// expect is the number of rows that it must hit, -1: any number, or it fails by itself.
	expect int64
	table  replication.TableName
	// change is the change that a row statement carries out, for the error.
	change *replication.Change
	op     replication.Op
	// moves marks the move of the position.
	moves bool
}

// run is a run of messages that ends in one answer, and the statements in it.
type run struct {
	wire
	statements []statement
	// unsure: a statement doesn't fail by itself where it hits another number of rows than it must, so that nothing may be committed before
	// its answer.
	unsure bool
	// parsed are the statements that the run prepares.
	parsed []string
}

// maxRows bounds the arrays of one statement, so that a server's memory stays bounded too.
const maxRows = 50000

// sets appends a segment's set statements: deletes, updates grouped by their unchanged columns, inserts.
func (a *Applier) sets(r *run, s *segment) error {
	var deletes, plain, inserts []int32
	var masks []string
	masked := map[string][]int32{} // updates, by the set of unchanged columns
	for i := range s.rows {
		row := &s.rows[i]
		switch row.effect {
		case deleted:
			deletes = append(deletes, int32(i))
		case replaced:
			deletes = append(deletes, int32(i))
			inserts = append(inserts, int32(i))
		case inserted:
			inserts = append(inserts, int32(i))
		case updated:
			m := mask(row.values)
			if m == "" {
				plain = append(plain, int32(i))
				continue
			}
			if masked[m] == nil {
				masks = append(masks, m)
			}
			masked[m] = append(masked[m], int32(i))
		}
	}
	if err := a.set(r, s, replication.Delete, "", deletes); err != nil {
		return err
	}
	if err := a.set(r, s, replication.Update, "", plain); err != nil {
		return err
	}
	for _, m := range masks {
		if err := a.set(r, s, replication.Update, m, masked[m]); err != nil {
			return err
		}
	}
	if len(inserts) >= copyFrom && s.plan.copyable && a.copyIn(r, s, s.sorted(inserts)) {
		return nil
	}
	return a.set(r, s, replication.Insert, "", inserts)
}

// set appends the statements that carry out one operation on some of a segment's rows, in the order of their keys.
func (a *Applier) set(r *run, s *segment, op replication.Op, mask string, which []int32) error {
	if len(which) == 0 {
		return nil
	}
	f := s.plan.form(op, mask)
	for order := range slices.Chunk(s.sorted(which), maxRows) {
		types := make([]*element, len(f.columns))
		for n, col := range f.columns {
			types[n] = s.plan.elements[col]
		}
		for column := a.arrays(r, s, f, types, order); column >= 0; column = a.arrays(r, s, f, types, order) {
			if types[column] == textElement {
				return fmt.Errorf("%s of %s, column %q: a value of this kind can't be written", op, s.plan.rel.Name, s.plan.columns[f.columns[column]].name)
			}
			types[column] = textElement
		}
		r.statements = append(r.statements, statement{expect: -1, table: s.plan.rel.Name, op: op})
	}
	return nil
}

// arrays appends one set statement. Where a value isn't of its type's plain form it appends nothing and returns the number of the array, else -1.
func (a *Applier) arrays(r *run, s *segment, f *setForm, types []*element, order []int32) int {
	oids := make([]uint32, len(types))
	for n, e := range types {
		oids[n] = e.array
	}
	name := a.prepare(r, f.statement(types), oids)
	start := len(r.b)
	at := r.bind(name, len(types)+1, binaryFormat)
	for n, col := range f.columns {
		if !r.array(types[n], s.rows, order, col, n < f.keys) {
			r.b = r.b[:start]
			return n
		}
	}
	r.uint32(8)
	r.b = binary.BigEndian.AppendUint64(r.b, uint64(len(order)))
	r.bound(at)
	return -1
}

// copyIn appends the COPY of inserted rows; false, with nothing appended, where there is a value that can't be copied.
func (a *Applier) copyIn(r *run, s *segment, order []int32) bool {
	format := func(name string) int {
		statement := a.prepare(r, s.plan.copyIn(name), nil)
		start := len(r.b)
		r.bound(r.bind(statement, 0, textFormat))
		return start
	}
	done := false
	if s.plan.binary {
		if start := format("binary"); r.copyRows(s.plan, s.rows, order) {
			done = true
		} else {
			r.b = r.b[:start]
		}
	}
	if !done {
		if start := format("text"); !r.copyText(s.rows, order) {
			r.b = r.b[:start]
			return false
		}
	}
	r.statements = append(r.statements, statement{expect: int64(len(order)), table: s.plan.rel.Name, op: replication.Insert})
	return true
}

// mask names the unchanged columns of a row, one byte a column; it is empty where there are none.
func mask(values []replication.Value) string {
	if !slices.ContainsFunc(values, func(v replication.Value) bool { return v.Kind == replication.Unchanged }) {
		return ""
	}
	m := make([]byte, len(values))
	for i, v := range values {
		m[i] = '.'
		if v.Kind == replication.Unchanged {
			m[i] = 'u'
		}
	}
	return string(m)
}

// one appends a single change as its row statement.
func (a *Applier) one(ctx context.Context, r *run, p *plan, c *replication.Change) error {
	var sql string
	var set, match []int
	switch c.Op {
	case replication.Insert:
		sql, set = p.insertRow()
	case replication.Delete:
		sql, match = p.deleteRow()
	case replication.Update:
		sql, set, match = p.updateRow(func(i int) bool { return c.New[i].Kind == replication.Unchanged })
	case replication.Truncate:
		return a.truncate(ctx, r, c)
	default:
		return fmt.Errorf("apply to %s: operation %s is unknown", p.rel.Name, c.Op)
	}
	at := r.bind(a.prepare(r, sql, slices.Repeat([]uint32{textOID}, len(set)+len(match))), len(set)+len(match), textFormat)
	old := c.Old
	if old == nil {
		old = c.New
	}
	for n, col := range append(slices.Clone(set), match...) {
		v := old[col]
		if n < len(set) {
			v = c.New[col]
		}
		param, err := textParameter(v)
		if err != nil {
			return fmt.Errorf("%s of %s, column %q: %w", c.Op, p.rel.Name, p.columns[col].name, err)
		}
		r.text(param)
	}
	r.bound(at)
	r.statements = append(r.statements, statement{expect: 1, table: p.rel.Name, change: c, op: c.Op})
	r.unsure = true
	return nil
}

const referencedSQL = `
SELECT EXISTS (SELECT FROM unnest($1::text[]) n JOIN pg_constraint f ON f.contype = 'f' AND f.confrelid = to_regclass(n)
               WHERE NOT f.conrelid = ANY (SELECT to_regclass(m) FROM unnest($1::text[]) m))`

// truncate never cascades: the source has listed every table that it emptied, and the destination's may be others. TRUNCATE refuses a
// table to which others refer; where those aren't emptied too (they are not replicated, or their copies have seen the truncation already)
// the rows are deleted, which in replica role touches nothing else.
func (a *Applier) truncate(ctx context.Context, r *run, c *replication.Change) error {
	if len(a.sent) > 0 {
		return errBusy
	}
	var names, only, deletes []string
	for i, rel := range c.Truncated {
		names = append(names, rel.Name.Quoted())
		only = append(only, "ONLY "+rel.Name.Quoted())
		deletes = append(deletes, fmt.Sprintf("d%d AS (DELETE FROM ONLY %s)", i, rel.Name.Quoted()))
	}
	var referenced bool
	if err := a.conn.QueryRow(ctx, referencedSQL, names).Scan(&referenced); err != nil {
		return fmt.Errorf("look for foreign keys to %s: %w", c.Relation.Name, err)
	}
	sql := "TRUNCATE " + strings.Join(only, ", ")
	if c.RestartIdentity {
		sql += " RESTART IDENTITY"
	}
	if referenced {
		sql = "WITH " + strings.Join(deletes, ", ") + " SELECT"
	}
	r.bound(r.bind(a.prepare(r, sql, nil), 0, textFormat))
	r.statements = append(r.statements, statement{expect: -1, table: c.Relation.Name, change: c, op: replication.Truncate})
	return nil
}

// maxPrepared is how many prepared statements the session keeps from one batch to the next.
const maxPrepared = 5000

// boundPrepared lets go of the session's prepared statements when they have become many.
func (a *Applier) boundPrepared(ctx context.Context) error {
	if len(a.prepared) < maxPrepared {
		return nil
	}
	if err := a.Settle(ctx); err != nil {
		return err
	}
	return a.forgetPrepared(ctx)
}

// forgetPrepared lets go of all prepared statements. Nothing may be under way.
func (a *Applier) forgetPrepared(ctx context.Context) error {
	clear(a.prepared)
	if err := a.conn.DeallocateAll(ctx); err != nil {
		return fmt.Errorf("let go of prepared statements: %w", err)
	}
	return nil
}

// prepare returns the name of the prepared statement for sql, which the run makes where there is none.
func (a *Applier) prepare(r *run, sql string, types []uint32) string {
	if name, ok := a.prepared[sql]; ok {
		return name
	}
	a.serial++
	name := "replicator_" + strconv.Itoa(a.serial)
	r.parse(name, sql, types)
	r.parsed = append(r.parsed, sql)
	a.prepared[sql] = name
	return name
}

// drop lets go of a run that isn't sent.
func (a *Applier) drop(r *run) {
	for _, sql := range r.parsed {
		delete(a.prepared, sql)
	}
}

// command appends a statement that takes and returns nothing.
func (a *Applier) command(r *run, sql string) {
	r.bound(r.bind(a.prepare(r, sql, nil), 0, textFormat))
	r.statements = append(r.statements, statement{expect: -1})
}

// countError is a statement that hit another number of rows than it must.
type countError struct {
	st   statement
	rows int64
	// committed: it was found when it was too late.
	committed bool
}

func (e *countError) Error() string {
	return fmt.Sprintf("%s of %s hit %d rows instead of %d", e.st.op, e.st.table, e.rows, e.st.expect)
}

// statementError is a statement that the server refused.
type statementError struct {
	st  statement
	err error
}

func (e *statementError) Error() string {
	return fmt.Sprintf("%s of %s: %v", e.st.op, e.st.table, postgres.WithoutValues(e.err))
}
func (e *statementError) Unwrap() error { return e.err }
