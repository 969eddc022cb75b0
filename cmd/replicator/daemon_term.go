package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"replicator/cutover"
	"replicator/internal/admin"
	"replicator/internal/preflight"
	"replicator/metrics"
	"replicator/redissync"
	"replicator/replication/pair"
	"replicator/replication/schema"
)

// term is one term of leadership: the pairs and the coordinator of one epoch.
type term struct {
	d           *daemon
	epoch       int64
	log         *slog.Logger
	registry    *prometheus.Registry
	postgres    []*pair.Pair
	redis       []*redissync.Pair
	coordinator *cutover.Coordinator
	journal     journal

	mu       sync.Mutex
	paused   bool
	finished bool
}

// journal is what a migration remembers by: the records of its cutovers, and whether the operator has paused it.
type journal interface {
	cutover.Journal
	Paused(ctx context.Context) (bool, error)
	SetPaused(ctx context.Context, paused bool) error
}

// work runs a term until ctx ends or the lead is lost. hold keeps the lead, and returns when it is lost.
func (d *daemon) work(ctx context.Context, epoch int64, journal journal, hold func(context.Context, *term) error) error {
	record, err := journal.Load(ctx)
	if err != nil {
		return err
	}
	reverse, err := cutover.Active(record)
	if err != nil {
		return err
	}
	paused, err := journal.Paused(ctx)
	if err != nil {
		return err
	}
	t, err := d.newTerm(epoch, journal, paused)
	if err != nil {
		return err
	}
	d.log.Info("leading", "epoch", epoch, "reverse", reverse, "paused", paused)
	d.mu.Lock()
	d.term, d.standing = t, nil
	d.mu.Unlock()
	d.leader.Set(true)
	defer func() {
		d.mu.Lock()
		d.term = nil
		d.mu.Unlock()
		d.leader.Set(false)
	}()
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range t.postgres {
		g.Go(func() error { return ended("postgres pair "+p.Name(), p.Run(ctx, reverse)) })
	}
	for _, p := range t.redis {
		g.Go(func() error { return t.runRedis(ctx, p, reverse) })
	}
	g.Go(func() error { return ended("cutover coordinator", t.coordinator.Run(ctx)) })
	g.Go(func() error { return hold(ctx, t) })
	return g.Wait()
}

