package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"replicator/internal/admin"
	"replicator/internal/preflight"
)

func (c *cli) cutoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cutover start | status | abort",
		Short: "Move the application to the targets",
		Long: `A cutover checks everything, holds the application's writes, lets the targets catch up, proves both sides equal, prepares
the way back and lets the application write to the targets: preflight, hooks, freeze, fence, drain, sequences, verify, arm,
switch, done. Until the switch whatever fails, takes too long or is aborted is undone, and the sources accept writes again.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return usage(errors.New("say start, status or abort"))
		},
	}
	cmd.AddCommand(c.startCommand("start", "Begin a cutover", false, `  replicator cutover start --dry-run --wait      # everything that changes nothing, with an estimate of the freeze
  replicator cutover start --wait
  replicator cutover start --wait --freeze-budget 10s --json`), c.cutoverStatusCommand(), c.abortCommand())
	return cmd
}

func (c *cli) rollbackCommand() *cobra.Command {
	return c.startCommand("rollback", "Move the application back to the sources", true, `  replicator rollback --dry-run --wait
  replicator rollback --wait`)
}

func (c *cli) startCommand(use, short string, reverse bool, example string) *cobra.Command {
	r := admin.CutoverRequest{Reverse: reverse}
	var wait, asJSON bool
	cmd := &cobra.Command{
		Use:   use + " [--dry-run] [--wait] [--freeze-budget D]",
		Short: short,
		Long: short + `.

