package redissync

import (
	"testing"
	"time"

	"replicator/internal/redistest"
)

// A freeze is predicted from real work while the application writes, and holds nothing.
func TestPredictFreeze(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	p := r.run(false)
	ctx := r.ctx()
	r.caughtUp()
	app := runCounters(t, r.source, 4)
	for range 2 {
		d, err := p.PredictFreeze(ctx, false)
		if err != nil || d <= 0 || d > 10*time.Second {
			t.Errorf("predicted: %v, %v", d, err)
		}
	}
	if d, err := p.PredictUncompared(ctx, false); err != nil || d <= 0 || d > 10*time.Second {
		t.Errorf("predicted without a comparison: %v, %v", d, err)
	}
	before := app.acked[0].Load()
	eventually(t, "the application writes on", func() bool { return app.acked[0].Load() > before })
	if _, err := p.PredictFreeze(ctx, true); err == nil {
		t.Error("a rollback's freeze was predicted before the switch")
	}
	app.end()
	r.caughtUp()
	r.equal()
}
