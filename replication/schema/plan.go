package schema

import (
	"strings"

	"replicator/replication"
)

// Plan is a dump in the order in which a target is built around its data. Pre comes before the first row. Keys is what apply needs to
// find rows: primary keys, unique and exclusion constraints, unique indexes, with their REPLICA IDENTITY and CLUSTER marks, and the
// few definitions that rest on them. Indexes holds all other indexes, and at its end the attaching of partitions' indexes to their
// parents'. Foreign adds foreign keys NOT VALID (where that is allowed); Validate validates those that were valid. Last is what
// acts on its own or only makes sense over data: triggers, rules, policies, statistics, comments, materialized views' refresh.
type Plan struct{ Pre, Keys, Indexes, Foreign, Validate, Last []Entry }

// NewPlan sorts a dump's entries into a plan. Each part keeps the dump's order, which respects dependencies; Waves tells what within
// a part may run at once.
func NewPlan(entries []Entry) Plan {
	var p Plan
	var attach []Entry
	partitioned := partitionedTables(entries)
	for _, e := range entries {
		switch {
		case e.Section == PreData:
			p.Pre = append(p.Pre, e)
		case e.Type == "CONSTRAINT" && keyConstraint(e.SQL), e.Type == "INDEX" && uniqueIndex(e.SQL):
			p.Keys = append(p.Keys, e)
		case definitionTypes[e.Type], e.Type == "RULE" && strings.HasPrefix(e.SQL, "CREATE OR REPLACE VIEW"):
			p.Keys = append(p.Keys, e)
		case e.Type == "INDEX":
			p.Indexes = append(p.Indexes, e)
		case e.Type == "INDEX ATTACH":
			attach = append(attach, e)
		case e.Type == "FK CONSTRAINT":
			add, validate, ok := deferValidation(e, partitioned)
			p.Foreign = append(p.Foreign, add)
			if ok {
				p.Validate = append(p.Validate, validate)
			}
		default:
			p.Last = append(p.Last, e)
		}
	}
	p.Indexes = append(p.Indexes, attach...)
	return p
}

// definitionTypes are types that pg_dump puts after the data where they rest on a primary key (GROUP BY its columns, say), and that
// an index may rest on in turn.
var definitionTypes = map[string]bool{
	"FUNCTION": true, "PROCEDURE": true, "AGGREGATE": true, "VIEW": true, "MATERIALIZED VIEW": true, "OPERATOR": true, "OPERATOR CLASS": true,
	"CAST": true, "DEFAULT": true, "DOMAIN": true, "TYPE": true,
}

// Waves cuts a part of a plan into groups: the entries of one group don't rest on one another and may run at the same time on several
// sessions; the groups follow one another. Indexes and constraints of one table wait for each other's locks by themselves.
func Waves(part []Entry) [][]Entry {
	var out [][]Entry
	previous := ""
	for _, e := range part {
		kind := concurrent(e)
		if kind != "" && kind == previous {
			out[len(out)-1] = append(out[len(out)-1], e)
		} else {
			out = append(out, []Entry{e})
		}
		previous = kind
	}
	return out
}

// concurrent names the kind of entries with which e may run at the same time, empty if with none.
func concurrent(e Entry) string {
	switch {
	case e.Type == "INDEX", e.Type == "CONSTRAINT":
		return "index"
	case e.Type == "FK CONSTRAINT" && !strings.Contains(e.SQL, "ADD CONSTRAINT"):
		return "validate"
	}
	return ""
}

// addedConstraint is the beginning of ALTER TABLE [ONLY] schema.table ADD CONSTRAINT name KIND ….
type addedConstraint struct {
	only  bool
	table replication.TableName
	name  string
	rest  []string // tokens from the kind on
}

