package schema

import (
	"slices"

	"replicator/replication"
)

// Early returns, by table, the keys and indexes of a plan that can be built as soon as that table holds its rows, whatever has become of the
// other tables: in steps that follow one another, within which they may run at the same time. It leaves out what may rest on definitions
// that come after the data; Waves of the plan's parts hold those too.
func Early(keys, indexes []Entry) map[replication.TableName][][]Entry {
	alone, together := map[replication.TableName][]Entry{}, map[replication.TableName][]Entry{}
	add := func(e Entry) {
		if name, ok := builtOn(e); ok && exclusive(e) {
			alone[name] = append(alone[name], e)
		} else if ok {
			together[name] = append(together[name], e)
		}
	}
	defined := false
	for _, e := range keys {
		if e.Type != "CONSTRAINT" && e.Type != "INDEX" {
			// A view can't be part of an index, a function can.
			defined = defined || !slices.Contains([]string{"VIEW", "MATERIALIZED VIEW", "RULE", "DEFAULT"}, e.Type)
			continue
		}
		if !defined {
			add(e)
		}
	}
	for _, e := range indexes {
		if e.Type == "INDEX" && !defined {
			add(e)
		}
	}
	out := map[replication.TableName][][]Entry{}
	for name, entries := range alone {
		for _, e := range entries {
			out[name] = append(out[name], []Entry{e})
		}
	}
	for name, entries := range together {
		out[name] = append(out[name], entries)
	}
	return out
}

// exclusive tells whether an entry locks its table against the building of other indexes.
func exclusive(e Entry) bool { return e.Type != "INDEX" || slices.Contains(tokens(e.SQL), "ALTER") }

// builtOn returns the table of a key or an index.
func builtOn(e Entry) (name replication.TableName, ok bool) {
	if c, ok := parseAddConstraint(e.SQL); ok {
		return c.table, e.Type == "CONSTRAINT"
	}
	t := tokens(e.SQL)
	for i, word := range t {
		if word != "ON" {
			continue
		}
		if i+1 < len(t) && t[i+1] == "ONLY" {
			i++
		}
		if i+3 >= len(t) || t[i+2] != "." {
			return name, false
		}
		return replication.TableName{Schema: unquoteIdent(t[i+1]), Name: unquoteIdent(t[i+3])}, true
	}
	return name, false
}

// Relations returns the tables, indexes and views that an entry of the plan names as what it is made on or of.
func Relations(e Entry) (out []replication.TableName) {
	t := tokens(e.SQL)
	for i := 1; i+2 < len(t); i++ {
		if t[i+1] == "." && slices.Contains([]string{"TABLE", "ONLY", "ON", "REFERENCES", "INDEX", "PARTITION", "VIEW", "COLUMN"}, t[i-1]) {
			out = append(out, replication.TableName{Schema: unquoteIdent(t[i]), Name: unquoteIdent(t[i+2])})
		}
	}
	return out
}
