package demo

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"replicator/internal/demo/shop"
)

// lagProbe measures the lag as the application would: from the moment that a write was acknowledged on the source until it can be
// read on the target.
type lagProbe struct {
	target shop.Endpoint

	mu     sync.Mutex
	latest map[string]mark
	taken  map[string][]time.Duration
}

type mark struct {
	id string
	at time.Time
}

// acknowledged notes a store's latest write; of Redis only the jobs, since each leaves a key with its name.
func (p *lagProbe) acknowledged(store, id string) {
	if store == "redis" && !strings.Contains(id, "-jobs-") {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.latest == nil {
		p.latest = map[string]mark{}
	}
	p.latest[store] = mark{id, time.Now()}
}

func (p *lagProbe) next(store string) (mark, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.latest[store]
	delete(p.latest, store)
	return m, ok
}

const (
	probeEvery = 50 * time.Millisecond
	probeStep  = time.Millisecond
)

// run takes samples of both stores until ctx ends.
func (p *lagProbe) run(ctx context.Context) error {
	pg, err := pgx.Connect(ctx, p.target.PostgresURL)
	if err != nil {
		return err
	}
	defer func() { _ = pg.Close(context.WithoutCancel(ctx)) }()
	options, err := redis.ParseURL(p.target.RedisURL)
	if err != nil {
		return err
	}
	cache := redis.NewClient(options)
	defer func() { _ = cache.Close() }()

	var both sync.WaitGroup
	var errs [2]error
	both.Go(func() {
		errs[0] = p.sample(ctx, "postgres", func(ctx context.Context, id string) (visible bool, err error) {
			err = pg.QueryRow(ctx, "SELECT EXISTS (SELECT FROM ledger_entries WHERE write_id = $1)", id).Scan(&visible)
			return visible, err
		})
	})
	both.Go(func() {
		errs[1] = p.sample(ctx, "redis", func(ctx context.Context, id string) (bool, error) {
			n, err := cache.Exists(ctx, "job:"+id).Result()
			return n > 0, err
		})
	})
	both.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errs[:]...)
}

func (p *lagProbe) sample(ctx context.Context, store string, visible func(context.Context, string) (bool, error)) error {
	p.next(store) // what was acknowledged before has an age already
	for wait(ctx, probeEvery) {
		m, ok := p.next(store)
		if !ok || time.Since(m.at) > probeEvery {
			continue
		}
		for {
			seen, err := visible(ctx, m.id)
			if err != nil {
				return err
			}
			if seen || !wait(ctx, probeStep) {
				break
			}
		}
		if ctx.Err() != nil {
			return nil // unseen so far: no measurement
		}
		p.mu.Lock()
		if p.taken == nil {
			p.taken = map[string][]time.Duration{}
		}
		p.taken[store] = append(p.taken[store], time.Since(m.at))
		p.mu.Unlock()
	}
	return nil
}

// wait returns false if ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Quantiles sum up measurements in seconds; null where there are none.
type Quantiles struct {
	P50 *float64 `json:"p50"`
	P99 *float64 `json:"p99"`
	Max *float64 `json:"max"`
}

func (p *lagProbe) quantiles(store string) Quantiles {
	p.mu.Lock()
	defer p.mu.Unlock()
	return quantiles(p.taken[store])
}

func quantiles(taken []time.Duration) Quantiles {
	if len(taken) == 0 {
		return Quantiles{}
	}
	sorted := slices.Clone(taken)
	slices.Sort(sorted)
	at := func(q float64) *float64 {
		s := sorted[min(len(sorted)-1, int(q*float64(len(sorted))))].Seconds()
		return &s
	}
	return Quantiles{P50: at(0.5), P99: at(0.99), Max: at(1)}
}
