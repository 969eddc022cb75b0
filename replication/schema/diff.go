package schema

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"replicator/replication"
)

// Difference is something in which the target's catalog isn't as the source's.
type Difference struct {
	Kind   string                `json:"kind"` // of the item, see KindTable and others
	Table  replication.TableName `json:"table"`
	Object string                `json:"object"` // the item's name
	// Message says what differs.
	Message string `json:"message"`
	// Statement is what to run on the target; empty where the remedy isn't one statement and Message says what to do.
	Statement string `json:"statement,omitempty"`
	// Blocks tells that rows can't be applied, or would be applied wrongly or be refused, until this is mended.
	Blocks bool `json:"blocks"`
	// Resync tells that the rows of the table have to be copied again afterwards: the source computed values that no stream carries.
	Resync bool `json:"resync,omitempty"`
}

// Diff compares the source's fingerprint with the target's and returns what the target has to change, in the order of execution.
// Tables, columns, types and sequences come with the exact statement; objects of which only the definition is spelled differently
// count only if both servers are of one major version, since versions deparse differently. Extra objects on the target are
// reported where they can refuse rows; extra tables, views and functions are the target's own business.
func (f Fingerprint) Diff(target Fingerprint) []Difference {
	d := differ{sameVersion: f.Major == target.Major, missing: missingTables(f, target)}
	d.renamed = renames(f.Items, target.Items)
	merge(f.Items, target.Items, d.item)
	slices.SortStableFunc(d.out, d.order)
	return d.out
}

// place is where in the order a kind of difference belongs.
func place(d Difference) int {
	kinds := []string{KindExtension, KindSchema, KindType, KindSequence, KindFunction, KindTable, KindColumn, KindIndex, KindConstraint}
	if i := slices.Index(kinds, d.Kind); i >= 0 {
		return i
	}
	return len(kinds)
}

type differ struct {
	sameVersion bool
	missing     missing // their parts aren't told
	renamed     map[replication.TableName]map[string]string
	out         []Difference
}

func (d *differ) item(s, t *Item) {
	i := s
	if s == nil {
		i = t
	}
	table := replication.TableName{Schema: i.Schema, Name: i.Table}
	if _, lacks := d.missing[table]; lacks && i.Kind != KindTable && i.Table != "" {
		return
	}
	if i.Inherited && (i.Kind != KindColumn || s == nil || t == nil) {
		return // the parent's difference and its remedy cover it
	}
	add := func(blocks bool, statement, format string, args ...any) *Difference {
		d.out = append(d.out, Difference{Kind: i.Kind, Table: table, Object: i.Name, Message: fmt.Sprintf(format, args...), Statement: statement, Blocks: blocks})
		return &d.out[len(d.out)-1]
	}
	name := replication.TableName{Schema: i.Schema, Name: i.Name}
	switch {
	case i.Kind == KindColumn:
		d.column(s, t, table, add)
	case t == nil:
		switch i.Kind {
		case KindTable:
			if statement, _ := d.missing.create(name); statement != "" {
				add(true, statement, "the target lacks the partition %s", name)
				return
			}
			add(true, "", "the target lacks table %s: run pg_dump --schema-only --table='%s' on the source and apply its output to the target", name, patternFor(name))
		case KindSchema:
			add(false, "CREATE SCHEMA "+replication.QuoteIdent(i.Name), "the target lacks schema %s", i.Name)
		case KindExtension:
			add(false, "CREATE EXTENSION "+replication.QuoteIdent(i.Name)+" WITH SCHEMA "+replication.QuoteIdent(i.Schema), "the target lacks extension %s", i.Name)
		case KindConstraint:
			add(false, "ALTER TABLE "+table.Quoted()+" ADD CONSTRAINT "+replication.QuoteIdent(i.Name)+" "+i.Definition, "table %s lacks constraint %s on the target", table, i.Name)
		case KindIndex, KindTrigger, KindRule:
			add(false, wholeTable(i.Definition), "table %s lacks %s %s on the target", table, i.Kind, i.Name)
		case KindSequence:
			add(true, createSequence(name, i.Definition), "the target lacks sequence %s", name)
		case KindType:
			add(true, createType(name, i.Definition), "the target lacks type %s: make it as it is on the source", name)
		default:
			add(false, "", "the target lacks %s: make it as it is on the source", i)
		}
	case s == nil:
		switch i.Kind {
		case KindConstraint:
			add(true, "ALTER TABLE "+table.Quoted()+" DROP CONSTRAINT "+replication.QuoteIdent(i.Name), "table %s has a constraint %s on the target only, which may refuse rows", table, i.Name)
		case KindIndex:
			add(strings.HasPrefix(i.Definition, "CREATE UNIQUE"), "DROP INDEX "+name.Quoted(), "table %s has an index %s on the target only", table, i.Name)
		case KindTrigger, KindRule:
			add(i.Kind == KindRule, "DROP "+strings.ToUpper(i.Kind)+" "+replication.QuoteIdent(i.Name)+" ON "+table.Quoted(), "table %s has a %s %s on the target only", table, i.Kind, i.Name)
		}
	case !s.equal(*t) && !d.onlyRenamed(s, t, table):
		d.altered(s, t, name, table, add)
	}
}