With --wait the phases are shown as they pass, and the exit status is the outcome: 0 done, 1 aborted (everything is as
before, and the reason is told), 3 could not tell. Without it the command ends once the attempt has begun. If an attempt
is running already, its name is told and the status is 1.`,
		Example: example,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if r.FreezeBudget < 0 {
				return usage(errors.New("--freeze-budget is negative"))
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			return c.startCutover(cmd.Context(), client, r, wait, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.DryRun, "dry-run", false, "check and rehearse; nothing is frozen and nothing changes")
	f.BoolVar(&wait, "wait", false, "show the phases as they pass and end with the attempt")
	f.DurationVar(&r.FreezeBudget, "freeze-budget", 0, "hold writes at most this long, as in 10s (default: as configured)")
	f.BoolVar(&asJSON, "json", false, "print one JSON document: the attempt's name, with --wait its end")
	return c.clientFlags(cmd)
}

func (c *cli) startCutover(ctx context.Context, client *admin.Client, r admin.CutoverRequest, wait, asJSON bool) error {
	attempt, err := client.StartCutover(ctx, r)
	if err != nil {
		var p *admin.ProblemDocument
		if errors.As(err, &p) && p.Attempt != "" && asJSON {
			return errors.Join(err, c.json(p))
		}
		return err
	}
	if !wait {
		if asJSON {
			return c.json(admin.CutoverAccepted{Attempt: attempt})
		}
		c.say("attempt %s has begun; follow it by `replicator cutover status`, or `replicator wait cutover=done`", attempt)
		return nil
	}
	c.say("attempt %s", attempt)
	end, err := c.follow(ctx, client, attempt)
	if err != nil {
		return couldNotTell(err)
	}
	if asJSON {
		if err := c.json(end); err != nil {
			return err
		}
	}
	return c.outcomeOf(end)
}

// outcomeOf tells people how an attempt ended and returns what that means for the exit status.
func (c *cli) outcomeOf(end admin.CutoverStatus) error {
	for _, f := range end.Findings {
		if f.Severity > preflight.OK {
			printFinding(c.stderr, f)
		}
	}
	if end.Phase == "aborted" || end.Outcome == "aborted" {
		return notGood("attempt %s was aborted%s", deref(end.Attempt), because(end))
	}
	what := "done"
	switch {
	case end.DryRun:
		what = "the rehearsal went well"
		if end.PredictedFreezeSeconds != nil {
			what += fmt.Sprintf("; the freeze would take about %s", seconds(end.PredictedFreezeSeconds))
		}
	case end.FreezeSeconds != nil:
		what += fmt.Sprintf(": writes were held for %s", seconds(end.FreezeSeconds))
	}
	c.say("%s", what)
	return nil
}

func because(s admin.CutoverStatus) string {
	if s.Problem == nil {
		return ""
	}
	text := ": " + s.Problem.Message
	if s.Problem.Hint != "" {
		text += ": " + s.Problem.Hint
	}
	return text
}

// follow shows an attempt's phases until it has ended, across restarts of replicator.
func (c *cli) follow(ctx context.Context, client *admin.Client, attempt string) (admin.CutoverStatus, error) {
	w := &waiter{cli: c, client: client}
	began := time.Now()
	var end admin.CutoverStatus
	var phase, waits string
	enough := errors.New("ended")
	look := func(s admin.CutoverStatus) error {
		if s.Attempt == nil || *s.Attempt != attempt {
			if s.Attempt != nil && *s.Attempt > attempt {
				return fmt.Errorf("attempt %s has ended and %s has begun: look at the status", attempt, *s.Attempt)
			}
			return nil // an event from before ours
		}
		if s.Phase != phase {
			phase, waits = s.Phase, ""
			c.say("%7.3fs  %s", time.Since(began).Seconds(), phase)
		}
		if s.WaitingFor != waits && s.WaitingFor != "" {
			waits = s.WaitingFor
			c.say("          waits for %s", waits)
		}
		if s.Running() {
			return nil
		}
		end = s
		return enough
	}
	err := w.steadily(ctx, func(ctx context.Context, alive func()) error {
		err := client.Events(ctx, func(e admin.Received) error {
			alive()
			switch e.Type {
			case admin.EventStatus:
				var s admin.Status
				if err := json.Unmarshal(e.Data, &s); err != nil {
					return fmt.Errorf("read an event: %w", err)
				}
				return look(s.Cutover)
			case admin.EventCutover:
				var s admin.CutoverStatus
				if err := json.Unmarshal(e.Data, &s); err != nil {
					return fmt.Errorf("read an event: %w", err)
				}
				return look(s)
			}
			return nil
		})
		if errors.Is(err, enough) {
			return nil
		}
		return err
	})
	return end, err
}

func (c *cli) cutoverStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status [--json]",
		Short: "Show the latest attempt",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			s, err := client.Cutover(cmd.Context())
			if err != nil {
				return couldNotTell(err)
			}
			if asJSON {
				return c.json(s)
			}
			if s.Attempt == nil {
				fmt.Fprintln(c.stdout, "no attempt yet")
				return nil
			}
			printCutover(c.stdout, s)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document")
	return c.clientFlags(cmd)
}

func (c *cli) abortCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "abort",
		Short: "Give up the running attempt; possible until its switch",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			s, err := client.Cutover(cmd.Context())
			if err != nil {
				return err
			}
			if !s.Running() {
				return notGood("no attempt is running: the cutover is %s", s.Phase)
			}
			if err := client.AbortCutover(cmd.Context(), *s.Attempt); err != nil {
				return err
			}
			c.say("attempt %s is being undone; `replicator wait cutover=aborted` waits for its end", *s.Attempt)
			return nil
		},
	}
	return c.clientFlags(cmd)
}

func printCutover(w io.Writer, s admin.CutoverStatus) {
	kind := "cutover"
	if s.Direction == "reverse" {
		kind = "rollback"
	}
	if s.DryRun {
		kind += " (dry run)"
	}
	fmt.Fprintf(w, "%s %s: %s", kind, deref(s.Attempt), s.Phase)
	if s.FreezeSeconds != nil {
		fmt.Fprintf(w, ", writes held for %s", seconds(s.FreezeSeconds))
	}
	if s.Outcome != "" {
		fmt.Fprintf(w, ", ended: %s", s.Outcome)
	}
	fmt.Fprintln(w)
	if s.WaitingFor != "" {
		fmt.Fprintf(w, "  waits for %s\n", s.WaitingFor)
	}
	for _, f := range s.Findings {
		if f.Severity > preflight.OK {
			printFinding(w, f)
		}
	}
	if s.Problem != nil {
		fmt.Fprintf(w, "  %s\n", because(s)[2:])
	}
}
