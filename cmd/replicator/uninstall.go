package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/redissync"
	"replicator/replication/pair"
	"replicator/replication/schema"
	"replicator/replication/state"
)

func (c *cli) uninstallCommand() *cobra.Command {
	var file string
	var yes, sourceOnly bool
	cmd := &cobra.Command{
		Use:   "uninstall [--config FILE] --yes",
		Short: "Remove all that replicator made, without a running daemon",
		Long: `Uninstall does what finish does for a migration whose daemon is gone for good: it works on the databases themselves, and removes the
schemas, triggers, publications and slots named replicator from both sides. Data is not touched. While a daemon leads the migration
it refuses: use finish then. It may be repeated until it succeeds.

A target that is gone for good takes with it the notes of what is to be put back on its source. With --source-only such a source is cleaned
all the same, and what could not be put back is named; targets that can be reached are cleaned as without it.`,
		Example: `  replicator uninstall --yes
  replicator uninstall --config replicator.yml --yes
  replicator uninstall --config replicator.yml --source-only --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file, c.env)
			if err != nil {
				return usage(err)
			}
			if !yes {
				return usage(errors.New("this ends the migration, and there is no way back afterwards: give --yes if that is meant"))
			}
			done, err := c.uninstall(cmd.Context(), cfg, sourceOnly)
			if err != nil {
				return err
			}
			c.say("%s", done)
			return nil
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&sourceOnly, "source-only", false, "clean the source alone where its target is gone for good")
	return cmd
}

// errLed refuses an uninstall beside a running daemon.
var errLed = &preflight.Hinted{Code: "daemon-running", Err: errors.New("a daemon leads this migration"), Hint: "use `replicator finish`, or stop the daemon first"}

func (c *cli) uninstall(ctx context.Context, cfg Config, sourceOnly bool) (done string, err error) {
	log := newLogger(c.stderr, cfg.Log)
	orphan := func(p PostgresConfig, epoch int64) *pair.Pair {
		return pair.New(pair.Options{
			Migration: cfg.Migration, Name: p.Name, SourceURL: p.Source.PostgresURL(), TargetURL: p.Target.PostgresURL(), Epoch: epoch,
			Filter: schema.Filter{Include: p.Tables.Include, Exclude: p.Tables.Exclude}, Adopt: p.Slot, Log: log,
		})
	}
	gone := make([]error, len(cfg.Postgres))
	for i, p := range cfg.Postgres {
		if gone[i] = orphan(p, 0).TargetGone(ctx); gone[i] != nil && !sourceOnly {
			return "", fmt.Errorf("pair %s: %w", p.Name, &preflight.Hinted{Code: "target-unreachable", Err: gone[i],
				Hint: "try again when it answers; if it is gone for good, `replicator uninstall --source-only` cleans the source without the notes that it held"})
		}
	}
	var epoch int64
	if len(cfg.Postgres) > 0 && gone[0] == nil {
		lead, err := c.takeLead(ctx, cfg, cfg.Postgres[0])
		if err != nil {
			return "", err
		}
		defer lead.Release(ctx)
		epoch = lead.Epoch
	}
	for i, p := range cfg.Postgres {
		if gone[i] == nil {
			continue
		}
		if err := orphan(p, 0).SourceUnled(ctx); err != nil {
			return "", fmt.Errorf("pair %s: %w", p.Name, err)
		}
	}
	for _, r := range cfg.Redis {
		o := redisOptions(cfg, r)
		o.Epoch, o.Log = epoch, log
		if err := redissync.New(o).Finish(ctx); err != nil {
			return "", fmt.Errorf("pair %s: %w", r.Name, err)
		}
	}
	done = "uninstalled: nothing of replicator is left on either side"
	if len(cfg.Postgres) == 0 {
		return done, redissync.NewJournal(redisOptions(cfg, cfg.Redis[0])).Finish(ctx)
	}
	// The first pair's target holds the lead: it comes last.
	for i := len(cfg.Postgres) - 1; i >= 0; i-- {
		if gone[i] != nil {
			done = "uninstalled: nothing of replicator is left on the sources, nor on the targets that could be reached"
		}
		if err := c.uninstallPair(ctx, cfg, cfg.Postgres[i], orphan, epoch, gone[i]); err != nil {
			return "", fmt.Errorf("pair %s: %w", cfg.Postgres[i].Name, err)
		}
	}
	return done, nil
}

// uninstallPair cleans one pair. Where the first pair's target, and with it the lead, is gone, the epoch is that of the pair's own target.
func (c *cli) uninstallPair(ctx context.Context, cfg Config, p PostgresConfig, orphan func(PostgresConfig, int64) *pair.Pair, epoch int64, gone error) error {
	if gone == nil {
		if epoch == 0 {
			lead, err := c.takeLead(ctx, cfg, p)
			if err != nil {
				return err
			}
			defer lead.Release(ctx)
			epoch = lead.Epoch
		}
		return orphan(p, epoch).Uninstall(ctx)
	}
	c.say("pair %s: the target can't be reached (%v); its source alone is cleaned", p.Name, gone)
	left, err := orphan(p, 0).UninstallSource(ctx)
	if err != nil {
		return err
	}
	for _, text := range left {
		c.say("pair %s: not put back, since the target's notes are gone: %s", p.Name, text)
	}
	return nil
}

// takeLead takes the migration's lead on a pair's target, or says that a daemon has it.
func (c *cli) takeLead(ctx context.Context, cfg Config, p PostgresConfig) (*state.Lead, error) {
	home := p.Target.PostgresURL()
	pool, err := postgres.Pool(ctx, home, postgres.Identity{Migration: cfg.Migration, Pair: "-"}, "uninstall", 1)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	if err := state.Ensure(ctx, pool); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lead, err := state.TakeLead(ctx, home, cfg.Migration, func() { cancel(errLed) })
	if err != nil && errors.Is(context.Cause(ctx), errLed) {
		return nil, errLed
	}
	return lead, err
}
