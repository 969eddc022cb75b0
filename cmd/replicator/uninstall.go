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
	var yes bool
	cmd := &cobra.Command{
		Use:   "uninstall [--config FILE] --yes",
		Short: "Remove all that replicator made, without a running daemon",
		Long: `Uninstall does what finish does for a migration whose daemon is gone for good: it works on the databases themselves, and removes the
schemas, triggers, publications and slots named replicator from both sides. Data is not touched. While a daemon leads the migration
it refuses: use finish then. It may be repeated until it succeeds.`,
		Example: `  replicator uninstall --yes
  replicator uninstall --config replicator.yml --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file, c.env)
			if err != nil {
				return usage(err)
			}
			if !yes {
				return usage(errors.New("this ends the migration, and there is no way back afterwards: give --yes if that is meant"))
			}
			if err := c.uninstall(cmd.Context(), cfg); err != nil {
				return err
			}
			c.say("uninstalled: nothing of replicator is left on either side")
			return nil
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	return cmd
}

// errLed refuses an uninstall beside a running daemon.
var errLed = &preflight.Hinted{Code: "daemon-running", Err: errors.New("a daemon leads this migration"), Hint: "use `replicator finish`, or stop the daemon first"}

func (c *cli) uninstall(ctx context.Context, cfg Config) error {
	log := newLogger(c.stderr, cfg.Log)
	var epoch int64
	if len(cfg.Postgres) > 0 {
		lead, err := c.takeLead(ctx, cfg)
		if err != nil {
			return err
		}
		defer lead.Release(ctx)
		epoch = lead.Epoch
	}
	for _, r := range cfg.Redis {
		o := redisOptions(cfg, r)
		o.Epoch, o.Log = epoch, log
		if err := redissync.New(o).Finish(ctx); err != nil {
			return fmt.Errorf("pair %s: %w", r.Name, err)
		}
	}
	if len(cfg.Postgres) == 0 {
		return redissync.NewJournal(redisOptions(cfg, cfg.Redis[0])).Finish(ctx)
	}
	// The first pair's target holds the lead: it comes last.
	for i := len(cfg.Postgres) - 1; i >= 0; i-- {
		p := cfg.Postgres[i]
		err := pair.New(pair.Options{
			Migration: cfg.Migration, Name: p.Name, SourceURL: p.Source.PostgresURL(), TargetURL: p.Target.PostgresURL(), Epoch: epoch,
			Filter: schema.Filter{Include: p.Tables.Include, Exclude: p.Tables.Exclude}, Adopt: p.Slot, Log: log,
		}).Uninstall(ctx)
		if err != nil {
			return fmt.Errorf("pair %s: %w", p.Name, err)
		}
	}
	return nil
}

// takeLead takes the migration's lead, or says that a daemon has it.
func (c *cli) takeLead(ctx context.Context, cfg Config) (*state.Lead, error) {
	home := cfg.Postgres[0].Target.PostgresURL()
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
