package schema

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
	"replicator/replication/schema/schematest"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := postgres.Connect(testContext(t), url, postgres.Identity{Migration: "test", Pair: "main"}, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func mustDump(t *testing.T, url string, version int) []Entry {
	t.Helper()
	entries, err := Dump(testContext(t), DumpOptions{URL: url, PgDump: pgtest.PgDump(version)})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func apply(t *testing.T, conn *pgx.Conn, parts ...[]Entry) {
	t.Helper()
	for _, part := range parts {
		for _, e := range part {
			if err := Apply(testContext(t), conn, e, ""); err != nil {
				t.Fatalf("%v\n%s", err, e.SQL)
			}
		}
	}
}

func firstDifference(a, b string) string {
	la, lb := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(la), len(lb)) {
		if la[i] != lb[i] {
			return strings.Join(la[max(0, i-5):min(i+3, len(la))], "\n") + "\n--- but ---\n" + strings.Join(lb[max(0, i-5):min(i+3, len(lb))], "\n")
		}
	}
	return "one is the beginning of the other"
}

// The target built from the plan has the same pg_dump as the source, also when every entry is applied twice, as after a crash whose
// commits weren't heard of.
func TestRoundTrip(t *testing.T) {
	s := pgtest.Shared(t)
	source, target := s.Database(t), s.Database(t)
	pgtest.Exec(t, source, schematest.Everything, schematest.Rows)
	pgtest.Exec(t, source, schematest.Since(15)...)
	p := NewPlan(mustDump(t, source, 15))
	conn := connect(t, target)
	for range 2 {
		apply(t, conn, p.Pre, p.Keys, p.Indexes, p.Foreign, p.Validate, p.Last)
	}
	want, got := pgtest.DumpSchema(t, source), pgtest.DumpSchema(t, target)
	if want != got {
		t.Fatalf("the dumps differ:\n%s", firstDifference(want, got))
	}
	var notValid []string
	if err := conn.QueryRow(testContext(t), `SELECT coalesce(array_agg(conname::text ORDER BY conname), '{}') FROM pg_constraint WHERE NOT convalidated`).Scan(&notValid); err != nil {
		t.Fatal(err)
	}
	if want := "order_lines_sku_unchecked,users_unchecked"; strings.Join(notValid, ",") != want {
		t.Errorf("not valid on the target: %v, want %s only", notValid, want)
	}
	var populated []string
	if err := conn.QueryRow(testContext(t), `SELECT array_agg(relname::text ORDER BY relname) FROM pg_class WHERE relkind = 'm' AND relispopulated`).Scan(&populated); err != nil {
		t.Fatal(err)
	}
	if want := "aaa_grand_total,totals"; strings.Join(populated, ",") != want {
		t.Errorf("filled materialized views: %v, want %s", populated, want)
	}
}

func TestPlanOrder(t *testing.T) {
	s := pgtest.Shared(t)
	source := s.Database(t)
	pgtest.Exec(t, source, schematest.Everything)
	p := NewPlan(mustDump(t, source, 15))
	find := func(part []Entry, name string) bool {
		for _, e := range part {
			if strings.HasSuffix(e.Name, name) {
				return true
			}
		}
		return false
	}
	for _, c := range []struct {
		part string
		have []Entry
		name string
	}{
		{"Pre", p.Pre, "orders_eu_old"}, {"Keys", p.Keys, "users users_pkey"}, {"Keys", p.Keys, "unique_only_code"}, {"Keys", p.Keys, "users_token"},
		{"Keys", p.Keys, "bookings_no_overlap"}, {"Indexes", p.Indexes, "users_search"}, {"Indexes", p.Indexes, "orders_eu_new_pkey"},
		{"Foreign", p.Foreign, "order_lines_product"}, {"Foreign", p.Foreign, "orders orders_user_id_fkey"}, {"Validate", p.Validate, "products_parent"},
		{"Last", p.Last, "users_touch"}, {"Last", p.Last, "animals_no_delete"}, {"Last", p.Last, "users_name_mood"}, {"Keys", p.Keys, "spenders _RETURN"},
	} {
		if !find(c.have, c.name) {
			t.Errorf("%s lacks %s", c.part, c.name)
		}
	}
	for _, name := range []string{"orders orders_user_id_fkey", "order_lines_order", "order_lines_sku_unchecked"} {
		if find(p.Validate, name) {
			t.Errorf("Validate has %s, which can't be or isn't to be validated", name)
		}
	}
	for i, w := range Waves(p.Indexes) {
		for _, e := range w {
			if len(w) > 1 && e.Type != "INDEX" {
				t.Errorf("wave %d runs %s at once with others", i, e)
			}
		}
	}
	if n := len(Waves(p.Indexes)[0]); n < 4 {
		t.Errorf("only %d indexes at once", n)
	}
}

func TestTables(t *testing.T) {
	s := pgtest.Shared(t)
	source := s.Database(t)
	pgtest.Exec(t, source, schematest.Everything, schematest.Rows)
	conn := connect(t, source)
	list, err := Tables(testContext(t), conn, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]replication.Table{}
	for _, table := range list {
		byName[table.Name.String()] = table
	}
	for name, key := range map[string]string{
		"app.users": "id", "app.products": "sku,Variant", "app.deferred": "", "app.unique_only": "code", "app.audit_log": "", "app.orders_eu_old": "id,region,placed",
		"app.orders_rest": "id,region,placed", "app.animals": "id", "app.dogs": "id", "app.no_columns": "", "app.bookings": "", "public.schema.dot": "select",
		"Odd \"Schema\".weird\nname; Type: TABLE; Schema: x; Owner: y": "Id; with 'quotes'",
	} {
		table, ok := byName[name]
		if !ok {
			t.Errorf("%q is missing", name)
			continue
		}
		var got []string
		for _, k := range table.Key {
			got = append(got, table.Columns[k].Name)
		}
		if strings.Join(got, ",") != key {
			t.Errorf("%q: key %v, want %s", name, got, key)
		}
	}
	for _, name := range []string{"app.scratch", "app.orders", "app.orders_eu", "app.totals"} {
		if _, ok := byName[name]; ok {
			t.Errorf("%s is listed", name)
		}
	}
	users := byName["app.users"]
	if !users.HasPrimaryKey || byName["app.deferred"].HasPrimaryKey || byName["app.unique_only"].ReplicaIdentity != replication.IdentityIndex {
		t.Error("primary keys or replica identities are wrong")
	}
	if users.Pages == 0 || users.Bytes < users.Pages*8192 {
		t.Errorf("users: %d pages, %d bytes", users.Pages, users.Bytes)
	}
	types := map[string]string{}
	for _, c := range users.Columns {
		types[c.Name] = c.Type
		if c.Generated != (c.Name == "initials") {
			t.Errorf("generated(%s) = %v", c.Name, c.Generated)
		}
		if (c.Identity == 'a') != (c.Name == "id") {
			t.Errorf("identity(%s) = %c", c.Name, c.Identity)
		}
	}
	if _, ok := types["gone"]; ok || types["mood"] != "app.mood" || types["moods"] != "app.mood[]" || types["balance"] != "numeric(12,2)" {
		t.Errorf("types %v", types)
	}
	skipped, err := Unreplicated(testContext(t), conn, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if len(skipped) != 1 || skipped[0].Name.String() != "app.scratch" {
		t.Errorf("not replicated: %v, want app.scratch only", skipped)
	}
}

func TestTablesFilter(t *testing.T) {
	s := pgtest.Shared(t)
	source := s.Database(t)
	pgtest.Exec(t, source, schematest.Everything)
	conn := connect(t, source)
	for _, c := range []struct {
		f    Filter
		want string
	}{
		{Filter{Include: []string{"app.orders"}}, "orders_eu_new orders_eu_old orders_rest"},
		{Filter{Include: []string{"app.orders"}, Exclude: []string{"app.orders_eu"}}, "orders_rest"},
		{Filter{Include: []string{"*.d*"}}, "deferred dogs schema.dot"},
		{Filter{Include: []string{"users"}}, "users"},
		{Filter{Include: []string{"app.u*s"}}, "users"},
		{Filter{Include: []string{"*"}, Exclude: []string{"app.*", "Odd*.*"}}, "schema.dot"},
	} {
		list, err := Tables(testContext(t), conn, c.f)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, table := range list {
			got = append(got, table.Name.Name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v: %v, want %s", c.f, got, c.want)
		}
	}
}
