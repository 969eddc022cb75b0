package main

import (
	"bufio"
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"replicator/internal/admin"
)

func (c *cli) finishCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "finish [--yes]",
		Short: "Remove all that replicator made on both sides",
		Long: `Finish ends the migration where it stands: the schemas, triggers, publications and slots named replicator are removed from
both sides, and the way back is gone. Data is not touched. Without --yes it asks for the migration's name.`,
		Example: `  replicator finish
  replicator finish --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			if !yes {
				if err := c.confirmFinish(cmd.Context(), client); err != nil {
					return err
				}
			}
			if err := client.Finish(cmd.Context()); err != nil {
				return err
			}
			c.say("finished: nothing of replicator is left on either side")
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c.clientFlags(cmd)
}

// confirmFinish asks for the migration's name.
func (c *cli) confirmFinish(ctx context.Context, client *admin.Client) error {
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	c.say("This ends migration %s at phase %s; there is no way back afterwards. Type its name to go on:", s.Migration, s.Phase)
	line, _ := bufio.NewReader(c.stdin).ReadString('\n')
	if strings.TrimSpace(line) != s.Migration {
		return usage(errors.New("not confirmed, nothing was done: type the migration's name, or give --yes"))
	}
	return nil
}
