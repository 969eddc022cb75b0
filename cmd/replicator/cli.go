package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"replicator/internal/admin"
)

// The exit statuses, a contract with scripts.
const (
	statusGood   = 0
	statusNot    = 1
	statusUsage  = 2
	statusUnsure = 3
)

// cli is what the commands share: the streams, the environment and the flags of the API's clients.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            environ
	version        string

	addr, tokenFile string
}

// outcome is an error with the exit status that it means.
type outcome struct {
	status int
	err    error
}

func (o *outcome) Error() string { return o.err.Error() }
func (o *outcome) Unwrap() error { return o.err }

// notGood ends a command with status 1.
func notGood(format string, args ...any) error {
	return &outcome{statusNot, fmt.Errorf(format, args...)}
}

// usage ends a command with status 2.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return &outcome{statusUsage, err}
}

// couldNotTell ends a command with status 3.
func couldNotTell(err error) error {
	if err == nil {
		return nil
	}
	return &outcome{statusUnsure, err}
}

// statusOf returns the exit status of an error.
func statusOf(err error) int {
	var o *outcome
	var p *admin.ProblemDocument
	switch {
	case err == nil:
		return statusGood
	case errors.As(err, &o):
		return o.status
	case errors.Is(err, admin.ErrUnreachable), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return statusUnsure
	case errors.As(err, &p) && (p.Status == http.StatusServiceUnavailable || p.Status == http.StatusGatewayTimeout || p.Status == http.StatusBadGateway):
		return statusUnsure
	}
	return statusNot
}

// execute runs the command that args name and returns the exit status.
func (c *cli) execute(ctx context.Context, args []string) int {
	root := c.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return statusGood
	}
	var o *outcome
	if !errors.As(err, &o) && isCobraUsage(err) {
		err = usage(err)
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(c.stderr, "replicator: "+text)
		if errors.Is(err, admin.ErrUnreachable) {
			fmt.Fprintln(c.stderr, "Is `replicator run` up there? Give its address by --addr or REPLICATOR_ADDR.")
		}
		var ce *configError
		if statusOf(err) == statusUsage && !errors.As(err, &ce) {
			fmt.Fprintf(c.stderr, "See `%s --help`.\n", cmd.CommandPath())
		}
	}
	return statusOf(err)
}

// isCobraUsage recognises what cobra itself says about unknown commands and missing flags; it has no types for these.
func isCobraUsage(err error) bool {
	for _, start := range []string{"unknown command", "required flag", "if any flags in the group"} {
		if strings.HasPrefix(err.Error(), start) {
			return true
		}
	}
	return false
}

const longHelp = `replicator moves the Postgres and Redis of a live application from one side to the other.

It copies everything, keeps both sides equal while the application goes on writing, and cuts over within seconds
without losing a write; a rollback leads back the same way.

The road:
  replicator check                         probe both sides; says what is missing and how to mend it
  replicator run                           copy, then stream; the status page is at http://127.0.0.1:8080/
  replicator wait phase=streaming          everything is copied and kept equal
  replicator verify --wait                 compare both sides
  replicator cutover start --dry-run --wait
  replicator cutover start --wait          move the application
  replicator rollback --wait               ... and back, if need be
  replicator finish --yes                  remove everything that replicator made

Configuration: environment variables (SOURCE_DATABASE_URL, TARGET_DATABASE_URL, SOURCE_REDIS_URL, TARGET_REDIS_URL),
or one file by --config; see docs/config.md. All commands but run, check and demo talk to a running replicator: say
where by --addr or REPLICATOR_ADDR, and give the operator's token by REPLICATOR_TOKEN or --token-file.

Exit status: 0 done and good, 1 not, 2 usage, 3 could not tell (unreachable, timed out).`

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "replicator",
		Short:         "Move a live application's Postgres and Redis without losing a write",
		Long:          longHelp,
		Args:          noArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage(err) })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(c.runCommand(), c.checkCommand(), c.demoCommand(), c.statusCommand(), c.waitCommand(), c.verifyCommand(), c.resyncCommand(),
		c.pauseCommand(true), c.pauseCommand(false), c.cutoverCommand(), c.rollbackCommand(), c.finishCommand(), c.uninstallCommand(), c.versionCommand())
	return root
}

// noArgs and exactArgs are cobra's, as usage errors.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(fmt.Errorf("unknown command or argument %q for %s", args[0], cmd.CommandPath()))
	}
	return nil
}

func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != n {
			return usage(fmt.Errorf("give %s", what))
		}
		return nil
	}
}

const defaultAddr = "http://127.0.0.1:8080"

// clientFlags gives a command the flags by which it finds the running replicator.
func (c *cli) clientFlags(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&c.addr, "addr", "", "address of the admin API (REPLICATOR_ADDR; default "+defaultAddr+")")
	f.StringVar(&c.tokenFile, "token-file", "", "file with the token (or REPLICATOR_TOKEN)")
	return cmd
}

// client returns the API's client that the flags and the environment describe.
func (c *cli) client() (*admin.Client, error) {
	addr := c.addr
	if addr == "" {
		addr, _ = c.env("REPLICATOR_ADDR")
	}
	if addr == "" {
		addr = defaultAddr
	}
	token, _ := c.env("REPLICATOR_TOKEN")
	if c.tokenFile != "" {
		b, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return nil, usage(fmt.Errorf("read the token: %w", err))
		}
		token = strings.TrimSpace(string(b))
	}
	client, err := admin.NewClient(addr, token)
	return client, usage(err)
}

// json prints the one document of a command.
func (c *cli) json(doc any) error {
	// Into memory first: a pipe that is closed half-way must not look like a whole document.
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return fmt.Errorf("encode the document: %w", err)
	}
	_, err := b.WriteTo(c.stdout)
	return err
}

// say tells people something on standard error.
func (c *cli) say(format string, args ...any) { fmt.Fprintf(c.stderr, format+"\n", args...) }
