package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"replicator/replication"
)

// statement is one statement with its parameters and the rows that it must hit.
type statement struct {
	name    string // of the prepared statement; empty: sql is sent as it is
	sql     string
	params  [][]byte
	formats []int16
	expect  int64 // -1: any number
	table   replication.TableName
	// change is the change that a row statement carries out, for the error.
	change *replication.Change
	op     replication.Op
	// moves marks the move of the position.
	moves bool
}

// maxRows bounds the arrays of one statement, so that a server's memory stays bounded too.
const maxRows = 50000

// sets turns a segment into its set statements: deletes, updates grouped by their unchanged columns, inserts.
func (a *Applier) sets(ctx context.Context, s *segment) (out []statement, err error) {
	var deletes, inserts []int32
	updates := map[string][]int32{} // by the set of unchanged columns
	var masks []string
	for i := range s.rows {
		r := &s.rows[i]
		switch r.effect {
		case deleted:
			deletes = append(deletes, int32(i))
		case replaced:
			deletes = append(deletes, int32(i))
			inserts = append(inserts, int32(i))
		case inserted:
			inserts = append(inserts, int32(i))
		case updated:
			m := mask(r.values)
			if updates[m] == nil {
				masks = append(masks, m)
			}
			updates[m] = append(updates[m], int32(i))
		}
	}
	if len(deletes) > 0 {
		if out, err = a.set(ctx, s, replication.Delete, "", deletes, out); err != nil {
			return nil, err
		}
	}
	for _, m := range masks {
		if out, err = a.set(ctx, s, replication.Update, m, updates[m], out); err != nil {
			return nil, err
		}
	}
	if len(inserts) > 0 {
		if out, err = a.set(ctx, s, replication.Insert, "", inserts, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// set appends the statements that carry out one operation on some of a segment's rows, in the order of their keys.
func (a *Applier) set(ctx context.Context, s *segment, op replication.Op, mask string, which []int32, out []statement) ([]statement, error) {
	f := s.plan.form(op, mask)
	for order := range slices.Chunk(s.sorted(which), maxRows) {
		st := statement{expect: int64(len(order)), table: s.plan.rel.Name, op: op}
		types, oids := make([]*element, len(f.columns)), make([]uint32, len(f.columns))
		for n, col := range f.columns {
			types[n] = s.plan.elements[col]
			array, ok := types[n].encode(s.rows, order, col, n < f.keys)
			if !ok {
				types[n] = textElement
				array, ok = textElement.encode(s.rows, order, col, n < f.keys)
			}
			if !ok {
				return nil, fmt.Errorf("%s of %s, column %q: a value of this kind can't be written", op, s.plan.rel.Name, s.plan.columns[col].name)
			}
			oids[n] = types[n].array
			st.params, st.formats = append(st.params, array), append(st.formats, 1)
		}
		name, err := a.prepare(ctx, f.statement(types), oids)
		if err != nil {
			return nil, fmt.Errorf("prepare the %s of %s: %w", op, s.plan.rel.Name, err)
		}
		st.name = name
		out = append(out, st)
	}
	return out, nil
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

// one turns a single change into its row statement.
func (a *Applier) one(ctx context.Context, p *plan, c *replication.Change) (statement, error) {
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
		return a.truncate(ctx, c)
	default:
		return statement{}, fmt.Errorf("apply to %s: operation %s is unknown", p.rel.Name, c.Op)
	}
	name, err := a.prepare(ctx, sql, slices.Repeat([]uint32{textOID}, len(set)+len(match)))
	if err != nil {
		return statement{}, fmt.Errorf("prepare the %s of %s: %w", c.Op, p.rel.Name, err)
	}
	st := statement{name: name, expect: 1, table: p.rel.Name, change: c, op: c.Op}
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
			return statement{}, fmt.Errorf("%s of %s, column %q: %w", c.Op, p.rel.Name, p.columns[col].name, err)
		}
		st.params = append(st.params, param)
		st.formats = append(st.formats, 0)
	}
	return st, nil
}

const referencedSQL = `
SELECT EXISTS (SELECT FROM unnest($1::text[]) n JOIN pg_constraint f ON f.contype = 'f' AND f.confrelid = to_regclass(n)
               WHERE NOT f.conrelid = ANY (SELECT to_regclass(m) FROM unnest($1::text[]) m))`

// truncate never cascades: the source has listed every table that it emptied, and the destination's may be others. TRUNCATE refuses a
// table to which others refer; where those aren't emptied too (they are not replicated, or their copies have seen the truncation already)
// the rows are deleted, which in replica role touches nothing else.
func (a *Applier) truncate(ctx context.Context, c *replication.Change) (statement, error) {
	var names, only, deletes []string
	for i, r := range c.Truncated {
		names = append(names, r.Name.Quoted())
		only = append(only, "ONLY "+r.Name.Quoted())
		deletes = append(deletes, fmt.Sprintf("d%d AS (DELETE FROM ONLY %s)", i, r.Name.Quoted()))
	}
	var referenced bool
	if err := a.conn.QueryRow(ctx, referencedSQL, names).Scan(&referenced); err != nil {
		return statement{}, fmt.Errorf("look for foreign keys to %s: %w", c.Relation.Name, err)
	}
	sql := "TRUNCATE " + strings.Join(only, ", ")
	if c.RestartIdentity {
		sql += " RESTART IDENTITY"
	}
	if referenced {
		sql = "WITH " + strings.Join(deletes, ", ") + " SELECT"
	}
	name, err := a.prepare(ctx, sql, nil)
	if err != nil {
		return statement{}, fmt.Errorf("prepare the truncate of %s: %w", c.Relation.Name, err)
	}
	return statement{name: name, expect: -1, table: c.Relation.Name, change: c, op: replication.Truncate}, nil
}

// maxPrepared is how many prepared statements the session keeps from one batch to the next.
const maxPrepared = 5000

// boundPrepared lets go of the session's prepared statements when they have become many. Only between batches: a batch's statements are
// all prepared before the first is sent.
func (a *Applier) boundPrepared(ctx context.Context) error {
	if len(a.prepared) < maxPrepared {
		return nil
	}
	clear(a.prepared)
	if err := a.conn.DeallocateAll(ctx); err != nil {
		return fmt.Errorf("let go of prepared statements: %w", err)
	}
	return nil
}

// prepare returns the name of the prepared statement for sql.
func (a *Applier) prepare(ctx context.Context, sql string, types []uint32) (string, error) {
	if name, ok := a.prepared[sql]; ok {
		return name, nil
	}
	a.serial++
	name := fmt.Sprintf("replicator_%d", a.serial)
	if _, err := a.conn.PgConn().Prepare(ctx, name, sql, types); err != nil {
		return "", err
	}
	a.prepared[sql] = name
	return name, nil
}

// countError is a statement that hit another number of rows than it must.
type countError struct {
	st   statement
	rows int64
}

func (e *countError) Error() string {
	if e.st.moves {
		return "the stored position is not where this process left it"
	}
	return fmt.Sprintf("%s of %s hit %d rows instead of %d", e.st.op, e.st.table, e.rows, e.st.expect)
}

// run sends the statements in one round trip and checks what each of them hit. After an error of the server the transaction is
// aborted; after a countError it is still open.
func (a *Applier) run(ctx context.Context, statements []statement) error {
	for chunk := range chunks(statements) {
		if err := a.roundTrip(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

// chunks bounds what is under way at once, by statements and by bytes.
func chunks(statements []statement) func(yield func([]statement) bool) {
	return func(yield func([]statement) bool) {
		from, size := 0, 0
		for i, s := range statements {
			for _, p := range s.params {
				size += len(p)
			}
			if i-from+1 >= 1000 || size > 8<<20 {
				if !yield(statements[from : i+1]) {
					return
				}
				from, size = i+1, 0
			}
		}
		if from < len(statements) {
			yield(statements[from:])
		}
	}
}

func (a *Applier) roundTrip(ctx context.Context, statements []statement) (err error) {
	p := a.conn.PgConn().StartPipeline(ctx)
	for _, s := range statements {
		if s.name == "" {
			p.SendQueryParams(s.sql, nil, nil, nil, nil)
		} else {
			p.SendQueryPrepared(s.name, s.params, s.formats, nil)
		}
	}
	if err := p.Sync(); err != nil {
		_ = p.Close()
		return fmt.Errorf("send %d statements: %w", len(statements), err)
	}
	var failed error
	for _, s := range statements {
		tag, err := result(p)
		if err != nil {
			failed = &statementError{st: s, err: err}
			break
		}
		if n := tag.RowsAffected(); s.expect >= 0 && n != s.expect && failed == nil {
			failed = &countError{st: s, rows: n}
		}
	}
	if err := p.Close(); err != nil && failed == nil {
		return fmt.Errorf("end a round trip: %w", err)
	}
	return failed
}

func result(p *pgconn.Pipeline) (pgconn.CommandTag, error) {
	r, err := p.GetResults()
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	reader, ok := r.(*pgconn.ResultReader)
	if !ok {
		return pgconn.CommandTag{}, fmt.Errorf("unexpected answer %T in a pipeline", r)
	}
	return reader.Close()
}

// statementError is a statement that the server refused.
type statementError struct {
	st  statement
	err error
}

func (e *statementError) Error() string {
	return fmt.Sprintf("%s of %s: %v", e.st.op, e.st.table, withoutValues(e.err))
}
func (e *statementError) Unwrap() error { return e.err }
