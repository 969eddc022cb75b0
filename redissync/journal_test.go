package redissync

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
	"replicator/internal/retry"
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
		if c == r.b { // as Freeze does before it holds the target's writes
			if err := New(r.o).markElsewhere(ctx); err != nil {
				t.Fatal(err)
			}
		}
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
	tries := 0
	err = retry.Do(ctx, retry.Policy{First: time.Millisecond}, func(ctx context.Context) error {
		tries++
		return fmt.Errorf("journal: %w", j.Save(ctx, []byte("stale")))
	})
	if !errors.Is(err, ErrNotLeader) || tries != 1 {
		t.Fatalf("a stale leader's save, tried %d times: %v", tries, err)
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

// TestAJournalWithoutItsSource goes on where the target alone knows everything, and refuses where the source may know more.
func TestAJournalWithoutItsSource(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{Persistent: true})
	ctx := r.ctx()
	old := NewJournal(r.o)
	if _, err := old.Lead(ctx); err != nil {
		t.Fatal(err)
	}
	if err := old.Save(ctx, []byte("switched")); err != nil {
		t.Fatal(err)
	}
	if err := old.release(ctx); err != nil {
		t.Fatal(err)
	}
	if err := r.source.Kill(); err != nil {
		t.Fatal(err)
	}
	j := NewJournal(r.o)
	epoch, err := j.Lead(ctx)
	if err != nil || epoch != 2 {
		t.Fatalf("lead without the source: %d, %v", epoch, err)
	}
	if b, err := j.Load(ctx); string(b) != "switched" || err != nil {
		t.Fatalf("load without the source: %q, %v", b, err)
	}
	if err := j.Save(ctx, []byte("rolling back")); err != nil {
		t.Fatalf("save without the source: %v", err)
	}
	// A rollback's freeze: the source takes the records.
	if err := r.source.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := New(r.o).markElsewhere(ctx); err != nil {
		t.Fatal(err)
	}
	r.b.do("CLIENT", "PAUSE", "600000", "WRITE")
	if err := j.Save(ctx, []byte("rolled back")); err != nil {
		t.Fatal(err)
	}
	if err := r.source.Kill(); err != nil {
		t.Fatal(err)
	}
	var h *preflight.Hinted
	if b, err := NewJournal(r.o).Load(ctx); !errors.As(err, &h) || h.Hint == "" {
		t.Fatalf("an outdated record %q was loaded: %v", b, err)
	}
	r.b.do("CLIENT", "UNPAUSE")
	if _, err := NewJournal(r.o).Load(ctx); err == nil {
		t.Fatal("an outdated record was loaded after the pause")
	}
	// What stands on the target again is all there is.
	if err := r.source.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := j.Save(ctx, []byte("done")); err != nil {
		t.Fatal(err)
	}
	if err := r.source.Kill(); err != nil {
		t.Fatal(err)
	}
	if b, err := NewJournal(r.o).Load(ctx); string(b) != "done" || err != nil {
		t.Fatalf("load: %q, %v", b, err)
	}
	// The target can't be done without.
	r.source.Start(ctx)
	r.target.Kill()
	if b, err := NewJournal(r.o).Load(ctx); err == nil {
		t.Fatalf("loaded %q without the target", b)
	}
}
