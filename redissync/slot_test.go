package redissync

import (
	"strings"
	"testing"
)

func TestSlots(t *testing.T) {
	for key, want := range map[string]int{ // as CLUSTER KEYSLOT says
		"": 0, "foo": 12182, "123456789": 12739, "{foo}.bar": 12182, "x{foo}{bar}": 12182, "{}foo": 9500, "a}{foo}": 12182,
	} {
		if got := slotOf(key); got != want {
			t.Errorf("slot of %q is %d, want %d", key, got, want)
		}
	}
	o := Options{Migration: "shop", Name: "cache"}
	for _, key := range []string{"", "foo", "a}b", "{}x", "{tag}:1", "x{y", "\x00{\xff}"} {
		k := o.temporaryKey(key)
		if slotOf(k) != slotOf(key) || !o.isTemporary(k) || !strings.HasPrefix(k, ownPrefix) {
			t.Errorf("the temporary key of %q is %q in slot %d, not %d", key, k, slotOf(k), slotOf(key))
		}
	}
	if o.isTemporary(o.stateKey()) || slotOf(o.stateKey()) != slotOf(o.elsewhereKey()) {
		t.Error("replicator's own keys of a migration belong into one slot")
	}
}

func TestLayoutIsRead(t *testing.T) {
	t.Parallel()
	nodes := "a1 10.0.0.1:6379@16379,one.example master - 0 0 1 connected 0-99 200 [300->-b2]\n" +
		"b2 10.0.0.2:6379@16379 myself,master - 0 0 2 connected 100-199\n" +
		"c3 :0@0 master,noaddr - 0 0 3 disconnected\n" +
		"d4 10.0.0.4:6379@16379 slave a1 0 0 1 connected\n" +
		"e5 10.0.0.5:6379@16379 master,fail - 0 0 5 disconnected\n" +
		"f6 10.0.0.6:6380@16380 master - 0 0 6 connected\n"
	slots := value{items: []value{{items: []value{{num: 100}, {num: 199}, {items: []value{{str: ""}, {num: 7000}, {str: "b2"}}}}}}}
	l, err := parseLayout(nodes, slots, "seed.example")
	if err != nil {
		t.Fatal(err)
	}
	if len(l.nodes) != 3 || l.nodes[0].address != "one.example:6379" || l.nodes[1].address != "seed.example:7000" || l.nodes[2].address != "10.0.0.6:6380" {
		t.Fatalf("nodes %+v", l.nodes)
	}
	if !l.moving || l.owner[200] != 0 || l.owner[150] != 1 || l.owner[300] != -1 || l.nodes[0].slots != 101 || l.unowned() != slotCount-201 {
		t.Errorf("layout %+v, %d slots unowned", l.nodes, l.unowned())
	}
	if _, err := parseLayout("", value{}, "h"); err == nil {
		t.Error("a cluster without primaries was accepted")
	}
}

func TestAskingGoesBeforeEachCommandOrTransaction(t *testing.T) {
	cmds := []command{{"GET", "k"}, {"MULTI"}, {"DUMP", "k"}, {"EXEC"}, {"TYPE", "k"}}
	var names []string
	for _, c := range asking(cmds) {
		names = append(names, c[0])
	}
	if got := strings.Join(names, " "); got != "ASKING GET ASKING MULTI DUMP EXEC ASKING TYPE" {
		t.Error(got)
	}
	replies := make([]value, len(names))
	for i, n := range names {
		replies[i].str = n
	}
	for i, v := range answered(cmds, replies) {
		if v.str != cmds[i][0] {
			t.Errorf("reply %d is that of %s", i, v.str)
		}
	}
}

// TestOnlyWhatWasDeclinedIsRepeated: commands before a redirection have been run, and must not be run again.
func TestOnlyWhatWasDeclinedIsRepeated(t *testing.T) {
	ok, moved := value{kind: kindSimple, str: "OK"}, value{kind: kindError, str: "ASK 1 h:1"}
	aborted := value{kind: kindError, str: "EXECABORT"}
	for _, c := range []struct {
		cmds    string
		replies []value
		run     int
		ok      bool
	}{
		{"RPUSH RPUSH RPUSH", []value{ok, moved, moved}, 1, true},
		{"RPUSH MULTI SET EXEC", []value{ok, ok, moved, aborted}, 1, true},
		{"MULTI SET EXEC SET", []value{ok, ok, ok, moved}, 3, true},
		{"MULTI SET EXEC", []value{ok, ok, {kind: kindError, str: "EXECABORT out of memory"}}, 3, false},
		{"SET", []value{{kind: kindError, str: "WRONGTYPE"}}, 1, false},
	} {
		var cmds []command
		for _, w := range strings.Fields(c.cmds) {
			cmds = append(cmds, command{w, "k"})
		}
		if run, _, ok := redirectionOf(cmds, c.replies); run != c.run || ok != c.ok {
			t.Errorf("%s: %d were run, redirected %v; want %d, %v", c.cmds, run, ok, c.run, c.ok)
		}
	}
}
