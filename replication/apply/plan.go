package apply

import (
	"fmt"
	"strings"

	"replicator/replication"
)

// plan is how the changes of one described relation are carried out on its target table. Columns are indexes into rel.Columns.
type plan struct {
	rel     *replication.Relation
	columns []targetColumn // one a column of rel
	key     []int          // columns that identify a row; empty: the whole row does
	isKey   []bool
	always  bool // some column is GENERATED ALWAYS AS IDENTITY
	table   string
	byName  map[string]int
	// elements are the columns' types in arrays.
	elements []*element
	// binary: the elements are the columns' own types, so that rows can be copied in binary form.
	binary bool
	// copyable: nothing on the destination keeps a row from being inserted without an error.
	copyable bool
	forms    map[string]*setForm
	// spare is a segment to be used again.
	spare *segment
}

func newPlan(r *replication.Relation, t *target) *plan {
	p := &plan{rel: r, table: t.name.Quoted(), byName: map[string]int{}, isKey: make([]bool, len(r.Columns)), columns: make([]targetColumn, len(r.Columns)),
		elements: make([]*element, len(r.Columns)), forms: map[string]*setForm{}, binary: true, copyable: !t.suppressed}
	for i, c := range r.Columns {
		p.byName[c.Name] = i
	}
	for _, c := range t.columns {
		if i, ok := p.byName[c.name]; ok {
			p.columns[i] = c
			p.always = p.always || c.always
		}
	}
	for i, c := range r.Columns {
		var known bool
		p.elements[i], known = elementOf(c.TypeOID, p.columns[i])
		p.binary = p.binary && known
	}
	if r.ReplicaIdentity == replication.IdentityFull {
		for _, name := range t.key {
			i, ok := p.byName[name]
			if !ok {
				p.key = nil
				break
			}
			p.key = append(p.key, i)
		}
	} else {
		for i, c := range r.Columns {
			if c.Key {
				p.key = append(p.key, i)
			}
		}
	}
	for _, i := range p.key {
		p.isKey[i] = true
	}
	return p
}

func quote(s string) string { return replication.QuoteIdent(s) }

// unnest returns the subquery u(c0, c1, …) over arrays $1…$n of the given types. In the select list they are unnested row by row; in FROM
// each would be stored first.
func unnest(types []*element) string {
	var b strings.Builder
	for i, e := range types {
		comma(&b)
		fmt.Fprintf(&b, "unnest($%d::%s[]) AS c%d", i+1, e.name, i)
	}
	return "(SELECT " + b.String() + ") AS u"
}

// setForm is a set statement without its arrays, whose types differ from batch to batch: they stand between before and after. columns
// are those of the arrays, of which the first keys are taken from the rows' keys.
type setForm struct {
	before, after string
	columns       []int
	keys          int
	// any, where set, is the statement up to the array of a key of one column, of the column's own type: an index takes it as it is.
	any string
	own *element
	// sql is the whole statement, by its arrays' types, one byte each.
	sql map[string]string
}

// statement returns the whole statement for arrays of these types.
func (f *setForm) statement(types []*element) string {
	kinds := make([]byte, 0, 64)
	for _, e := range types {
		kinds = append(kinds, byte(e.array), byte(e.array>>8))
	}
	sql, ok := f.sql[string(kinds)]
	if !ok {
		sql = f.before + unnest(types) + f.after
		if f.any != "" && types[0] == f.own {
			sql = f.any + " ANY ($1::" + types[0].name + "[])"
		}
		sql = counted(sql, fmt.Sprintf("$%d::bigint", len(types)+1))
		f.sql[string(kinds)] = sql
	}
	return sql
}

// counted makes a statement fail with division_by_zero where it hits another number of rows than expected, so that what follows it needn't
// wait for the answer.
func counted(sql, expected string) string {
	if strings.HasPrefix(sql, "SELECT") {
		return "WITH d AS MATERIALIZED (" + sql + ") SELECT 1 / (count(*) = " + expected + ")::int FROM d"
	}
	return "WITH d AS (" + sql + " RETURNING 1) SELECT 1 / (count(*) = " + expected + ")::int FROM d"
}

