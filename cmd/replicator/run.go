package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/errgroup"

	"replicator/internal/admin"
	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/metrics"
	"replicator/replication/state"
)

// daemon is the process as a whole: the listeners, and one term of leadership after another. This file and its neighbours
// daemon_*.go are the only wiring of the product.
type daemon struct {
	cfg     Config
	log     *slog.Logger
	server  *admin.Server
	process *prometheus.Registry
	leader  *metrics.Leader
	alive   atomic.Int64 // unix seconds of the last turn of the main loop

	mu sync.Mutex
	// term is what this process leads with, nil while it doesn't lead.
	term *term
	// standing says why it doesn't lead.
	standing []preflight.Finding
	standby  *standby
	seen     map[string]time.Time // problems and when each was first seen
}

// runDaemon replicates as configured until ctx ends.
func runDaemon(ctx context.Context, cfg Config, log *slog.Logger) error {
	d := &daemon{cfg: cfg, log: log.With("migration", cfg.Migration), process: prometheus.NewRegistry(), seen: map[string]time.Time{}}
	d.process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics.NewBuild(d.process, version, runtime.Version())
	d.leader = metrics.NewLeader(d.process)
	d.beat()
	d.server = admin.NewServer(admin.Options{
		Listen: cfg.Admin.Listen, MetricsListen: cfg.Metrics.Listen, Pprof: cfg.Admin.Pprof,
		Tokens:  admin.Tokens{Operator: cfg.Admin.Tokens.Operator.Reveal(), Viewer: cfg.Admin.Tokens.Viewer.Reveal()},
		Backend: d, Gatherer: d, Live: d.live, Ready: d.ready, Log: d.log,
	})
	if err := d.server.Listen(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.server.Run(ctx) })
	g.Go(func() error { return d.lead(ctx) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		d.log.Info("stopped")
		return nil
	}
	return err
}

// Gather implements prometheus.Gatherer: the process's own metrics, and those of the present term.
func (d *daemon) Gather() ([]*dto.MetricFamily, error) {
	gatherers := prometheus.Gatherers{d.process}
	if t := d.leading(); t != nil {
		gatherers = append(gatherers, t.registry)
	}
	return gatherers.Gather()
}

func (d *daemon) beat() { d.alive.Store(time.Now().Unix()) }

// live fails only if our own loop has stopped turning.
func (d *daemon) live() error {
	if age := time.Now().Unix() - d.alive.Load(); age > 60 {
		return fmt.Errorf("the main loop has not turned for %d s", age)
	}
	return nil
}

// ready says why the process is of no use yet. A standby is ready.
func (d *daemon) ready() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.term == nil && d.standby == nil {
		if len(d.standing) > 0 {
			return errors.New(d.standing[0].Message)
		}
		return errors.New("starting")
	}
	return nil
}

func (d *daemon) leading() *term {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.term
}

// show says why the process doesn't lead yet.
func (d *daemon) show(findings []preflight.Finding) {
	d.mu.Lock()
	d.standing = findings
	d.mu.Unlock()
	for _, f := range findings {
		d.log.Error(f.Message, "code", f.Code, "pair", f.Pair, "side", f.Side, "hint", f.Hint)
	}
}

// errRefused ends a daemon whose first look at the servers found what an operator has to mend.
var errRefused = errors.New("the migration can't begin: mend what is marked as an error, see `replicator check`, and start again; nothing has been changed")

// lead takes the lead, works until it is lost, and stands by for it again.
func (d *daemon) lead(ctx context.Context) error {
	beats, stop := context.WithCancel(ctx)
	defer stop()
	go func() { // ends with lead
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-beats.Done():
				return
			case <-tick.C:
				d.beat()
			}
		}
	}()
	for {
		err := d.serve(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errRefused):
			return err
		}
		d.log.Warn("not leading; trying again", "error", err)
		timer := time.NewTimer(2 * time.Second)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// serve is one term: first look, lead, work.
func (d *daemon) serve(ctx context.Context) error {
	if err := d.firstLook(ctx); err != nil {
		return err
	}
	if len(d.cfg.Postgres) == 0 {
		return d.serveRedis(ctx)
	}
	home := d.cfg.Postgres[0].Target.PostgresURL()
	id := postgres.Identity{Migration: d.cfg.Migration, Pair: "-"}
	pool, err := postgres.Pool(ctx, home, id, "state", 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := state.Ensure(ctx, pool); err != nil {
		d.show([]preflight.Finding{problem(err, "", "target")})
		return err
	}
	waiting := &standby{pool: pool, migration: d.cfg.Migration}
	lead, err := state.TakeLead(ctx, home, d.cfg.Migration, func() {
		d.log.Info("standing by: another process leads this migration")
		d.mu.Lock()
		d.standby, d.standing = waiting, nil
		d.mu.Unlock()
	})
	d.mu.Lock()
	d.standby = nil
	d.mu.Unlock()
	if err != nil {
		d.show([]preflight.Finding{problem(err, "", "target")})
		return err
	}
	defer lead.Release(ctx)
	id.Epoch = lead.Epoch
	journal := state.NewJournal(pool, id)
	return d.work(ctx, lead.Epoch, journal, func(ctx context.Context, t *term) error {
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return lead.Watch(ctx) })
		g.Go(func() error { return t.publish(ctx, pool, id) })
		g.Go(func() error { return t.answer(ctx, pool, id) })
		return g.Wait()
	})
}

// firstLook probes everything before anything is made on any server, as long as nothing has been made by an earlier run. What can be
// mended only by people ends the daemon; a server that can't be reached is waited for.
func (d *daemon) firstLook(ctx context.Context) error {
	if d.begunBefore(ctx) {
		return nil
	}
	findings := probes(ctx, d.cfg)
	var bad []preflight.Finding
	unreachable := 0
	for _, f := range findings {
		switch f.Severity {
		case preflight.Error:
			bad = append(bad, f)
			if f.Code == "unreachable" || f.Code == "redis-unreachable" {
				unreachable++
			}
		case preflight.Warning:
			d.log.Warn(f.Message, "code", f.Code, "pair", f.Pair, "side", f.Side, "hint", f.Hint)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	d.show(bad)
	if unreachable > 0 {
		return errors.New("a server can't be reached")
	}
	return errRefused
}

// begunBefore tells whether an earlier run has set up any of the pairs.
func (d *daemon) begunBefore(ctx context.Context) bool {
	for _, p := range d.cfg.Postgres {
		if yes, _, _ := begun(ctx, p.Target.PostgresURL(), postgres.Identity{Migration: d.cfg.Migration, Pair: p.Name}); yes {
			return true
		}
	}
	return false
}

// problem turns an error into a finding.
func problem(err error, pair, side string) preflight.Finding {
	f := preflight.Finding{Code: "retrying", Severity: preflight.Error, Pair: pair, Side: side, Message: err.Error(), Hint: "replicator keeps trying by itself; mend the cause that the message names"}
	var h *preflight.Hinted
	if errors.As(err, &h) {
		f.Code, f.Message, f.Hint = h.Code, h.Err.Error(), h.Hint
	}
	return f
}
