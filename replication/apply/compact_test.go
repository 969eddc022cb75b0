package apply

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication"
)

// twoColumns is a plan for a table of a key of the given type and a text.
func twoColumns(e *element) *plan {
	return &plan{rel: &replication.Relation{Name: replication.TableName{Schema: "public", Name: "t"}}, key: []int{0}, isKey: []bool{true, false}, elements: []*element{e, textElement}}
}

var net = map[effect]string{inserted: "insert", updated: "update", deleted: "delete", replaced: "replace", vanished: "nothing"}

// What any two or three changes of one row come to, and which contradict each other.
func TestNetEffect(t *testing.T) {
	r := &replication.Relation{}
	changes := map[byte]func(n int) replication.Change{
		'I': func(n int) replication.Change { return insert(r, 1, fmt.Sprint("v", n)) },
		'U': func(n int) replication.Change { return update(r, 1, fmt.Sprint("v", n)) },
		'u': func(int) replication.Change { return update(r, 1, unchanged) },
		'D': func(int) replication.Change { return remove(r, 1, nil) },
	}
	for sequence, want := range map[string]string{
		"I": "insert v0", "U": "update v0", "u": "update unchanged", "D": "delete",
		"IU": "insert v1", "Iu": "insert v0", "ID": "nothing", "II": "refused", "UU": "update v1", "Uu": "update v0", "uU": "update v1", "uu": "update unchanged", "UD": "delete", "UI": "refused",
		"DI": "replace v1", "DU": "refused", "DD": "refused",
		"IDI": "insert v2", "IDU": "refused", "IDD": "refused", "UDI": "replace v2", "DIU": "replace v2", "DIu": "replace v1", "DID": "delete", "DII": "refused", "UDU": "refused", "IUD": "nothing",
	} {
		p := twoColumns(textElement)
		c := newCompactor()
		got := ""
		for n := range len(sequence) {
			ch := changes[sequence[n]](n)
			if !c.add(p, &ch) {
				got = "refused"
			}
		}
		if got == "" {
			if len(c.segments) != 1 || len(c.segments[0].rows) != 1 {
				t.Fatalf("%s: one row became %d segments", sequence, len(c.segments))
			}
			row := c.segments[0].rows[0]
			got = net[row.effect]
			if row.values != nil {
				v := row.values[1]
				if v.Kind == replication.Unchanged {
					got += " unchanged"
				} else {
					got += " " + string(v.Data)
				}
			}
		}
		if got != want {
			t.Errorf("%s comes to %s, want %s", sequence, got, want)
		}
	}
}

// However many rows, used again or not: each key is found as its own row, and only as that; batches of any size leave an empty index behind.
func TestCompactorFindsEachKey(t *testing.T) {
	s := pgtest.Seed(t)
	r := rand.New(rand.NewPCG(s, 2))
	p := twoColumns(textElement)
	rel := p.rel
	for _, n := range []int{1, 31, 32, 33, 5000, 3, 64, 1} {
		c := newCompactor()
		want := map[string]string{}
		for i := range 3 * n {
			key := strconv.Itoa(r.IntN(n) * 7)
			ch := update(rel, key, fmt.Sprint(i))
			if !c.add(p, &ch) {
				t.Fatal("an update was refused")
			}
			want[key] = fmt.Sprint(i)
		}
		got := map[string]string{}
		for _, row := range c.segments[0].rows {
			if old, ok := got[string(row.key[0].Data)]; ok {
				t.Fatalf("key %s stands twice, with %s", row.key[0].Data, old)
			}
			got[string(row.key[0].Data)] = string(row.values[1].Data)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%d keys came to %v, want %v", n, got, want)
		}
		c.done()
		if p.spare == nil || len(p.spare.rows) != 0 || slices.ContainsFunc(p.spare.slots, func(n int32) bool { return n != 0 }) {
			t.Fatalf("%d keys left something behind", n)
		}
	}
}

// Keys of a whole number come in its order, all others by length and bytes; rows of one operation only.
func TestSortedByKey(t *testing.T) {
	for _, c := range []struct {
		e    *element
		keys []string
		want string
	}{
		{elementNamed("bigint"), []string{"10", "-9223372036854775808", "9", "-1", "9223372036854775807", "0", "123456789012", "123456789011", "-10"}, "[-9223372036854775808 -10 -1 0 9 10 123456789011 123456789012 9223372036854775807]"},
		{elementNamed("numeric"), []string{"10", "9", "1234567890", "1234567889", "2"}, "[2 9 10 1234567889 1234567890]"},
		{textElement, []string{"abcdefgz", "abcdefgh", "abcdefg", "b", "", "abcdefghij"}, "[ b abcdefg abcdefgh abcdefgz abcdefghij]"},
		{textElement, []string{"a", "b", "c"}, "[a b c]"},
	} {
		p := twoColumns(c.e)
		s := &segment{plan: p}
		var which []int32
		for i, k := range c.keys {
			s.rows = append(s.rows, row{key: values([]any{k, nil})})
			which = append(which, int32(i))
		}
		var got []string
		for _, i := range s.sorted(which) {
			got = append(got, string(s.rows[i].key[0].Data))
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, want %s", c.e.name, got, c.want)
		}
	}
}

func elementNamed(name string) *element {
	return binaryElements[slices.IndexFunc(binaryElements, func(e *element) bool { return e.name == name })]
}

// A key column that an update changed, by kind, bytes or not at all.
func TestKeyChanged(t *testing.T) {
	p := twoColumns(textElement)
	for _, c := range []struct {
		old, new any
		want     bool
	}{{"1", "1", false}, {"1", "2", true}, {"1", unchanged, false}, {nil, "1", true}, {"", nil, true}} {
		ch := replication.Change{Op: replication.Update, Relation: p.rel, Old: values([]any{c.old, "x"}), New: values([]any{c.new, "y"})}
		if got := p.keyChanged(&ch); got != c.want {
			t.Errorf("%v to %v: changed %v", c.old, c.new, got)
		}
	}
}
