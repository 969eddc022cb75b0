package redissync

import (
	"context"
	"errors"
	"testing"
	"time"

	"replicator/internal/redistest"
)

func TestJournalSurvivesAFreezeOfEitherSide(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	ctx := r.ctx()
	j := NewJournal(r.o)
	if b, err := j.Load(ctx); b != nil || err != nil {
		t.Fatalf("empty journal: %q, %v", b, err)
	}
	epoch, err := j.Lead(ctx)
	if err != nil || epoch != 1 {
		t.Fatalf("lead: %d, %v", epoch, err)
	}
	save := func(s string) {
		t.Helper()
		started := time.Now()
		if err := j.Save(ctx, []byte(s)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(started); took > time.Second {
			t.Errorf("save took %v", took)
		}
		if b, err := NewJournal(r.o).Load(ctx); string(b) != s || err != nil {
			t.Fatalf("load: %q, %v, want %q", b, err, s)
		}
	}
	save("one")
	for _, c := range []*client{r.b, r.a} {
		c.do("CLIENT", "PAUSE", "100000", "WRITE")
		save("two")
		save("three")
		c.do("CLIENT", "UNPAUSE")
		save("four")
	}
	// A second process waits while the first shows signs of life, and takes over when it gives up.
	keep, stop := context.WithCancel(ctx)
	kept := make(chan error, 1)
	go func() { kept <- j.Keep(keep) }()
	j2 := NewJournal(r.o)
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := j2.Lead(short); err == nil {
		t.Fatal("two lead")
	}
	stop()
	if err := <-kept; err != nil {
		t.Fatal(err)
	}
	if epoch, err = j2.Lead(ctx); err != nil || epoch != 2 {
		t.Fatalf("second lead: %d, %v", epoch, err)
	}
	if err := j.Save(ctx, []byte("stale")); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("a stale leader's save: %v", err)
	}
	if err := j2.Save(ctx, []byte("five")); err != nil {
		t.Fatal(err)
	}
	if b, _ := j2.Load(ctx); string(b) != "five" {
		t.Fatalf("load: %q", b)
	}
	if err := j2.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if v := r.b.do("DBSIZE"); v.num != 0 {
		t.Errorf("%d keys left", v.num)
	}
}
