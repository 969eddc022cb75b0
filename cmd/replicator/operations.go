package main

import (
	"github.com/spf13/cobra"

	"replicator/internal/admin"
)

func (c *cli) pauseCommand(paused bool) *cobra.Command {
	use, short, said := "resume", "Go on after a pause", "going on"
	long := "Resume lets replication go on exactly where it was paused."
	if paused {
		use, short, said = "pause", "Stop replicating for a while; nothing is lost", "paused; `replicator resume` goes on"
		long = "Pause stops reading from the sources and writing to the targets. The sources keep what is needed to go on, on their disks:\nmind retained_bytes in the status."
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			if err := client.SetPaused(cmd.Context(), paused); err != nil {
				return err
			}
			c.say("%s", said)
			return nil
		},
	}
	return c.clientFlags(cmd)
}

func (c *cli) resyncCommand() *cobra.Command {
	var r admin.ResyncRequest
	cmd := &cobra.Command{
		Use:   "resync --pair P [--table S.T]…",
		Short: "Copy a pair, or some of its tables, anew",
		Long: `Resync copies tables anew while the others stream on; of a Redis pair both sides are compared whole and made equal. The
command ends once that has begun; the status shows its progress.`,
		Example: `  replicator resync --pair main --table public.orders --table public.order_lines
  replicator resync --pair sidekiq && replicator wait phase=streaming`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			if err := client.Resync(cmd.Context(), r); err != nil {
				return err
			}
			c.say("%s is being copied anew", r.Pair)
			return nil
		},
	}
	cmd.Flags().StringVar(&r.Pair, "pair", "", "the pair's name (required)")
	cmd.Flags().StringArrayVar(&r.Tables, "table", nil, "a table as SCHEMA.NAME; may be given several times")
	_ = cmd.MarkFlagRequired("pair") // fails only for a flag that doesn't exist
	return c.clientFlags(cmd)
}
