package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"replicator/internal/admin"
	"replicator/internal/preflight"
)

func (c *cli) statusCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status [--json] [--watch]",
		Short: "Show how the migration stands",
		Long: `Status shows each pair's phase, lag and progress, the cutover, and every problem with its remedy.

Exit status 0 says that the status could be read, whatever it is; use wait to test for a state.`,
		Example: `  replicator status
  replicator status --watch
  replicator status --json | jq '.postgres[0].lag_seconds'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			if watch {
				return couldNotTell(c.watchStatus(cmd, client, asJSON))
			}
			s, err := client.Status(cmd.Context())
			if err != nil {
				return couldNotTell(err)
			}
			if asJSON {
				return c.json(s)
			}
			return printStatus(c.stdout, s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON document (with --watch: one a line for every change)")
	cmd.Flags().BoolVar(&watch, "watch", false, "go on until interrupted, and print it anew whenever something changes")
	return c.clientFlags(cmd)
}

// watchStatus prints the status on every change until the context ends, which is a good end.
func (c *cli) watchStatus(cmd *cobra.Command, client *admin.Client, asJSON bool) error {
	terminal := isTerminal(c.stdout)
	err := client.Events(cmd.Context(), func(e admin.Received) error {
		if e.Type != admin.EventStatus {
			return nil
		}
		if asJSON {
			_, err := fmt.Fprintln(c.stdout, string(e.Data))
			return err
		}
		var s admin.Status
		if err := json.Unmarshal(e.Data, &s); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		if terminal {
			fmt.Fprint(c.stdout, "\x1b[H\x1b[2J")
		}
		if err := printStatus(c.stdout, s); err != nil {
			return err
		}
		_, err := fmt.Fprintln(c.stdout)
		return err
	})
	if cmd.Context().Err() != nil {
		return nil
	}
	return err
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func printStatus(w io.Writer, s admin.Status) error {
	head := fmt.Sprintf("migration %s: %s", s.Migration, s.Phase)
	if s.Paused {
		head += ", paused"
	}
	if !s.Leader {
		head += " (told by a process that stands by)"
	}
	fmt.Fprintln(w, head)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, p := range s.Postgres {
		kind := "postgres"
		if p.Capture != "" {
			kind += "/" + p.Capture
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\tlag %s\tbehind %s\ttables %d/%d\trows %d%s\n", p.Name, kind, p.Phase, seconds(p.LagSeconds), bytesOf(p.LagBytes),
			p.Tables.Copied, p.Tables.Total, p.Copy.Rows, eta(p))
	}
	for _, p := range s.Redis {
		fmt.Fprintf(t, "  %s\tredis\t%s\tlag %s\tdirty %s\tkeys %d\tgaps %d\n", p.Name, p.Phase, seconds(p.LagSeconds), count(p.DirtyKeys), p.Keys.Copied, p.Gaps)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range s.Postgres {
		if p.Capture != "" && p.CaptureReason != "" {
			fmt.Fprintf(w, "  %s is captured by %s, because: %s\n", p.Name, p.Capture, p.CaptureReason)
		}
		waiting(w, p.Name, p.WaitingFor)
	}
	for _, p := range s.Redis {
		waiting(w, p.Name, p.WaitingFor)
	}
	if s.Cutover.Attempt != nil {
		printCutover(w, s.Cutover)
	}
	for _, p := range s.Problems {
		printProblem(w, p)
	}
	return nil
}

func waiting(w io.Writer, pair, what string) {
	if what != "" {
		fmt.Fprintf(w, "  %s waits for %s\n", pair, what)
	}
}

func eta(p admin.PostgresStatus) string {
	if p.Copy.ETASeconds == nil || *p.Copy.ETASeconds <= 0 {
		return ""
	}
	return ", about " + seconds(p.Copy.ETASeconds) + " to go"
}

func printProblem(w io.Writer, p admin.Problem) {
	where := strings.TrimSpace(p.Pair + " " + p.Side)
	if where != "" {
		where += ": "
	}
	fmt.Fprintf(w, "%s: %s%s [%s]\n", p.Severity, where, p.Message, p.Code)
	if p.Hint != "" {
		fmt.Fprintf(w, "    %s\n", p.Hint)
	}
}

func printFinding(w io.Writer, f preflight.Finding) {
	printProblem(w, admin.Problem{Code: f.Code, Severity: f.Severity, Pair: f.Pair, Side: f.Side, Message: f.Message, Hint: f.Hint})
}

func seconds(v *float64) string {
	if v == nil {
		return "unknown"
	}
	return fmt.Sprintf("%.3gs", *v)
}

func bytesOf(v *int64) string {
	if v == nil {
		return "unknown"
	}
	n, unit := float64(*v), 0
	for n >= 1000 && unit < 4 {
		n, unit = n/1000, unit+1
	}
	return fmt.Sprintf("%.3g%s", n, []string{"B", "kB", "MB", "GB", "TB"}[unit])
}

func count(v *int64) string {
	if v == nil {
		return "unknown"
	}
	return fmt.Sprint(*v)
}
