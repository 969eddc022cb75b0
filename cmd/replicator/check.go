package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/redissync"
	"replicator/replication"
	"replicator/replication/pair"
	"replicator/replication/probe"
	"replicator/replication/schema"
	"replicator/replication/trigger"
)

func (c *cli) checkCommand() *cobra.Command {
	var file string
	var asJSON, all bool
	cmd := &cobra.Command{
		Use:   "check [--config FILE] [--json]",
		Short: "Probe both sides and say what is missing, with remedies",
		Long: `Check connects to every server, probes whatever the migration will need and prints what it found. It changes nothing, and
may be run at any time. Exit status 0: the migration can begin (warnings are told); 1: something has to be mended first;
2: the configuration is wrong. Servers that can't be reached are findings, too.`,
		Example: `  replicator check
  replicator check --config replicator.yml --all
  replicator check --json | jq '.findings[] | select(.severity == "error")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file, c.env)
			if err != nil {
				return usage(err)
			}
			findings := probes(cmd.Context(), cfg)
			if cmd.Context().Err() != nil {
				return couldNotTell(cmd.Context().Err())
			}
			return c.report(findings, all, asJSON)
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document, with what is good as well")
	cmd.Flags().BoolVar(&all, "all", false, "show what is good as well")
	return cmd
}

// report tells the findings and returns what they mean for the exit status.
func (c *cli) report(findings []preflight.Finding, all, asJSON bool) error {
	worst := preflight.Worst(findings)
	if asJSON {
		if findings == nil {
			findings = []preflight.Finding{}
		}
		doc := struct {
			OK       bool                `json:"ok"`
			Findings []preflight.Finding `json:"findings"`
		}{worst < preflight.Error, findings}
		if err := c.json(doc); err != nil {
			return err
		}
	} else {
		printFindings(c.stdout, findings, all)
	}
	if worst == preflight.Error {
		return notGood("not ready: mend what is marked error, then check again")
	}
	c.say("ready")
	return nil
}

func printFindings(w io.Writer, findings []preflight.Finding, all bool) {
	good := 0
	for _, f := range findings {
		if f.Severity == preflight.OK && !all {
			good++
			continue
		}
		printFinding(w, f)
	}
	if good > 0 {
		fmt.Fprintf(w, "%d other probes are good (--all shows them)\n", good)
	}
}

// probes runs every pair's probes, pairs side by side, and returns their findings in the configuration's order.
func probes(ctx context.Context, cfg Config) []preflight.Finding {
	results := make([][]preflight.Finding, len(cfg.Postgres)+len(cfg.Redis))
	var g errgroup.Group
	g.SetLimit(4)
	for i, p := range cfg.Postgres {
		g.Go(func() error {
			results[i] = probePostgres(ctx, cfg, p)
			return nil
		})
	}
	for i, p := range cfg.Redis {
		g.Go(func() error {
			results[len(cfg.Postgres)+i] = redissync.Check(ctx, redisOptions(cfg, p))
			return nil
		})
	}
	_ = g.Wait() // what goes wrong is a finding
	var all []preflight.Finding
	for _, r := range results {
		all = append(all, r...)
	}
	return all
}

func probePostgres(ctx context.Context, cfg Config, p PostgresConfig) []preflight.Finding {
	id := postgres.Identity{Migration: cfg.Migration, Pair: p.Name}
	resuming, capture, reason := begun(ctx, p.Target.PostgresURL(), id)
	return probe.Run(ctx, probe.Options{
		Pair: p.Name, SourceURL: p.Source.PostgresURL(), TargetURL: p.Target.PostgresURL(), Capture: string(p.Capture), Copy: string(p.Copy), Slot: p.Slot,
		Catalog: schema.Catalog{Filter: schema.Filter{Include: p.Tables.Include, Exclude: p.Tables.Exclude}, PgDump: cfg.Tools.PgDump},
		Triggers: func(ctx context.Context, conn *pgx.Conn, tables []replication.Table) ([]preflight.Finding, error) {
			findings, err := trigger.Check(ctx, conn, tables)
			if err != nil {
				return nil, err
			}
			owner, err := trigger.OwnerFinding(ctx, conn, cfg.Migration+"/"+p.Name)
			if err == nil && owner != nil {
				findings = append(findings, *owner)
			}
			return findings, err
		},
		ID: id, Resuming: resuming, Chosen: capture, ChosenReason: reason, Connections: p.CopyWorkers + 6,
	})
}

// beganSQL finds the pair's row without which nothing has been made on the target. A pair that has only been named, or is finished,
// begins from the start.
const beganSQL = `SELECT step NOT IN ('new', 'finished') FROM replicator.pair WHERE migration = $1 AND pair = $2`

// begun tells whether the pair has been set up by an earlier run, and by which capture and why. Where that can't be told it hasn't: the probes
// say why.
func begun(ctx context.Context, url string, id postgres.Identity) (yes bool, capture, reason string) {
	conn, err := postgres.Connect(ctx, url, id, "check")
	if err != nil {
		return false, "", ""
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := conn.QueryRow(ctx, beganSQL, id.Migration, id.Pair).Scan(&yes); err != nil || !yes {
		return false, "", ""
	}
	capture, reason = pair.Chosen(ctx, conn, id)
	return true, capture, reason
}

// redisOptions returns what the configuration says of a Redis pair. Epoch, log and metrics are the daemon's to add.
func redisOptions(cfg Config, p RedisConfig) redissync.Options {
	return redissync.Options{
		Migration: cfg.Migration, Name: p.Name, SourceURL: p.Source.URL.Reveal(), TargetURL: p.Target.URL.Reveal(),
		SourceTLS: p.Source.RedisTLS(), TargetTLS: p.Target.RedisTLS(), Databases: p.Databases, Include: p.Keys.Include, Exclude: p.Keys.Exclude,
		Notifications: string(p.Notifications),
	}
}
