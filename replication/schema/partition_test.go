package schema

import (
	"fmt"
	"slices"
	"testing"

	"replicator/replication"
)

func TestRepartition(t *testing.T) {
	leaf := replication.TableName{Schema: "public", Name: "Leaf"}
	for _, c := range []struct{ source, target, want string }{
		{"r p", "r p", ""},
		{"r p FOR VALUES FROM (1) TO (2) of public.root", "r p", `ALTER TABLE public.root ATTACH PARTITION "public"."Leaf" FOR VALUES FROM (1) TO (2)`},
		{"r p", "r p FOR VALUES IN ('x of y') of public.root", `ALTER TABLE public.root DETACH PARTITION "public"."Leaf"`},
		{"r p DEFAULT of public.root", "r p FOR VALUES FROM (1) TO (2) of old.root", `ALTER TABLE old.root DETACH PARTITION "public"."Leaf"; ALTER TABLE public.root ATTACH PARTITION "public"."Leaf" DEFAULT`},
		{"p p HASH (id) FOR VALUES WITH (modulus 4, remainder 0) rls of public.root", "p p HASH (id) rls", `ALTER TABLE public.root ATTACH PARTITION "public"."Leaf" FOR VALUES WITH (modulus 4, remainder 0)`},
		{"r p rls", "r p", ""},                             // something else differs
		{"r p of public.parent", "r p", ""},                // inheritance
		{"r p FOR VALUES IN (1) of a", "p p LIST (x)", ""}, // another kind
	} {
		if got := repartition(leaf, c.source, c.target); got != c.want {
			t.Errorf("from %q to %q: %q, want %q", c.target, c.source, got, c.want)
		}
	}
}

// Each table that the target lacks is made by a statement, after those above it, or dumped with those above it.
func TestLacking(t *testing.T) {
	item := func(name, definition string) Item {
		return Item{Kind: KindTable, Schema: "public", Table: name, Name: name, Definition: definition}
	}
	root := item("root", "p p LIST (k)")
	source := Fingerprint{Major: 17, Items: []Item{
		item("A", `r p FOR VALUES FROM (1) TO (2) of public."mid ""1"" of x"`),
		item("alone", "r p"),
		item("leaf", "r p DEFAULT rls forced of public.root"),
		item(`mid "1" of x`, `p p RANGE (id) FOR VALUES IN ('b) of a.b') of public.root`),
		item("of new", "r p FOR VALUES WITH (modulus 2, remainder 0) of public.root2"),
		root,
		item("root2", "p p HASH (id)"),
	}}
	target := Fingerprint{Major: 17, Items: []Item{root}}
	var tables []replication.TableName
	for _, n := range []string{"A", "alone", "leaf", "of new"} {
		tables = append(tables, replication.TableName{Schema: "public", Name: n})
	}
	statements, dump := source.Lacking(target, tables)
	want := []string{
		`CREATE TABLE "public"."mid ""1"" of x" PARTITION OF public.root FOR VALUES IN ('b) of a.b') PARTITION BY RANGE (id)`,
		`CREATE TABLE "public"."A" PARTITION OF public."mid ""1"" of x" FOR VALUES FROM (1) TO (2)`,
		`CREATE TABLE "public"."leaf" PARTITION OF public.root DEFAULT; ALTER TABLE "public"."leaf" ENABLE ROW LEVEL SECURITY; ALTER TABLE "public"."leaf" FORCE ROW LEVEL SECURITY`,
	}
	if !slices.Equal(statements, want) {
		t.Errorf("statements\n%q, want\n%q", statements, want)
	}
	if got := fmt.Sprint(dump); got != "[public.alone public.root2 public.of new]" {
		t.Errorf("to be dumped: %s", got)
	}
	for i, d := range source.Diff(target) {
		if i < len(want) && !slices.Contains(want, d.Statement) && d.Statement != "" {
			t.Errorf("%s: %q", d.Message, d.Statement)
		}
		if d.Table.Name == "A" && i == 0 {
			t.Error("a partition comes before its parent")
		}
	}
}
