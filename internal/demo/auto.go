package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/demo/shop"
)

// How long each part may take before the demo gives up on it.
const (
	copyTimeout    = 3 * time.Minute
	cutoverTimeout = time.Minute
	proofTimeout   = 2 * time.Minute
	// newSideFor is how long the application writes on the new side before the proof.
	newSideFor = 5 * time.Second
)

// auto is the whole road: copy, stream, cut over, write on the new side, rest, prove.
func (s *stage) auto(ctx context.Context, rest func()) error {
	r := Result{Capture: s.o.Capture, Faults: []string{}}
	if err := s.awaitStreaming(ctx, &r); err != nil {
		return err
	}
	if err := s.stream(ctx); err != nil {
		return err
	}
	if err := s.cutover(ctx, &r); err != nil {
		return err
	}
	if !wait(ctx, newSideFor) {
		return ctx.Err()
	}
	rest()
	if err := s.prove(ctx, &r); err != nil {
		return err
	}
	r.Seconds = time.Since(s.started).Seconds()
	write := r.writeTable
	if s.o.JSON {
		write = r.writeJSON
	}
	if err := write(s.o.Stdout); err != nil {
		return err
	}
	if !r.Good() {
		return ErrFailed
	}
	return nil
}

func (s *stage) awaitStreaming(ctx context.Context, r *Result) error {
	s.console.say("replicating while %.0f transactions and as many Redis writes a second come in", s.o.Rate)
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	_, err := s.api.Await(ctx, func(now Status) bool {
		var rows, keys int64
		note, ready := "", len(now.Postgres) > 0
		for _, p := range now.Postgres {
			rows += p.Copy.Rows
			ready = ready && p.Phase == "streaming"
			note = fmt.Sprintf("Postgres %s, %d of %d tables, %s rows", p.Phase, p.Tables.Copied, p.Tables.Total, thousands(p.Copy.Rows))
		}
		for _, p := range now.Redis {
			keys += p.Keys.Copied
			ready = ready && p.Phase == "streaming"
			note += fmt.Sprintf("; Redis %s, %s keys", p.Phase, thousands(p.Keys.Copied))
		}
		r.RowsCopied, r.KeysCopied = max(r.RowsCopied, rows), max(r.KeysCopied, keys)
		s.console.progress("copy", min(rows, s.rows)+min(keys, s.keys), s.rows+s.keys, note)
		return ready
	})
	s.console.end()
	return err
}

// stream lets things run for the configured time and measures the lag.
func (s *stage) stream(ctx context.Context) error {
	measuring, cancel := context.WithTimeout(ctx, s.o.Duration)
	defer cancel()
	began := time.Now()
	group, groupCtx := errgroup.WithContext(measuring)
	group.Go(func() error { return s.lag.run(groupCtx) })
	group.Go(func() error {
		for wait(groupCtx, 200*time.Millisecond) {
			s.console.progress("stream", int64(time.Since(began)), int64(s.o.Duration), s.lagNote())
		}
		return nil
	})
	err := group.Wait()
	s.console.end()
	return errors.Join(err, ctx.Err())
}

func (s *stage) lagNote() string {
	t := s.ledger.Totals()
	note := fmt.Sprintf("%s transactions, %s Redis writes", thousands(t["postgres"].Acknowledged), thousands(t["redis"].Acknowledged))
	if q := s.lag.quantiles("postgres"); q.P50 != nil {
		note += fmt.Sprintf(", lag p50 %.1f ms", *q.P50*1e3)
	}
	return note
}

func (s *stage) cutover(ctx context.Context, r *Result) error {
	ctx, cancel := context.WithTimeout(ctx, cutoverTimeout)
	defer cancel()
	s.ledger.ResetGaps()
	attempt, err := s.api.Cutover(ctx, false)
	if err != nil {
		return fmt.Errorf("start the cutover: %w", err)
	}
	s.console.say("cutover %s", attempt)
	phase := ""
	now, err := s.api.Await(ctx, func(now Status) bool {
		if now.Cutover.Attempt != attempt {
			return false
		}
		if now.Cutover.Phase != phase {
			phase = now.Cutover.Phase
			s.console.say("  %s", phase)
		}
		return phase == "done" || phase == "aborted"
	})
	if err != nil {
		return err
	}
	if phase == "aborted" {
		return fmt.Errorf("the cutover was aborted: %+v", now.Problems)
	}
	// The gap ends with the first write that is acknowledged on the new side.
	before := s.ledger.Totals()
	for {
		t := s.ledger.Totals()
		if t["postgres"].Acknowledged > before["postgres"].Acknowledged && t["redis"].Acknowledged > before["redis"].Acknowledged {
			break
		}
		if !wait(ctx, 10*time.Millisecond) {
			return errors.New("the application could not write after the switch")
		}
	}
	r.FreezeSeconds = max(s.ledger.LongestGap("postgres"), s.ledger.LongestGap("redis")).Seconds()
	r.ReportedFreezeSeconds = now.Cutover.FreezeSeconds
	s.console.say("the application writes on the new side; its longest gap was %.3f s", r.FreezeSeconds)
	return nil
}

// prove compares, with the writers at rest: the sides with each other, and the ledger with the new side.
func (s *stage) prove(ctx context.Context, r *Result) error {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	select {
	case <-s.resting:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.console.say("the application rests; comparing both sides and its ledger")
	t := s.ledger.Totals()
	r.Transactions, r.RedisWrites = t["postgres"].Acknowledged, t["redis"].Acknowledged
	r.FailedWrites = t["postgres"].Failed + t["redis"].Failed
	r.LagSeconds, r.RedisLagSeconds = s.lag.quantiles("postgres"), s.lag.quantiles("redis")

	if _, err := s.command(ctx, "wait", "caught-up", "--timeout", "60s"); err != nil {
		return fmt.Errorf("wait until the way back has caught up: %w", err)
	}
	out, err := s.command(ctx, "verify", "--wait", "--json")
	var verified struct{ Mismatches *int64 }
	if jsonErr := json.Unmarshal(out, &verified); jsonErr != nil || verified.Mismatches == nil {
		return fmt.Errorf("verify (its answer has no mismatches: %.200q): %w", out, errors.Join(err, jsonErr))
	}
	r.Mismatches = *verified.Mismatches
	if *verified.Mismatches > 0 {
		r.Faults = append(r.Faults, fmt.Sprintf("verify found %d mismatches", *verified.Mismatches))
	}
	differences, err := shop.Compare(ctx, s.servers.Source, s.servers.Target)
	if err != nil {
		return err
	}
	r.Mismatches = max(r.Mismatches, int64(len(differences)))
	r.Faults = append(r.Faults, differences...)

	if at := s.writers.At().Name; at != "target" {
		r.Faults = append(r.Faults, "the application was not switched: it still writes to the "+at)
	}
	report, err := shop.Audit(ctx, s.ledger, s.servers.Target)
	if err != nil {
		return err
	}
	r.LostWrites, r.DuplicatedWrites, r.PhantomWrites = report.Lost, report.Duplicated, report.Phantom
	r.Faults = append(r.Faults, report.Details...)
	return nil
}

// command runs a client command of replicator and returns its standard output.
func (s *stage) command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.o.Executable, args...)
	cmd.Env = append(os.Environ(), "REPLICATOR_ADDR="+s.api.Address, "REPLICATOR_TOKEN="+s.api.Token)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("replicator %v: %w: %s", args, err, bytes.TrimSpace(problems.Bytes()))
	}
	return out.Bytes(), nil
}