func ended(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// runRedis runs a pair; what only an operator can mend is shown in its status, and tried again slowly.
func (t *term) runRedis(ctx context.Context, p *redissync.Pair, reverse bool) error {
	for {
		err := p.Run(ctx, reverse)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var h *preflight.Hinted
		if t.isFinished() || err == nil {
			<-ctx.Done()
			return ctx.Err()
		}
		if errors.As(err, &h) && h.Code == "redis-superseded" {
			return err
		}
		t.log.Error("redis pair stopped", "pair", p.Name(), "error", err)
		timer := time.NewTimer(10 * time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

func (d *daemon) newTerm(epoch int64, journal journal, paused bool) (*term, error) {
	t := &term{d: d, epoch: epoch, log: d.log, registry: prometheus.NewRegistry(), journal: journal, paused: paused}
	var pairs []cutover.Pair
	for _, c := range d.cfg.Postgres {
		p := pair.New(pair.Options{
			Migration: d.cfg.Migration, Name: c.Name, SourceURL: c.Source.PostgresURL(), TargetURL: c.Target.PostgresURL(), Epoch: epoch,
			Filter: schema.Filter{Include: c.Tables.Include, Exclude: c.Tables.Exclude}, PgDump: d.cfg.Tools.PgDump, CopyWorkers: c.CopyWorkers,
			Capture: string(c.Capture), Adopt: c.Slot, NoCopy: c.Copy == "none", Paused: paused, NoCalmVerify: d.cfg.Cutover.Verify != "frozen",
			RetainedWarning: int64(c.Guard.WarnRetained), RetainedLimit: int64(c.Guard.DropRetained), Log: d.log,
			Metrics: func(read func() metrics.PostgresReading) *metrics.Postgres {
				return metrics.NewPostgres(t.registry, c.Name, read)
			},
		})
		t.postgres = append(t.postgres, p)
		pairs = append(pairs, t.checking(p))
	}
	for _, c := range d.cfg.Redis {
		var p *redissync.Pair
		o := redisOptions(d.cfg, c)
		o.Epoch, o.Log = epoch, d.log
		o.Metrics = metrics.NewRedis(t.registry, c.Name, func() metrics.RedisReading {
			s := p.Status()
			dirty := float64(s.DirtyKeys)
			left, limit, kept := p.Memory()
			return metrics.RedisReading{LagSeconds: s.LagSeconds, DirtyKeys: &dirty, MemoryHeadroomBytes: left, FeedBufferBytes: kept, FeedBufferLimitBytes: limit}
		})
		p = redissync.New(o)
		if paused {
			p.Pause()
		}
		t.redis = append(t.redis, p)
		pairs = append(pairs, t.checking(p))
	}
	hooks, err := d.cfg.Cutover.hooks()
	if err != nil {
		return nil, err
	}
	t.coordinator = cutover.New(cutover.Options{
		Migration: d.cfg.Migration, Pairs: pairs, Journal: journal, Hooks: hooks, Budget: d.cfg.Cutover.FreezeBudget, Log: d.log,
		Metrics: metrics.NewCutover(t.registry),
		OnEvent: func(cutover.Event) {
			d.server.Publish(admin.Event{Type: admin.EventCutover, Data: cutoverStatus(t.coordinator.Status())})
		},
	})
	return t, nil
}

// movable is a pair of either kind, whose cutover may leave out the comparison under the freeze.
type movable interface {
	cutover.Pair
	PredictUncompared(ctx context.Context, reverse bool) (time.Duration, error)
}

// checking applies the configured moment of verification to a pair.
func (t *term) checking(p movable) cutover.Pair {
	switch t.d.cfg.Cutover.Verify {
	case "calm":
		return calmPair{uncheckedPair: uncheckedPair{p}, t: t}
	case "off":
		return uncheckedPair{p}
	}
	return p
}

// uncheckedPair is switched without comparing.
type uncheckedPair struct{ movable }

// Verify finds nothing.
func (uncheckedPair) Verify(context.Context, bool) (int, error) { return 0, nil }

// PredictFreeze is of a freeze that compares nothing.
func (p uncheckedPair) PredictFreeze(ctx context.Context, reverse bool) (time.Duration, error) {
	return p.PredictUncompared(ctx, reverse)
}

// Waiting is the pair's own.
func (p uncheckedPair) Waiting() string {
	if w, ok := p.movable.(cutover.Waiter); ok {
		return w.Waiting()
	}
	return ""
}

// calmPair is compared before the freeze, while the application writes, and not in it.
type calmPair struct {
	uncheckedPair
	t *term
}

// Prepare compares as well.
func (p calmPair) Prepare(ctx context.Context, reverse bool) error {
	if err := p.uncheckedPair.Prepare(ctx, reverse); err != nil {
		return err
	}
	results, err := p.t.Verify(ctx, admin.VerifyRequest{Pair: p.Name()})
	if err != nil {
		return err
	}
	for _, r := range results {
		if r.Mismatches > 0 {
			return &preflight.Hinted{Code: "cutover-verify-mismatch", Err: fmt.Errorf("found %d differences before the freeze", r.Mismatches),
				Hint: "see them by `replicator verify --pair " + p.Name() + "`, and mend them with --repair"}
		}
	}
	return nil
}

func (t *term) isFinished() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.finished
}

// serveRedis is a term of a migration without Postgres: journal and lead stand in Redis.
func (d *daemon) serveRedis(ctx context.Context) error {
	journal := redissync.NewJournal(redisOptions(d.cfg, d.cfg.Redis[0]))
	epoch, err := journal.Lead(ctx)
	if err != nil {
		d.show([]preflight.Finding{problem(err, d.cfg.Redis[0].Name, "target")})
		return err
	}
	return d.work(ctx, epoch, journal, func(ctx context.Context, _ *term) error { return journal.Keep(ctx) })
}
