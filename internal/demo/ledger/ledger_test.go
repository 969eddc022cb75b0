package ledger

import (
	"testing"
	"testing/synctest"
	"time"
)

var orders = Worker{Store: "postgres", Kind: "orders", Number: 2}

func TestCheck(t *testing.T) {
	cases := []struct {
		name  string
		write func(*Write)
		found int
		want  Report
	}{
		{"acknowledged and there", (*Write).Acknowledge, 1, Report{Acknowledged: 1}},
		{"acknowledged and absent", (*Write).Acknowledge, 0, Report{Acknowledged: 1, Lost: 1}},
		{"acknowledged and doubled", (*Write).Acknowledge, 3, Report{Acknowledged: 1, Duplicated: 2}},
		{"failed and absent", (*Write).Fail, 0, Report{}},
		{"failed and there", (*Write).Fail, 1, Report{Phantom: 1}},
		{"abandoned and there", (*Write).Abandon, 1, Report{Phantom: 1}},
		{"unknown, failed, there", func(w *Write) { w.Unknown(); w.Fail() }, 1, Report{}},
		{"unknown, failed, absent", func(w *Write) { w.Unknown(); w.Fail() }, 0, Report{}},
		{"unknown, failed, doubled", func(w *Write) { w.Unknown(); w.Fail() }, 2, Report{Duplicated: 1}},
		{"unknown, acknowledged, absent", func(w *Write) { w.Unknown(); w.Acknowledge() }, 0, Report{Acknowledged: 1, Lost: 1}},
		{"in flight and there", func(*Write) {}, 1, Report{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := New("r1")
			w := l.Begin(orders)
			c.write(w)
			got := l.Check("orders", map[string]int{w.ID: c.found})
			got.Details = nil
			if got.String() != c.want.String() {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestCheckFindsForeignWrites(t *testing.T) {
	l := New("r1")
	l.Begin(orders).Acknowledge()
	for _, id := range []string{"r2-orders-2-1", "r1-orders-2-2", "r1-orders-3-1", "r1-jobs-2-1", "r1-orders-2-0", "nonsense", ""} {
		r := l.Check("orders", map[string]int{"r1-orders-2-1": 1, id: 1})
		if r.Phantom != 1 || r.Lost != 0 || r.Duplicated != 0 {
			t.Errorf("%q: %v, want one phantom", id, r)
		}
	}
}

func TestCheckCount(t *testing.T) {
	l := New("r1")
	l.Begin(orders).Acknowledge()
	l.Begin(orders).Acknowledge()
	w := l.Begin(orders)
	w.Unknown()
	w.Acknowledge()
	l.Begin(orders).Fail()
	for value, want := range map[int64]Report{2: {Lost: 1}, 3: {}, 4: {}, 5: {Duplicated: 1}} {
		r := l.CheckCount(orders, value)
		if r.Acknowledged != 3 || r.Lost != want.Lost || r.Duplicated != want.Duplicated {
			t.Errorf("counter at %d: %v, want %v", value, r, want)
		}
	}
}

func TestGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New("r1")
		pass := func(d time.Duration) { <-time.After(d) } // by the bubble's clock: exact, and at once
		step := func(d time.Duration) {
			pass(d)
			l.Begin(orders).Acknowledge()
		}
		step(0)
		step(3 * time.Second)
		step(time.Second)
		if g := l.LongestGap("postgres"); g != 3*time.Second {
			t.Errorf("longest gap %v, want 3s", g)
		}
		pass(4 * time.Second)
		l.ResetGaps()
		pass(time.Second)
		if g := l.LongestGap("postgres"); g != 5*time.Second {
			t.Errorf("a gap still open across the reset is %v, want 5s", g)
		}
		step(0)
		if g := l.LongestGap("postgres"); g != 5*time.Second {
			t.Errorf("the closed gap is %v, want 5s", g)
		}
		if g := l.LongestGap("redis"); g != 0 {
			t.Errorf("a store never written to has a gap of %v", g)
		}
	})
}
