package trigger_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// A table that must be logged again gets its trigger even where there is always a transaction of more than a second.
func TestScanEndsAmongOverlappingTransactions(t *testing.T) {
	f := newFixture(t, hotDDL)
	s := scanned(t, f)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	begun := make(chan struct{}, 100)
	for _, where := range []string{"41", "42"} {
		conn := pgtest.Connect(t, f.source)
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := conn.Exec(context.Background(), "BEGIN; UPDATE hot SET n = n + 1 WHERE id = "+where); err != nil {
					t.Error(err)
					return
				}
				begun <- struct{}{}
				// Two that overlap by half.
				if _, err := conn.Exec(context.Background(), "SELECT pg_sleep(1.1); COMMIT"); err != nil {
					t.Error(err)
					return
				}
			}
		})
		<-begun
		select {
		case <-begun:
		case <-time.After(550 * time.Millisecond): // the other one begins half a transaction later
		}
	}
	go func() {
		for range begun {
		}
	}()
	defer close(begun)
	defer wg.Wait()
	defer cancel()
	f.exec("INSERT INTO hot SELECT i, 'ß', 0, repeat('x', 1000) FROM generate_series(100, 600) i")
	eventually(t, "all updates are logged", func() bool {
		columns, _ := f.trigger("hot")
		return columns == 0
	})
	cancel()
	wg.Wait()
	s.caughtUp()
	f.equal()
}
