package schema

import (
	"cmp"
	"regexp"
	"strings"

	"replicator/replication"
)

// partitioned takes a table's definition, as the fingerprint has it, apart: its kind, how it is partitioned itself, its bounds, what else it has,
// its parent.
var partitioned = regexp.MustCompile(`^([rp] [pu])( (?:RANGE|LIST|HASH) \(.*?\))?( FOR VALUES .*\)| DEFAULT)?((?: rls)?(?: forced)?)(?: of (` + quoted + `\.` + quoted + `))?$`)

// quoted is a name as quote_ident writes it.
const quoted = `(?:"(?:[^"]|"")+"|[a-z0-9_$]+)`

// repartition is what makes a table a partition, or a table of its own, as it is on the source; empty where it differs in other things.
func repartition(name replication.TableName, source, target string) string {
	s, t := partitioned.FindStringSubmatch(source), partitioned.FindStringSubmatch(target)
	if s == nil || t == nil || s[1] != t[1] || s[2] != t[2] || s[4] != t[4] || (s[3] == "" && s[5] != "") || (t[3] == "" && t[5] != "") {
		return ""
	}
	statement := ""
	if t[3] != "" {
		statement = "ALTER TABLE " + t[5] + " DETACH PARTITION " + name.Quoted()
	}
	if s[3] != "" {
		if statement != "" {
			statement += "; "
		}
		statement += "ALTER TABLE " + s[5] + " ATTACH PARTITION " + name.Quoted() + s[3]
	}
	return statement
}

// partitionOf returns the statement that makes a partition as it is on the source, with the parent's columns, keys and indexes, and names its
// parent; empty for a table that isn't one. pg_dump's output can't serve: it attaches a table that has a key already to a parent of which it
// doesn't know the key.
func partitionOf(name replication.TableName, definition string) (statement string, parent replication.TableName) {
	s := partitioned.FindStringSubmatch(definition)
	if s == nil || s[3] == "" {
		return "", parent
	}
	statement = "CREATE "
	if strings.HasSuffix(s[1], "u") {
		statement += "UNLOGGED "
	}
	statement += "TABLE " + name.Quoted() + " PARTITION OF " + s[5] + s[3]
	if s[2] != "" {
		statement += " PARTITION BY" + s[2]
	}
	if strings.Contains(s[4], "rls") {
		statement += "; ALTER TABLE " + name.Quoted() + " ENABLE ROW LEVEL SECURITY"
	}
	if strings.Contains(s[4], "forced") {
		statement += "; ALTER TABLE " + name.Quoted() + " FORCE ROW LEVEL SECURITY"
	}
	both := parents.FindStringSubmatch(s[5])
	return statement, replication.TableName{Schema: unquote(both[1]), Name: unquote(both[2])}
}

var parents = regexp.MustCompile(`^(` + quoted + `)\.(` + quoted + `)$`)

func unquote(name string) string {
	if inner, ok := strings.CutPrefix(name, `"`); ok {
		return strings.ReplaceAll(strings.TrimSuffix(inner, `"`), `""`, `"`)
	}
	return name
}

// missing are tables that the target lacks, with their definitions on the source.
type missing map[replication.TableName]string

func missingTables(source, target Fingerprint) missing {
	m := missing{}
	merge(source.Items, target.Items, func(s, t *Item) {
		if s != nil && t == nil && s.Kind == KindTable {
			m[replication.TableName{Schema: s.Schema, Name: s.Name}] = s.Definition
		}
	})
	return m
}

// create returns the statement that makes a missing partition; empty for another table, and for a partition at whose top is a table that is
// missing and has to be dumped. depth counts the missing tables above it, which have to be made first.
func (m missing) create(name replication.TableName) (statement string, depth int) {
	statement, parent := partitionOf(name, m[name])
	if statement == "" {
		return "", 0
	}
	if _, above := m[parent]; !above {
		return statement, 0
	}
	above, n := m.create(parent)
	if above == "" {
		return "", n + 1
	}
	return statement, n + 1
}

// Lacking tells how to make those of the tables that the target lacks, with the partitioned tables above them: by statements, in their order, or
// from a dump of the source's tables.
func (f Fingerprint) Lacking(target Fingerprint, tables []replication.TableName) (statements []string, dump []replication.TableName) {
	m := missingTables(f, target)
	done := map[replication.TableName]bool{}
	var visit func(replication.TableName)
	visit = func(name replication.TableName) {
		definition, ok := m[name]
		if !ok || done[name] {
			return
		}
		done[name] = true
		if own, parent := partitionOf(name, definition); own != "" {
			visit(parent)
		}
		if statement, _ := m.create(name); statement != "" {
			statements = append(statements, statement)
			return
		}
		dump = append(dump, name)
	}
	for _, t := range tables {
		visit(t)
	}
	return statements, dump
}

// order puts what others rest on first, and what isn't listed last; partitions after the tables that they are parts of.
func (d *differ) order(a, b Difference) int {
	depth := func(x Difference) int {
		_, n := d.missing.create(x.Table)
		return n
	}
	if c := place(a) - place(b); c != 0 || a.Kind != KindTable {
		return c
	}
	return cmp.Compare(depth(a), depth(b))
}
