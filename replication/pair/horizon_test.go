package pair

import (
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// Who keeps the change log from being emptied can be measured; a slot has its own figure, what it retains.
func TestHorizonIsMeasured(t *testing.T) { everyCapture(t, horizonIsMeasured) }

func horizonIsMeasured(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	commit := f.openTransaction()
	began := time.Now()
	f.until("sight of the open transaction", 20*time.Second, func(s Status) bool {
		if f.capture == Logical {
			return time.Since(began) > 2*time.Second
		}
		h := f.pair.reading().HorizonSeconds
		return h != nil && *h > 1
	})
	if h := f.pair.reading().HorizonSeconds; f.capture == Logical && h != nil {
		t.Errorf("logical capture has no log to empty, and says %v s", *h)
	}
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	if f.capture == Trigger {
		f.until("an end of it", 20*time.Second, func(Status) bool {
			h := f.pair.reading().HorizonSeconds
			return h != nil && *h < 1
		})
	}
}
