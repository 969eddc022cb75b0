package redissync

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"replicator/internal/redistest"
)

// TestPrepareEndsUnderAnyLoad keeps far more keys dirty than are ever copied, and some of them changing: a comparison that waits for all
// that is dirty each time it looks again at a key that moves takes as many rounds of the queue as it looks.
func TestPrepareEndsUnderAnyLoad(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	const keys, hot = 200, 20
	var ids []keyID
	for i := range keys {
		ids = append(ids, keyID{0, fmt.Sprintf("k%d", i)})
		r.a.do("SET", ids[i].key, strings.Repeat("v", 1000))
	}
	r.o.BigBytes = 1 // dozens of round trips for each key
	p := r.run(false)
	r.caughtUp()
	f, err := p.current(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			f.queue.mark(ids...)
			f.queue.await(ctx, f.queue.state().first)
		}
	})
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			r.a.try("SETRANGE", fmt.Sprintf("k%d", i%hot), fmt.Sprint(i%1000), fmt.Sprint(i))
		}
	})
	before := p.Status().KeysCopied
	if err := p.Prepare(r.ctx(), false); err != nil {
		t.Fatal(err)
	}
	rounds := float64(p.Status().KeysCopied-before) / keys
	t.Logf("Prepare took %.1f rounds of the queue", rounds)
	// Two comparisons of all keys, by one lane of five, are about eight rounds; seven looks again in each would be fourteen more.
	if rounds > 16 {
		t.Errorf("Prepare took %.1f rounds of the queue", rounds)
	}
}
