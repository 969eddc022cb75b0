package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"replicator/internal/admin"
	"replicator/internal/retry"
	"replicator/metrics"
)

// patience is how long a wait without --timeout bears a replicator that doesn't answer: a restart, or another one taking over.
const patience = 30 * time.Second

func (c *cli) waitCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait caught-up | phase=NAME | cutover=NAME [--timeout D]",
		Short: "Wait until the migration is where you want it",
		Long: `Wait ends with status 0 once the state is reached, 3 if it wasn't within --timeout (without it: as long as it takes).

  caught-up      everything committed on every source when the command began is durable on the targets
  phase=NAME     every pair is at NAME or later: starting, copying, indexing, streaming, frozen, reversed, finished
  cutover=NAME   the cutover is at NAME or later: ` + strings.Join(metrics.CutoverPhases[1:11], ", ") + `;
                 status 1 if the attempt is given up meanwhile. cutover=aborted waits for just that.`,
		Example: `  replicator wait phase=streaming --timeout 6h
  replicator wait caught-up --timeout 1m && echo "safe to compare"
  replicator wait cutover=done --timeout 2m`,
		Args: exactArgs(1, "one of caught-up, phase=NAME, cutover=NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return usage(errors.New("--timeout is negative"))
			}
			client, err := c.client()
			if err != nil {
				return err
			}
			w := &waiter{cli: c, client: client, timeout: timeout}
			goal, name, _ := strings.Cut(args[0], "=")
			switch {
			case args[0] == "caught-up":
				return w.caughtUp(cmd.Context())
			case goal == "phase" && admin.Phase(name).Valid():
				return w.until(cmd.Context(), "phase "+name, func(s admin.Status) (bool, error) { return s.Phase.Reached(admin.Phase(name)), nil })
			case goal == "phase":
				return usage(fmt.Errorf("%q is no phase of a pair: use one of %v", name, admin.Phases()))
			case goal == "cutover" && slices.Contains(metrics.CutoverPhases, name):
				return w.until(cmd.Context(), "cutover "+name, cutoverReached(name))
			case goal == "cutover":
				return usage(fmt.Errorf("%q is no phase of a cutover: use one of %v", name, metrics.CutoverPhases))
			}
			return usage(fmt.Errorf("%q is nothing to wait for: give one of caught-up, phase=NAME, cutover=NAME", args[0]))
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up with status 3 after this long, as in 30s or 2h (default: never)")
	return c.clientFlags(cmd)
}

// waiter waits on a replicator that may be restarted meanwhile.
type waiter struct {
	*cli
	client  *admin.Client
	timeout time.Duration
}

// cutoverReached tells when the cutover is at name or later. An attempt that is seen running and then given up never gets there.
func cutoverReached(name string) func(admin.Status) (bool, error) {
	running := false
	return func(s admin.Status) (bool, error) {
		at := s.Cutover.Phase
		if at == name {
			return true, nil
		}
		if running && at == "aborted" {
			return false, notGood("attempt %s was aborted%s", deref(s.Cutover.Attempt), because(s.Cutover))
		}
		running = running || s.Cutover.Running()
		road := metrics.CutoverPhases[:slices.Index(metrics.CutoverPhases, "done")+1]
		goal, now := slices.Index(road, name), slices.Index(road, at)
		return goal > 0 && now >= goal, nil
	}
}

// bounded gives the wait its timeout and a grace; expired returns what to say when that is what ended it.
func (w *waiter) bounded(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	if w.timeout > 0 {
		return context.WithTimeout(ctx, w.timeout+grace)
	}
	return context.WithCancel(ctx)
}

// steadily calls f until it succeeds, ends for good, or nothing was reachable for too long. f returns an error of ErrUnreachable to
// be called again.
func (w *waiter) steadily(ctx context.Context, f func(ctx context.Context, alive func()) error) error {
	lastAlive, said := time.Now(), false
	return retry.Do(ctx, retry.Policy{First: 100 * time.Millisecond, Max: time.Second}, func(ctx context.Context) error {
		err := f(ctx, func() { lastAlive, said = time.Now(), false })
		var p *admin.ProblemDocument
		starting := errors.As(err, &p) && p.Status == http.StatusServiceUnavailable
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil, !starting && !errors.Is(err, admin.ErrUnreachable):
			return retry.Stop(err)
		case w.timeout == 0 && time.Since(lastAlive) > patience:
			return retry.Stop(err)
		}
		if !said {
			w.say("%v; trying again", err)
			said = true
		}
		return err
	})
}

func (w *waiter) caughtUp(ctx context.Context) error {
	began := time.Now()
	ctx, cancel := w.bounded(ctx, time.Second) // the daemon ends the wait in time, and its answer says what is waited for
	defer cancel()
	err := w.steadily(ctx, func(ctx context.Context, _ func()) error {
		left := time.Duration(0)
		if w.timeout > 0 {
			left = max(w.timeout-time.Since(began), time.Millisecond)
		}
		return w.client.CaughtUp(ctx, left)
	})
	if err != nil {
		return couldNotTell(w.expired(ctx, "caught up", err))
	}
	w.say("caught up after %s", time.Since(began).Round(time.Millisecond))
	return nil
}

func (w *waiter) expired(ctx context.Context, goal string, err error) error {
	var p *admin.ProblemDocument
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || (errors.As(err, &p) && p.Status == http.StatusGatewayTimeout) {
		return fmt.Errorf("not %s within %s; the last answer: %w", goal, w.timeout, err)
	}
	return err
}

// until waits for a status of which reached is true. What reached returns as an error ends the command with status 1.
func (w *waiter) until(ctx context.Context, goal string, reached func(admin.Status) (bool, error)) error {
	ctx, cancel := w.bounded(ctx, 0)
	defer cancel()
	enough := errors.New("reached")
	var last admin.Status
	var told string
	err := w.steadily(ctx, func(ctx context.Context, alive func()) error {
		err := w.client.Events(ctx, func(e admin.Received) error {
			alive()
			switch e.Type {
			case admin.EventStatus:
				last = admin.Status{}
				if err := json.Unmarshal(e.Data, &last); err != nil {
					return fmt.Errorf("read an event: %w", err)
				}
			case admin.EventCutover: // comes for phases that pass between two whole statuses
				last.Cutover = admin.CutoverStatus{}
				if err := json.Unmarshal(e.Data, &last.Cutover); err != nil {
					return fmt.Errorf("read an event: %w", err)
				}
			default:
				return nil
			}
			if now := fmt.Sprintf("%s, cutover %s", last.Phase, last.Cutover.Phase); now != told {
				told = now
				w.say("%s", now)
			}
			ok, err := reached(last)
			if err == nil && ok {
				err = enough
			}
			return err
		})
		if errors.Is(err, enough) {
			return nil
		}
		return err
	})
	var o *outcome
	switch {
	case err == nil:
		return nil
	case errors.As(err, &o):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		for _, p := range last.Problems {
			printProblem(w.stderr, p)
		}
		return couldNotTell(fmt.Errorf("not at %s within %s; it is %s", goal, w.timeout, orUnknown(told)))
	}
	return couldNotTell(err)
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown how it stands: replicator didn't answer"
	}
	return s
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
