package pair

import (
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// A prediction counts in the transaction that a freeze would wait for, and leaves what is known to be equal alone.
func TestPredictFreeze(t *testing.T) { everyCapture(t, predictFreeze) }

func predictFreeze(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	ctx := f.ctx()
	if d, err := f.pair.PredictUncompared(ctx, false); err != nil || d <= 0 || d > 20*time.Second {
		t.Errorf("a freeze without a comparison: %v, %v", d, err)
	}
	if known, err := f.pair.knownEqual(ctx, false); err != nil || len(known) != 0 {
		t.Errorf("known to be equal without a comparison: %v, %v", known, err)
	}
	if d, err := f.pair.PredictFreeze(ctx, false); err != nil || d <= 0 || d > 20*time.Second {
		t.Fatalf("an idle pair's freeze: %v, %v", d, err)
	}
	if known, err := f.pair.knownEqual(ctx, false); err != nil || len(known) != 2 {
		t.Errorf("known to be equal: %v (%v), want both tables", known, err)
	}
	commit := f.openTransaction()
	const open = time.Second
	committed := make(chan error, 1)
	time.AfterFunc(open, func() { committed <- commit() })
	d, err := f.pair.PredictFreeze(ctx, false)
	if err != nil || d < open*9/10 {
		t.Errorf("with a writer open for %v the freeze would last %v (%v)", open, d, err)
	}
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	f.caughtUp()
	if _, err := f.pair.PredictFreeze(ctx, true); err == nil || !strings.Contains(err.Error(), "direction") {
		t.Errorf("a rollback's freeze was predicted before the switch: %v", err)
	}
}