func (d *differ) altered(s, t *Item, name, table replication.TableName, add func(bool, string, string, ...any) *Difference) {
	switch s.Kind {
	case KindType:
		if statement, ok := addLabels(name, s.Definition, t.Definition); ok {
			if statement != "" {
				add(true, statement, "type %s lacks values on the target", name)
			}
			return
		}
		if d.sameVersion {
			add(true, "", "type %s is %s on the source and %s on the target: make it the same by ALTER TYPE or ALTER DOMAIN", name, s.Definition, t.Definition)
		}
	case KindSequence:
		add(false, alterSequence(name, s.Definition), "sequence %s has other parameters on the target", name)
	case KindTable:
		if d.sameVersion {
			if statement := repartition(name, s.Definition, t.Definition); statement != "" {
				add(true, statement, "table %s is a partition of other bounds or parents on the target (%s, not %s)", name, t.Definition, s.Definition)
				return
			}
			add(true, "", "table %s is of another kind or has other parents on the target (%s, not %s): make it the same by ALTER TABLE", name, t.Definition, s.Definition)
		}
	case KindConstraint:
		if unvalidated(s.Definition) == unvalidated(t.Definition) || !d.sameVersion {
			return
		}
		q := replication.QuoteIdent(s.Name)
		add(true, "ALTER TABLE "+table.Quoted()+" DROP CONSTRAINT "+q+", ADD CONSTRAINT "+q+" "+s.Definition, "constraint %s of table %s is %s on the target, not %s", s.Name, table, t.Definition, s.Definition)
	case KindIndex:
		if d.sameVersion {
			index := replication.TableName{Schema: s.Schema, Name: s.Name}
			add(strings.HasPrefix(t.Definition, "CREATE UNIQUE"), "DROP INDEX "+index.Quoted()+"; "+wholeTable(s.Definition), "index %s of table %s is another on the target", s.Name, table)
		}
	case KindExtension, KindSchema: // versions of extensions may differ
	default:
		if d.sameVersion {
			add(false, "", "%s is defined otherwise on the target: make it as it is on the source", s)
		}
	}
}

func (d *differ) column(s, t *Item, table replication.TableName, add func(bool, string, string, ...any) *Difference) {
	alter := "ALTER TABLE " + table.Quoted() + " "
	switch {
	case t == nil:
		if from, ok := d.renamed[table][s.Name]; ok {
			add(true, alter+"RENAME COLUMN "+replication.QuoteIdent(from)+" TO "+replication.QuoteIdent(s.Name), "column %s of table %s is called %s on the target", s.Name, table, from)
			return
		}
		x := add(true, s.Column.addColumn(alter, s.Name), "table %s lacks column %s on the target", table, s.Name)
		x.Resync = s.Column.Missing == "" && s.Column.Generated == "" && (s.Column.Default != "" || s.Column.Identity != "" || s.Column.NotNull)
	case s == nil:
		for _, from := range d.renamed[table] {
			if from == t.Name {
				return
			}
		}
		add(t.Column.NotNull && t.Column.Default == "" && t.Column.Identity == "", alter+"DROP COLUMN "+replication.QuoteIdent(t.Name), "table %s has column %s on the target only", table, t.Name)
	default:
		a, b := s.comparable().Column, t.comparable().Column
		if !d.sameVersion {
			b.Default = a.Default // may be spelled otherwise
		}
		if s.Inherited {
			b.Type, b.Collation = a.Type, a.Collation
		}
		if *a == *b {
			return
		}
		changes, blocks := a.alterations(*b, s.Name)
		if len(changes) == 0 {
			add(true, "", "column %s of table %s is %s on the source and %s on the target: drop and add it there, then resync the table", s.Name, table, a.sql(), b.sql())
			return
		}
		add(blocks, alter+strings.Join(changes, ", "), "column %s of table %s is %s on the source and %s on the target", s.Name, table, a.sql(), b.sql())
	}
}

