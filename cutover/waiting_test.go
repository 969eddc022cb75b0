package cutover

import (
	"slices"
	"testing"
)

func TestWaitlistAddsWhatThePairSays(t *testing.T) {
	var w waitlist
	what := ""
	w.set("pair 1", "pair cache: freeze")
	w.set("hook", "a hook")
	w.explain("pair 1", func() string { return what })
	if got, want := w.list(), []string{"a hook", "pair cache: freeze"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	what = "writers to stop"
	if got, want := w.list(), []string{"a hook", "pair cache: freeze: writers to stop"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	w.clear("pair 1")
	if got := w.list(); !slices.Equal(got, []string{"a hook"}) {
		t.Errorf("%q", got)
	}
}
