package shop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"replicator/internal/demo/ledger"
	"replicator/internal/retry"
)

// WritersOptions configure Writers. Zero values take the defaults that are named.
type WritersOptions struct {
	// At is the side to write to first.
	At     Endpoint
	Ledger *ledger.Ledger
	// Size is what Load filled in.
	Size Size
	// Rate is the number of Postgres transactions a second, and of Redis writes besides; 100.
	Rate float64
	// Workers is the number of sequential writers for each of the two; 8.
	Workers int
	// Seed makes the choices repeatable, as far as concurrency lets it.
	Seed uint64
	// GiveUp bounds the retries of one write; 60 s.
	GiveUp time.Duration
	// Acknowledged, if set, hears of every acknowledged write. It must not block.
	Acknowledged func(store, id string)
	Log          *slog.Logger
}

// Writers is the running application.
type Writers struct {
	o WritersOptions

	mu      sync.Mutex
	at      Endpoint
	current *clients // nil while not running
	closing closer
}

// NewWriters builds the writers; Run starts them.
func NewWriters(o WritersOptions) *Writers {
	if o.Rate <= 0 {
		o.Rate = 100
	}
	if o.Workers <= 0 {
		o.Workers = 8
	}
	if o.GiveUp <= 0 {
		o.GiveUp = time.Minute
	}
	if o.Acknowledged == nil {
		o.Acknowledged = func(string, string) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Writers{o: o, at: o.At}
}

// At returns the side in use.
func (w *Writers) At() Endpoint {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at
}

// Use repoints the application. When it returns, nothing new goes to the former side's Redis, and what is still in flight on its
// Postgres either ends or meets the gate.
func (w *Writers) Use(ctx context.Context, at Endpoint) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at == at {
		return nil
	}
	if w.current != nil {
		next, err := dial(context.WithoutCancel(ctx), at, w.o.Workers)
		if err != nil {
			return err
		}
		w.closing.close(w.current)
		w.current = next
	}
	w.at = at
	w.o.Log.Info("the application follows the switch", "to", at.Name)
	return nil
}

// Run writes until ctx ends, then lets every attempt in flight end and returns nil. It may be called again afterwards; the ledger
// goes on.
func (w *Writers) Run(ctx context.Context) error {
	w.mu.Lock()
	current, err := dial(context.WithoutCancel(ctx), w.at, w.o.Workers)
	w.current = current
	w.mu.Unlock()
	if err != nil {
		return err
	}
	var workers sync.WaitGroup
	for n := range w.o.Workers {
		if current.pool != nil {
			workers.Go(func() { w.loop(ctx, n, w.rand(n, 3), w.postgres) })
		}
		if current.redis != nil {
			workers.Go(func() { w.loop(ctx, n, w.rand(n, 4), w.redis) })
		}
	}
	workers.Wait()
	w.mu.Lock()
	w.closing.close(w.current)
	w.current = nil
	w.mu.Unlock()
	w.closing.running.Wait()
	return nil
}

func (w *Writers) rand(worker int, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(w.o.Seed+uint64(worker), stream))
}

// loop calls write at the worker's share of the rate. A worker that was held up goes on at the same rate, without catching up.
func (w *Writers) loop(ctx context.Context, worker int, r *rand.Rand, write func(context.Context, int, int, *rand.Rand)) {
	interval := time.Duration(float64(time.Second) * float64(w.o.Workers) / w.o.Rate)
	next := time.Now().Add(interval * time.Duration(worker) / time.Duration(w.o.Workers))
	for tick := 0; ; tick++ {
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		write(ctx, worker, tick, r)
		if next = next.Add(interval); time.Until(next) < 0 {
			next = time.Now()
		}
	}
}

func (w *Writers) postgres(ctx context.Context, worker, _ int, r *rand.Rand) {
	t := pick(r)
	body := t.make(r, w.o.Size)
	entry := w.o.Ledger.Begin(ledger.Worker{Store: "postgres", Kind: kindOrders, Number: worker})
	w.attempt(ctx, entry, temporaryPostgres, func(ctx context.Context, c *clients) error {
		return c.transact(ctx, entry, t.kind, body)
	})
}

func (w *Writers) redis(ctx context.Context, worker, tick int, r *rand.Rand) {
	entry := w.o.Ledger.Begin(ledger.Worker{Store: "redis", Kind: redisKind(r), Number: worker})
	do := redisWrite(r, entry)
	w.attempt(ctx, entry, temporaryRedis, func(ctx context.Context, c *clients) error {
		return redisOutcome(do(ctx, c))
	})
	if err := w.once(ctx, func(ctx context.Context, c *clients) error { return housekeeping(ctx, c, r, worker, tick) }); err != nil {
		w.o.Log.Debug("housekeeping", "err", err)
	}
}

// attempt tries a write until it is acknowledged, it can't succeed, the time to give up has come, or ctx ends, and notes all that
// in the ledger. An attempt in flight is never cut off by ctx.
func (w *Writers) attempt(ctx context.Context, entry *ledger.Write, temporary func(error) bool, do func(context.Context, *clients) error) {
	bounded, cancel := context.WithTimeout(ctx, w.o.GiveUp)
	defer cancel()
	policy := retry.Policy{First: 10 * time.Millisecond, Max: 80 * time.Millisecond}
	err := retry.Do(bounded, policy, func(ctx context.Context) error {
		err := w.once(ctx, do)
		var unknown unknownError
		if errors.As(err, &unknown) {
			entry.Unknown()
			return err
		}
		if err != nil && !temporary(err) {
			return retry.Stop(err)
		}
		return err
	})
	switch {
	case err == nil:
		entry.Acknowledge()
		w.o.Acknowledged(entry.Worker.Store, entry.ID)
	case ctx.Err() != nil:
		entry.Abandon()
	default:
		entry.Fail()
		w.o.Log.Warn("a write failed for good", "write", entry.ID, "err", err)
	}
}

// once makes one attempt on the side in use.
func (w *Writers) once(ctx context.Context, do func(context.Context, *clients) error) error {
	w.mu.Lock()
	c := w.current
	w.mu.Unlock()
	if c == nil {
		return fmt.Errorf("the writers are at rest")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	return do(ctx, c)
}
