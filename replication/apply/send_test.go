package apply

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication"
)

const unique = "CREATE TABLE u (id int PRIMARY KEY, u int UNIQUE); INSERT INTO u VALUES (1, 1), (2, 2)"

// A batch whose set form is refused while others are under way behind it is carried out in order, and they after it.
func TestRefusedBatchAmongOthers(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", unique, "0/1")
	r := d.relation("u", 'd', "id")
	a := d.open()
	var sent []*replication.Batch
	for i := range 12 {
		p := replication.Position(fmt.Sprintf("0/%X", i+2))
		b := batch(p, insert(r, 100+i, 100+i))
		if i%3 == 1 { // the values change hands and back
			b = batch(p, update(r, 2, 99), update(r, 1, 2), update(r, 2, 1), update(r, 2, 98), update(r, 1, 1), update(r, 2, 2), insert(r, 100+i, 100+i))
		}
		sent = append(sent, b)
		if err := a.Send(d.ctx(), b); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Settle(d.ctx()); err != nil {
		t.Fatal(err)
	}
	done := a.Collect()
	if len(done) != len(sent) || a.Position() != "0/D" {
		t.Fatalf("%d batches of %d were reported, up to %s", len(done), len(sent), a.Position())
	}
	for i, one := range done {
		if one.Batch != sent[i] || one.LSN == 0 || (i > 0 && one.LSN < done[i-1].LSN) {
			t.Errorf("batch %d was reported as %+v", i, one)
		}
	}
	if got := d.rows("SELECT count(*) || ' ' || sum(u) FROM u"); !slices.Equal(got, []string{"14 1269"}) {
		t.Errorf("the table holds %v", got)
	}
}

// What is sent behind a batch that can't be carried out at all isn't either.
func TestNothingPassesAFailure(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", unique, "0/1")
	r := d.relation("u", 'd', "id")
	for _, pieces := range []bool{false, true} {
		a := d.open()
		first := 10
		if pieces {
			first = 20
		}
		var err error
		for i, c := range []replication.Change{insert(r, first, first), update(r, 50, 50), insert(r, 30, 30), insert(r, 31, 31)} {
			b := batch(replication.Position(fmt.Sprintf("0/%X", i+2)), c)
			if pieces {
				b.First, b.Last = i == 0, i == 3
			}
			if err = a.Send(d.ctx(), b); err != nil {
				break
			}
		}
		if err == nil {
			err = a.Settle(d.ctx())
		}
		if code(err) != "row-mismatch" || !strings.Contains(err.Error(), "public.u where id = '50'") {
			t.Errorf("pieces %v: %v", pieces, err)
		}
		a.Close(d.ctx())
		want := []string{"0/2", "1", "10", "2"}
		if got := d.rows("SELECT id::text FROM u UNION ALL SELECT position FROM replicator.position"); !slices.Equal(got, want) {
			t.Errorf("pieces %v left %v", pieces, got)
		}
	}
}

// Many rows at once arrive as they are, whatever their values: in binary form where every value has one, as text otherwise.
func TestCopiedRows(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", `CREATE TABLE c (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, at timestamptz, n numeric(10, 2), c char(4), j jsonb);
		CREATE TABLE d (id int, p point, v text)`, "0/1")
	c, p := d.relation("c", 'd', "id"), d.relation("d", 'n')
	for round, at := range []string{"2024-02-29 12:00:00.5+00", "infinity"} {
		a := d.open()
		var changes []replication.Change
		for i := range 2 * copyFrom {
			changes = append(changes, insert(c, 100*round+i, "tab\tback\\slash\nnew\rline\\N"+strings.Repeat("x", 7000*(i%3)), at, "1.5", "ab", `{"a": 1}`), insert(p, i, "(1,-0)", nil))
		}
		changes = append(changes, insert(c, 100*round+50, "", nil, nil, nil, nil))
		if _, err := a.Apply(d.ctx(), batch(replication.Position(fmt.Sprintf("0/%d", round+2)), changes...)); err != nil {
			t.Fatal(err)
		}
		a.Close(d.ctx())
		want := []string{fmt.Sprintf("%d|tab\tback\\slash\nnew\rline\\N|1.50|ab|{\"a\": 1}", 100*round)}
		if got := d.rows(fmt.Sprintf("SELECT concat_ws('|', id, v, n, c::text, j) FROM c WHERE id = %d", 100*round)); !slices.Equal(got, want) {
			t.Errorf("the row is %q, want %q", got, want)
		}
		if got := d.rows(fmt.Sprintf("SELECT id::text FROM c WHERE id = %d AND v = '' AND num_nulls(at, n, c, j) = 4", 100*round+50)); len(got) != 1 {
			t.Error("nulls did not arrive")
		}
		if got := d.rows(fmt.Sprintf("SELECT count(*)::text FROM c WHERE id >= %d AND at = '%s'", 100*round, at)); !slices.Equal(got, []string{fmt.Sprint(2 * copyFrom)}) {
			t.Errorf("%v rows with %s", got, at)
		}
	}
	if got := d.rows("SELECT count(*)::text FROM d WHERE v IS NULL AND p::text = '(1,-0)'"); !slices.Equal(got, []string{fmt.Sprint(4 * copyFrom)}) {
		t.Errorf("%v keyless rows", got)
	}
}

// A trigger of the destination's that swallows rows is noticed, however many come at once, and nothing is applied.
func TestSwallowedRows(t *testing.T) {
	d := newDestination(t, pgtest.Shared(t).Database(t), "", small+`
		CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
		CREATE TRIGGER s BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION swallow(); ALTER TABLE t ENABLE ALWAYS TRIGGER s`, "0/1")
	r := d.relation("t", 'd', "id")
	for _, n := range []int{1, 5 * copyFrom} {
		var changes []replication.Change
		for i := range n {
			changes = append(changes, insert(r, i, "v", nil))
		}
		a := d.open()
		if _, err := a.Apply(d.ctx(), batch("0/2", changes...)); code(err) != "row-mismatch" {
			t.Errorf("%d rows: %v", n, err)
		}
		a.Close(d.ctx())
	}
	if got := d.rows("SELECT position FROM replicator.position"); !slices.Equal(got, []string{"0/1"}) {
		t.Errorf("the position is %v", got)
	}
}