// form returns the set statement for an operation, made once; mask is what is unchanged in an update.
func (p *plan) form(op replication.Op, mask string) *setForm {
	name := op.String() + mask
	f := p.forms[name]
	if f == nil {
		switch op {
		case replication.Delete:
			f = p.deleteSet()
		case replication.Insert:
			f = p.insertSet()
		default:
			f = p.updateSet(func(i int) bool { return mask != "" && mask[i] == 'u' })
		}
		f.sql = map[string]string{}
		p.forms[name] = f
	}
	return f
}

// where joins the table t with the first columns of u by key.
func (p *plan) where() string {
	var b strings.Builder
	for n, i := range p.key {
		if n > 0 {
			b.WriteString(" AND ")
		}
		fmt.Fprintf(&b, "t.%s %s u.c%d::%s", quote(p.columns[i].name), p.columns[i].equals, n, p.columns[i].cast)
	}
	return b.String()
}

// deleteSet takes the key columns' arrays.
func (p *plan) deleteSet() *setForm {
	f := &setForm{before: "DELETE FROM ONLY " + p.table + " t USING ", after: " WHERE " + p.where(), columns: p.key, keys: len(p.key)}
	if len(p.key) == 1 {
		c := p.columns[p.key[0]]
		if e := p.elements[p.key[0]]; e.name == c.cast {
			f.any, f.own = "DELETE FROM ONLY "+p.table+" t WHERE t."+quote(c.name)+" "+c.equals, e
		}
	}
	return f
}

// insertSet takes all columns' arrays.
func (p *plan) insertSet() *setForm {
	var columns []int
	var names, values strings.Builder
	for i, c := range p.columns {
		if i > 0 {
			names.WriteString(", ")
			values.WriteString(", ")
		}
		names.WriteString(quote(c.name))
		fmt.Fprintf(&values, "u.c%d::%s", i, c.cast)
		columns = append(columns, i)
	}
	return &setForm{before: "INSERT INTO " + p.table + " (" + names.String() + ") OVERRIDING SYSTEM VALUE SELECT " + values.String() + " FROM ", columns: columns}
}

// updateSet takes the key columns' arrays and then those of the columns that are set. Unchanged columns are left alone. A GENERATED
// ALWAYS identity column can't be set; it must hold its new value already, or the row isn't hit and the batch goes the slow way.
func (p *plan) updateSet(unchanged func(i int) bool) *setForm {
	columns := append([]int(nil), p.key...)
	var set, more strings.Builder
	for i, c := range p.columns {
		if p.isKey[i] || unchanged(i) {
			continue
		}
		if c.always {
			fmt.Fprintf(&more, " AND t.%s = u.c%d::%s", quote(c.name), len(columns), c.cast)
		} else {
			if set.Len() > 0 {
				set.WriteString(", ")
			}
			fmt.Fprintf(&set, "%s = u.c%d::%s", quote(c.name), len(columns), c.cast)
		}
		columns = append(columns, i)
	}
	if set.Len() == 0 {
		// Nothing to set, but the row must be there.
		return &setForm{before: "SELECT 1 FROM ONLY " + p.table + " t, ", after: " WHERE " + p.where() + more.String(), columns: columns, keys: len(p.key)}
	}
	return &setForm{before: "UPDATE ONLY " + p.table + " t SET " + set.String() + " FROM ", after: " WHERE " + p.where() + more.String(), columns: columns, keys: len(p.key)}
}

// copyIn is the COPY of whole rows. It takes the values of identity columns as they are.
func (p *plan) copyIn(format string) string {
	var names strings.Builder
	for _, c := range p.columns {
		comma(&names)
		names.WriteString(quote(c.name))
	}
	return "COPY " + p.table + " (" + names.String() + ") FROM STDIN (FORMAT " + format + ")"
}

