package redissync

import (
	"testing"

	"replicator/internal/redistest"
)

// A pause is remembered by the servers, whoever leads, and forgotten with the migration.
func TestAPauseIsRemembered(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	ctx := r.ctx()
	j := NewJournal(r.o)
	if _, err := j.Lead(ctx); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{false, true, false, true} {
		if err := j.SetPaused(ctx, want); err != nil {
			t.Fatal(err)
		}
		if got, err := NewJournal(r.o).Paused(ctx); got != want || err != nil {
			t.Errorf("paused: %v, %v, want %v", got, err, want)
		}
	}
	if err := j.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := NewJournal(r.o).Paused(ctx); got || err != nil {
		t.Errorf("paused after the end: %v, %v", got, err)
	}
}
