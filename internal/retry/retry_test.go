package retry

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestDoTriesUntilItSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls, start := 0, time.Now()
		err := Do(t.Context(), Policy{First: time.Second, Max: 4 * time.Second}, func(context.Context) error {
			if calls++; calls < 6 {
				return errors.New("busy")
			}
			return nil
		})
		if err != nil || calls != 6 {
			t.Fatalf("err %v after %d calls, want nil after 6", err, calls)
		}
		// Waits of 1, 2, 4, 4, 4 s, of each at most half taken off.
		if d := time.Since(start); d < 7500*time.Millisecond || d > 15*time.Second {
			t.Errorf("waited %v, want between 7.5s and 15s", d)
		}
	})
}

func TestDoStops(t *testing.T) {
	cause := errors.New("wrong password")
	calls := 0
	err := Do(t.Context(), Policy{}, func(context.Context) error { calls++; return Stop(cause) })
	if err != cause || calls != 1 { //nolint:errorlint // the mark must be gone
		t.Fatalf("err %v after %d calls, want the cause itself after 1", err, calls)
	}
}

func TestDoBoundsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		if err := Do(t.Context(), Policy{Attempts: 3}, func(context.Context) error { calls++; return errors.New("x") }); err == nil || calls != 3 {
			t.Fatalf("err %v after %d calls, want an error after 3", err, calls)
		}
	})
}

func TestDoEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := Do(ctx, Policy{First: time.Minute, Max: time.Minute}, func(context.Context) error { return errors.New("busy") })
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("err %v, want it to name the deadline", err)
		}
	})
}

func TestDoKeepsWhatWrapsAStop(t *testing.T) {
	cause := errors.New("wrong password")
	err := Do(t.Context(), Policy{}, func(context.Context) error { return fmt.Errorf("connect: %w", Stop(cause)) })
	if !errors.Is(err, cause) || err.Error() != "connect: wrong password" {
		t.Fatalf("err %v", err)
	}
}
