package main

import (
	"context"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
)

func (c *cli) runCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run [--config FILE]",
		Short: "Replicate, in the foreground",
		Long: `Run replicates until it is told to stop. It copies what is not copied yet, then streams, and serves the status page,
the admin API and the metrics. All its state is on the target: stop it, kill it or move it whenever you like, it goes on
exactly where it was. Several may run at once; one leads, the others take over when it ends.

SIGTERM or Ctrl-C ends it in order; a second one ends it at once, which is just as safe.`,
		Example: `  # one migration by the environment
  export SOURCE_DATABASE_URL=postgres://app:PASSWORD@old.example.com/app TARGET_DATABASE_URL=postgres://app:PASSWORD@new.example.com/app
  export REPLICATOR_TOKEN="$(openssl rand -hex 24)"
  replicator run

  # any number of pairs by a file
  replicator run --config /etc/replicator/replicator.yml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file, c.env)
			if err != nil {
				return usage(err)
			}
			return c.daemon(cmd.Context(), cfg)
		},
	}
	configFlag(cmd, &file)
	return cmd
}

func (c *cli) daemon(ctx context.Context, cfg Config) error {
	return runDaemon(ctx, cfg, newLogger(c.stderr, cfg.Log))
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "", "configuration file; without it the environment configures one migration")
}

// newLogger returns the process's logger.
func newLogger(w io.Writer, cfg LogConfig) *slog.Logger {
	o := &slog.HandlerOptions{Level: cfg.Level.Level()}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