// renames finds columns that have only another name on the target: in a table that lacks exactly one and has exactly one too many, of the same
// definition at the same place.
func renames(source, target []Item) map[replication.TableName]map[string]string {
	lacks, extra := map[replication.TableName][]Item{}, map[replication.TableName][]Item{}
	merge(source, target, func(s, t *Item) {
		switch {
		case s != nil && t == nil && s.Kind == KindColumn:
			n := replication.TableName{Schema: s.Schema, Name: s.Table}
			lacks[n] = append(lacks[n], *s)
		case s == nil && t.Kind == KindColumn:
			n := replication.TableName{Schema: t.Schema, Name: t.Table}
			extra[n] = append(extra[n], *t)
		}
	})
	out := map[replication.TableName]map[string]string{}
	for n, l := range lacks {
		if e := extra[n]; len(l) == 1 && len(e) == 1 && l[0].Column.Rank == e[0].Column.Rank && l[0].equal(e[0]) && l[0].Column.Missing == "" {
			out[n] = map[string]string{l[0].Name: e[0].Name}
		}
	}
	return out
}

// onlyRenamed tells whether the definitions differ in nothing but columns that the target has under other names: the server writes the new names
// into them when the columns are renamed. A foreign key also names columns of the table it refers to.
func (d *differ) onlyRenamed(s, t *Item, table replication.TableName) bool {
	a, b := tokens(s.Definition), tokens(t.Definition)
	if s.Kind == KindType || s.Kind == KindSequence || len(d.renamed) == 0 || len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		to, from := unquoteIdent(a[i]), unquoteIdent(b[i])
		known := d.renamed[table][to] == from
		if !known && slices.Contains(a[:i], "REFERENCES") {
			for _, renamed := range d.renamed {
				known = known || renamed[to] == from
			}
		}
		if !known {
			return false
		}
	}
	return true
}

// sql returns the column's definition after its name.
func (c ColumnDefinition) sql() string {
	s := c.Type
	if c.Collation != "" {
		s += " COLLATE " + c.Collation
	}
	switch {
	case c.Generated == "s":
		s += " GENERATED ALWAYS AS (" + c.Default + ") STORED"
	case c.Generated == "v":
		s += " GENERATED ALWAYS AS (" + c.Default + ") VIRTUAL"
	case c.Default != "":
		s += " DEFAULT " + c.Default
	}
	if c.Identity != "" {
		s += " GENERATED " + identityWord(c.Identity) + " AS IDENTITY"
	}
	if c.NotNull {
		s += " NOT NULL"
	}
	return s
}

func identityWord(identity string) string {
	if identity == "a" {
		return "ALWAYS"
	}
	return "BY DEFAULT"
}

// addColumn returns the statements, each beginning with alter, that add the column so that old rows read what they read on the source.
func (c ColumnDefinition) addColumn(alter, name string) string {
	q := replication.QuoteIdent(name)
	if c.Missing == "" {
		return alter + "ADD COLUMN " + q + " " + c.sql()
	}
	first := c
	first.Default = "((" + replication.QuoteLiteral(c.Missing) + "::" + c.Type + "[])[1])"
	then := "DROP DEFAULT"
	if c.Default != "" {
		then = "SET DEFAULT " + c.Default
	}
	return alter + "ADD COLUMN " + q + " " + first.sql() + "; " + alter + "ALTER COLUMN " + q + " " + then
}

