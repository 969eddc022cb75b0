package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"replicator/internal/admin"
)

func (c *cli) verifyCommand() *cobra.Command {
	var r admin.VerifyRequest
	var wait, asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [--pair P] [--table S.T]… [--repair] [--wait] [--json]",
		Short: "Compare both sides, row by row and key by key",
		Long: `Verify compares what is on the sources with what is on the targets while replication goes on. With --wait it ends with
status 0 if both are equal and 1 if they differ (naming rows and keys), with --repair 0 if every difference was mended.
Without --wait it ends once the comparison has begun.`,
		Example: `  replicator verify --wait
  replicator verify --pair main --table public.orders --wait
  replicator verify --wait --json | jq '.pairs[].tables[] | select(.equal | not)'
  replicator verify --pair main --repair --wait`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(r.Tables) > 0 && r.Pair == "" {
				return usage(errors.New("--table needs --pair, to know whose table it is"))
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			v, err := client.StartVerify(cmd.Context(), r)
			if err != nil {
				return err
			}
			if !wait {
				c.say("the comparison has begun; `replicator verify --wait` begins one and waits")
				if asJSON {
					return c.json(v)
				}
				return nil
			}
			if v, err = c.verified(cmd.Context(), client, v); err != nil {
				return couldNotTell(err)
			}
			if asJSON {
				if err := c.json(v); err != nil {
					return err
				}
			}
			return c.verdict(v, r.Repair, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Pair, "pair", "", "only this pair")
	f.StringArrayVar(&r.Tables, "table", nil, "only this table, as SCHEMA.NAME; may be given several times")
	f.BoolVar(&r.Repair, "repair", false, "make the target's differing rows or keys like the source's")
	f.BoolVar(&wait, "wait", false, "wait for the result")
	f.BoolVar(&asJSON, "json", false, "print one JSON document")
	return c.clientFlags(cmd)
}

// verified waits for the end of a verification.
func (c *cli) verified(ctx context.Context, client *admin.Client, began admin.Verification) (admin.Verification, error) {
	w := &waiter{cli: c, client: client}
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	var v admin.Verification
	err := w.steadily(ctx, func(ctx context.Context, alive func()) error {
		for {
			var err error
			if v, err = client.Verification(ctx); err != nil {
				return err
			}
			alive()
			if v.ID == nil || *v.ID != *began.ID {
				return fmt.Errorf("verification %s is not known any more, replicator was restarted: begin it again", *began.ID)
			}
			if v.State != "running" {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	})
	return v, err
}

// verdict tells people the result and returns what it means for the exit status.
func (c *cli) verdict(v admin.Verification, repair, asJSON bool) error {
	if v.State == "failed" {
		printProblem(c.stderr, *v.Problem)
		return couldNotTell(errors.New("the comparison could not be made"))
	}
	out := c.stdout
	if asJSON {
		out = c.stderr
	}
	repaired := 0
	for _, p := range v.Pairs {
		repaired += p.Repaired
		printVerified(out, p)
	}
	switch n := *v.Mismatches; {
	case n == 0:
		c.say("equal")
		return nil
	case repair && repaired == n:
		c.say("%d differences, all mended", n)
		return nil
	default:
		return notGood("%d differences: mend them by --repair, or copy the tables anew by `replicator resync`", n)
	}
}

func printVerified(w io.Writer, p admin.VerifiedPair) {
	fmt.Fprintf(w, "%s: %d compared, %d differ", p.Pair, p.Compared, p.Mismatches)
	if p.Repaired > 0 {
		fmt.Fprintf(w, ", %d mended", p.Repaired)
	}
	fmt.Fprintln(w)
	for _, t := range p.Tables {
		if t.Equal {
			continue
		}
		fmt.Fprintf(w, "  %s: %d on the source, %d on the target\n", t.Table, t.SourceRows, t.TargetRows)
		for _, d := range t.Differences {
			fmt.Fprintf(w, "    %s %s\n", d.Kind, d.Key)
		}
	}
}
