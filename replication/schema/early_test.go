package schema

import (
	"fmt"
	"testing"

	"replicator/replication"
)

// Keys come one by one, indexes together; what may rest on a definition after the data waits.
func TestEarly(t *testing.T) {
	key := func(table, name string) Entry {
		return Entry{Type: "CONSTRAINT", Name: name, SQL: `ALTER TABLE ONLY public.` + table + ` ADD CONSTRAINT ` + name + ` PRIMARY KEY (id);`}
	}
	index := func(table, name, more string) Entry {
		return Entry{Type: "INDEX", Name: name, SQL: `CREATE INDEX ` + name + ` ON ` + table + ` USING btree (a);` + more}
	}
	odd := index(`"S p"."on"`, "o", "")
	keys := []Entry{key("a", "a_key"), key("b", "b_key"), {Type: "VIEW", Name: "v", SQL: "CREATE VIEW public.v AS SELECT 1;"}, key("c", "c_key")}
	indexes := []Entry{index("public.a", "a1", ""), index("public.a", "a2", ""), index("public.a", "a3", " ALTER TABLE public.a CLUSTER ON a3;"), odd,
		{Type: "INDEX ATTACH", Name: "x", SQL: "ALTER INDEX public.p ATTACH PARTITION public.a1;"}}
	check := func(when string, want map[replication.TableName]string, got map[replication.TableName][][]Entry) {
		t.Helper()
		if len(got) != len(want) {
			t.Errorf("%s: %d tables, want %d", when, len(got), len(want))
		}
		for name, steps := range got {
			var names [][]string
			for _, step := range steps {
				var s []string
				for _, e := range step {
					s = append(s, e.Name)
				}
				names = append(names, s)
			}
			if fmt.Sprint(names) != want[name] {
				t.Errorf("%s: %s has %v, want %s", when, name, names, want[name])
			}
		}
	}
	public := func(n string) replication.TableName { return replication.TableName{Schema: "public", Name: n} }
	check("plain", map[replication.TableName]string{public("a"): "[[a_key] [a3] [a1 a2]]", public("b"): "[[b_key]]", public("c"): "[[c_key]]", {Schema: "S p", Name: "on"}: "[[o]]"}, Early(keys, indexes))
	keys[2] = Entry{Type: "FUNCTION", Name: "f", SQL: "CREATE FUNCTION public.f() …;"}
	check("after a function", map[replication.TableName]string{public("a"): "[[a_key]]", public("b"): "[[b_key]]"}, Early(keys, indexes))
}