func parseAddConstraint(sql string) (c addedConstraint, ok bool) {
	t := tokens(sql)
	if len(t) < 3 || t[0] != "ALTER" || t[1] != "TABLE" {
		return c, false
	}
	t = t[2:]
	if t[0] == "ONLY" {
		c.only, t = true, t[1:]
	}
	if len(t) < 7 || t[1] != "." || t[3] != "ADD" || t[4] != "CONSTRAINT" {
		return c, false
	}
	c.table = replication.TableName{Schema: unquoteIdent(t[0]), Name: unquoteIdent(t[2])}
	c.name, c.rest = unquoteIdent(t[5]), t[6:]
	return c, true
}

func keyConstraint(sql string) bool {
	c, ok := parseAddConstraint(sql)
	return ok && (c.rest[0] == "PRIMARY" || c.rest[0] == "UNIQUE" || c.rest[0] == "EXCLUDE")
}

func uniqueIndex(sql string) bool { return strings.HasPrefix(sql, "CREATE UNIQUE INDEX ") }

// partitionedTables returns the partitioned tables among the entries.
func partitionedTables(entries []Entry) map[replication.TableName]bool {
	out := map[replication.TableName]bool{}
	for _, e := range entries {
		if e.Type != "TABLE" {
			continue
		}
		name, ok := createdTable(e.SQL)
		if !ok {
			continue
		}
		t, depth := tokens(e.SQL), 0
		for i := range t {
			switch t[i] {
			case "(":
				depth++
			case ")":
				depth--
			case "PARTITION":
				if depth == 0 && i+1 < len(t) && t[i+1] == "BY" {
					out[name] = true
				}
			}
		}
	}
	return out
}

// createdTable reads the name from CREATE [UNLOGGED] TABLE schema.name, after any SET.
func createdTable(sql string) (replication.TableName, bool) {
	t := tokens(sql)
	for i := 0; i+3 < len(t); i++ {
		if t[i] == "TABLE" && t[i+2] == "." {
			return replication.TableName{Schema: unquoteIdent(t[i+1]), Name: unquoteIdent(t[i+3])}, true
		}
	}
	return replication.TableName{}, false
}

// deferValidation turns the adding of a foreign key into one that doesn't read the table, and its later validation. Foreign keys of
// a partitioned table (pg_dump leaves ONLY out for them) can't be NOT VALID before version 18, and those that point to one keep
// parts that stay not valid: both are added at once, checked. One that isn't valid or not enforced on the source stays so.
func deferValidation(e Entry, partitioned map[replication.TableName]bool) (add, validate Entry, ok bool) {
	c, parsed := parseAddConstraint(e.SQL)
	if !parsed || !c.only || partitioned[references(c.rest)] {
		return e, Entry{}, false
	}
	body, ended := strings.CutSuffix(e.SQL, ";")
	if !ended || endsWith(c.rest, "NOT", "VALID") || endsWith(c.rest, "NOT", "ENFORCED") {
		return e, Entry{}, false
	}
	add, validate = e, e
	add.SQL = body + " NOT VALID;"
	validate.SQL = "ALTER TABLE " + c.table.Quoted() + " VALIDATE CONSTRAINT " + replication.QuoteIdent(c.name) + ";"
	return add, validate, true
}

// references returns the table after REFERENCES.
func references(t []string) replication.TableName {
	for i := 0; i+3 < len(t); i++ {
		if t[i] == "REFERENCES" && t[i+2] == "." {
			return replication.TableName{Schema: unquoteIdent(t[i+1]), Name: unquoteIdent(t[i+3])}
		}
	}
	return replication.TableName{}
}

// endsWith tells whether the last tokens of a statement, but for its semicolon, are these.
func endsWith(t []string, words ...string) bool {
	if n := len(t); n > 0 && t[n-1] == ";" {
		t = t[:n-1]
	}
	if len(t) < len(words) {
		return false
	}
	t = t[len(t)-len(words):]
	for i := range words {
		if t[i] != words[i] {
			return false
		}
	}
	return true
}