// Row statements: one change each, in text parameters whose types the server infers from the columns.

// match identifies one row by the key, or where there is none by the whole old row: values whose bytes say all are compared byte by
// byte, as only *= does for types without equality ("Composite Type Comparison"; the casts keep the parser from comparing column by
// column); all others in their text form, which is what the stream says of them (the bytes of an array tell whether it ever held a NULL, those
// of a NaN how it was computed). Parameters start at $first.
func (p *plan) match(first int) (sql string, columns []int) {
	var b strings.Builder
	if len(p.key) > 0 {
		for n, i := range p.key {
			if n > 0 {
				b.WriteString(" AND ")
			}
			c := p.columns[i]
			fmt.Fprintf(&b, "t.%s %s $%d::text::%s", quote(c.name), c.equals, first+n, c.cast)
		}
		return b.String(), p.key
	}
	var left, right, texts strings.Builder
	for i, c := range p.columns {
		columns = append(columns, i)
		if !c.plain {
			fmt.Fprintf(&texts, " AND num_nulls(s.%s) = num_nulls($%d::text) AND format('%%s', s.%[1]s) = coalesce($%[2]d::text, '')", quote(c.name), first+i)
			continue
		}
		comma(&left)
		comma(&right)
		fmt.Fprintf(&left, "s.%s", quote(c.name))
		fmt.Fprintf(&right, "$%d::text::%s", first+i, c.cast)
	}
	return "t.ctid = (SELECT s.ctid FROM ONLY " + p.table + " s WHERE ROW(" + left.String() + ")::record OPERATOR(pg_catalog.*=) ROW(" + right.String() + ")::record" + texts.String() + " LIMIT 1)", columns
}

func (p *plan) deleteRow() (sql string, match []int) {
	where, match := p.match(1)
	return "DELETE FROM ONLY " + p.table + " t WHERE " + where, match
}

func (p *plan) insertRow() (sql string, columns []int) {
	var names, values strings.Builder
	for i, c := range p.columns {
		if i > 0 {
			names.WriteString(", ")
			values.WriteString(", ")
		}
		names.WriteString(quote(c.name))
		fmt.Fprintf(&values, "$%d::text::%s", i+1, c.cast)
		columns = append(columns, i)
	}
	return "INSERT INTO " + p.table + " (" + names.String() + ") OVERRIDING SYSTEM VALUE VALUES (" + values.String() + ")", columns
}

// updateRow takes the new values of the columns that are set, then the match. A table with a GENERATED ALWAYS identity column, which
// UPDATE can't set, gets its row deleted and inserted in one statement that carries unchanged values over.
func (p *plan) updateRow(unchanged func(i int) bool) (sql string, set, match []int) {
	var b, names strings.Builder
	for i, c := range p.columns {
		if i > 0 && names.Len() > 0 {
			names.WriteString(", ")
		}
		names.WriteString(quote(c.name))
		if unchanged(i) {
			if p.always {
				comma(&b)
				b.WriteString("d." + quote(c.name))
			}
			continue
		}
		comma(&b)
		set = append(set, i)
		if !p.always {
			b.WriteString(quote(c.name) + " = ")
		}
		fmt.Fprintf(&b, "$%d::text::%s", len(set), c.cast)
	}
	where, match := p.match(len(set) + 1)
	switch {
	case p.always:
		return "WITH d AS (DELETE FROM ONLY " + p.table + " t WHERE " + where + " RETURNING *) INSERT INTO " + p.table + " (" + names.String() +
			") OVERRIDING SYSTEM VALUE SELECT " + b.String() + " FROM d", set, match
	case len(set) == 0:
		return "SELECT 1 FROM ONLY " + p.table + " t WHERE " + where, set, match
	}
	return "UPDATE ONLY " + p.table + " t SET " + b.String() + " WHERE " + where, set, match
}

func comma(b *strings.Builder) {
	if b.Len() > 0 {
		b.WriteString(", ")
	}
}
