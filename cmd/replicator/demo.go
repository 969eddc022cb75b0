package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"replicator/internal/demo"
)

func (c *cli) demoCommand() *cobra.Command {
	o := demo.Options{Stdout: c.stdout, Stderr: c.stderr}
	cmd := &cobra.Command{
		Use:   "demo [--auto] [--capture logical|trigger] [--rate N] [--duration D] [--keep]",
		Short: "Move a small online shop between servers of its own, to see how it goes",
		Long: `Demo starts two Postgres and two Redis servers in a temporary directory, fills them with a small online shop, writes to it at a
steady rate and replicates it. With --auto it cuts over, and prints what was moved, the lag, the freeze, and a proof from the
writers' own ledger that every acknowledged write is on the target exactly once. Without it the demo stays up and prints the
status page's address and the commands to try, until Ctrl-C.`,
		Example: `  replicator demo
  replicator demo --auto
  replicator demo --auto --json | jq .lost_writes
  replicator demo --auto --capture trigger --rate 500 --duration 1m`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch o.Capture {
			case "logical", "trigger":
			default:
				return usage(errors.New("--capture: give logical or trigger"))
			}
			if o.Rate <= 0 || o.Duration <= 0 {
				return usage(errors.New("--rate and --duration must be above zero"))
			}
			err := demo.Run(cmd.Context(), o)
			if errors.Is(err, demo.ErrFailed) || err == nil {
				return err
			}
			return couldNotTell(err)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Auto, "auto", false, "cut over by itself, prove the result and end")
	f.StringVar(&o.Capture, "capture", "logical", "logical or trigger")
	f.Float64Var(&o.Rate, "rate", 200, "Postgres transactions a second, and as many Redis writes")
	f.DurationVar(&o.Duration, "duration", 20*time.Second, "how long to stream before --auto cuts over")
	f.BoolVar(&o.Keep, "keep", false, "leave the servers' directory in place")
	f.BoolVar(&o.JSON, "json", false, "print the result of --auto as one JSON document")
	return cmd
}