// alterations returns the actions that make the target's column t like c; none if there is no such way. blocks: the difference can
// refuse or change rows.
func (c ColumnDefinition) alterations(t ColumnDefinition, name string) (actions []string, blocks bool) {
	if c.Generated != t.Generated || c.Generated != "" && c.Default != t.Default {
		return nil, true
	}
	column := "ALTER COLUMN " + replication.QuoteIdent(name) + " "
	if c.Type != t.Type || c.Collation != t.Collation {
		s := column + "TYPE " + c.Type
		if c.Collation != "" {
			s += " COLLATE " + c.Collation
		}
		actions, blocks = append(actions, s+" USING "+replication.QuoteIdent(name)+"::"+c.Type), true
	}
	if c.NotNull != t.NotNull {
		verb := map[bool]string{true: "SET NOT NULL", false: "DROP NOT NULL"}[c.NotNull]
		actions, blocks = append(actions, column+verb), blocks || t.NotNull
	}
	if c.Default != t.Default {
		verb := "DROP DEFAULT"
		if c.Default != "" {
			verb = "SET DEFAULT " + c.Default
		}
		actions = append(actions, column+verb)
	}
	if c.Identity != t.Identity {
		switch {
		case t.Identity == "":
			actions = append(actions, column+"ADD GENERATED "+identityWord(c.Identity)+" AS IDENTITY")
		case c.Identity == "":
			actions = append(actions, column+"DROP IDENTITY")
		default:
			actions = append(actions, column+"SET GENERATED "+identityWord(c.Identity))
		}
	}
	return actions, blocks
}

func unvalidated(definition string) string { return strings.TrimSuffix(definition, " NOT VALID") }

// sequenceWords are the parameters in the order of a sequence's definition.
var sequenceWords = []string{"AS ", "START WITH ", "INCREMENT BY ", "MINVALUE ", "MAXVALUE ", "CACHE "}

func sequenceOptions(definition string) string {
	// The type's name may consist of several words; six values follow it.
	f := strings.Fields(definition)
	n := len(f) - 6
	if n < 1 {
		return ""
	}
	values := append([]string{strings.Join(f[:n], " ")}, f[n:]...)
	var out []string
	for i, w := range sequenceWords {
		out = append(out, w+values[i])
	}
	return strings.Join(append(out, map[string]string{"t": "CYCLE"}[values[6]]), " ")
}

func createSequence(name replication.TableName, definition string) string {
	return strings.TrimSpace("CREATE SEQUENCE " + name.Quoted() + " " + sequenceOptions(definition))
}

func alterSequence(name replication.TableName, definition string) string {
	s := strings.TrimSpace("ALTER SEQUENCE " + name.Quoted() + " " + sequenceOptions(definition))
	if !strings.HasSuffix(s, " CYCLE") {
		s += " NO CYCLE"
	}
	return s
}

func enumLabels(definition string) ([]string, bool) {
	text, ok := strings.CutPrefix(definition, "enum ")
	if !ok {
		return nil, false
	}
	var out []string
	err := json.Unmarshal([]byte(text), &out)
	return out, err == nil
}

func createType(name replication.TableName, definition string) string {
	labels, ok := enumLabels(definition)
	if !ok {
		return ""
	}
	for i := range labels {
		labels[i] = strings.TrimSpace(replication.QuoteLiteral(labels[i]))
	}
	return "CREATE TYPE " + name.Quoted() + " AS ENUM (" + strings.Join(labels, ", ") + ")"
}

// addLabels returns the statements that give an enum on the target the values that it lacks, none if it only has more, which does no
// harm; ok is false if one of the types isn't an enum.
func addLabels(name replication.TableName, source, target string) (statements string, ok bool) {
	s, ok1 := enumLabels(source)
	t, ok2 := enumLabels(target)
	if !ok1 || !ok2 {
		return "", false
	}
	var out []string
	for i, l := range s {
		if slices.Contains(t, l) {
			continue
		}
		place := ""
		if i > 0 {
			place = " AFTER" + " " + strings.TrimSpace(replication.QuoteLiteral(s[i-1]))
		} else if len(t) > 0 {
			place = " BEFORE" + " " + strings.TrimSpace(replication.QuoteLiteral(t[0]))
		}
		out = append(out, "ALTER TYPE "+name.Quoted()+" ADD VALUE "+strings.TrimSpace(replication.QuoteLiteral(l))+place)
	}
	return strings.Join(out, "; "), true
}

// wholeTable takes ONLY out of an index's definition, with which the server describes a partitioned one: it is to be made on the
// partitions too.
func wholeTable(definition string) string {
	l := lexer{src: definition}
	previous := ""
	for {
		t, ok, err := l.next()
		if !ok || err != nil {
			return definition
		}
		text := definition[t.start:t.end]
		if previous == "ON" && text == "ONLY" {
			return definition[:t.start] + strings.TrimLeft(definition[t.end:], " ")
		}
		if text == "(" {
			return definition
		}
		previous = text
	}
}

// patternFor writes a name as a pattern of pg_dump --table: quoted, so that nothing in it is special.
func patternFor(n replication.TableName) string { return strings.ReplaceAll(n.Quoted(), "'", `'\''`) }
