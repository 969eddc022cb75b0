package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDaemonIsKeptUntilStopped(t *testing.T) {
	d := &Daemon{Executable: "/bin/sleep", Args: []string{"600"}}
	ended := make(chan error, 10)
	done := make(chan error, 1)
	go func() { done <- d.Keep(t.Context(), func(err error) { ended <- err }) }()
	await := func(good func() bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !good() {
			select {
			case <-deadline:
				t.Fatal("it never happened")
			case <-time.After(time.Millisecond):
			}
		}
	}
	await(func() bool { return d.Pid() != 0 })
	first := d.Pid()
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("a killed process ended without an error")
	}
	await(func() bool { return d.Pid() != 0 && d.Pid() != first })
	second := d.Pid()
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(second, 0); err == nil {
		t.Error("the process is still there after Stop")
	}
	if err := d.Start(); err != nil || d.Pid() != 0 {
		t.Errorf("a stopped daemon was started again: %v", err)
	}
}

func TestDaemonThatEndsAtOnceIsGivenUp(t *testing.T) {
	d := &Daemon{Executable: "/bin/false"}
	n := 0
	if err := d.Keep(t.Context(), func(error) { n++ }); err == nil || n != 4 {
		t.Errorf("gave up with %v after %d starts", err, n)
	}
}

func TestDaemonThatIgnoresSIGTERMIsKilled(t *testing.T) {
	var log bytes.Buffer
	d := &Daemon{Executable: "/bin/sh", Args: []string{"-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"}, Log: &log}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := d.Stop(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if d.Pid() != 0 {
		t.Error("it still runs")
	}
}

func TestResult(t *testing.T) {
	r := Result{Capture: "logical", RowsCopied: 1234567, LagSeconds: quantiles([]time.Duration{3 * time.Millisecond, time.Millisecond, 2 * time.Millisecond}), Faults: []string{}}
	if !r.Good() {
		t.Error("a clean result isn't good")
	}
	var table, document bytes.Buffer
	if err := r.writeTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1,234,567", "p50 2.0 ms, p99 3.0 ms, max 3.0 ms", "not measured"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	if err := r.writeJSON(&document); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(document.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"rows_copied", "keys_copied", "transactions", "redis_writes", "lag_seconds", "freeze_seconds", "failed_writes", "lost_writes", "duplicated_writes", "mismatches", "capture"} {
		if _, ok := got[name]; !ok {
			t.Errorf("the document has no %s", name)
		}
	}
	for name, spoil := range map[string]func(*Result){
		"failed": func(r *Result) { r.FailedWrites = 1 }, "lost": func(r *Result) { r.LostWrites = 1 },
		"duplicated": func(r *Result) { r.DuplicatedWrites = 1 }, "phantom": func(r *Result) { r.PhantomWrites = 1 },
		"mismatch": func(r *Result) { r.Mismatches = 1 }, "fault": func(r *Result) { r.Faults = append(r.Faults, "x") },
	} {
		bad := r
		spoil(&bad)
		if bad.Good() {
			t.Errorf("%s: still good", name)
		}
	}
}

func TestConsole(t *testing.T) {
	var out bytes.Buffer
	c := &console{w: &out, every: time.Hour}
	c.progress("copy", 1, 4, "first")
	c.progress("copy", 2, 4, "too soon for another line")
	c.say("done")
	if got := out.String(); got != "copy: 25%, first\ndone\n" {
		t.Errorf("plain: %q", got)
	}
	out.Reset()
	c.terminal = true
	c.progress("copy", 3, 4, "a")
	c.say("done")
	if got := out.String(); !strings.Contains(got, "75%") || !strings.HasPrefix(got, "\r") || !strings.HasSuffix(got, "a\ndone\n") {
		t.Errorf("terminal: %q", got)
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567", 100: "100"} {
		if got := thousands(n); got != want {
			t.Errorf("thousands(%d) = %s", n, got)
		}
	}
}

func TestServersAreWhatTheyStandFor(t *testing.T) {
	for _, capture := range []string{"logical", "trigger"} {
		t.Run(capture, func(t *testing.T) {
			s, err := LaunchServers(t.Context(), serversDir(t), ServersOptions{Capture: capture})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Stop(context.Background()); err != nil {
					t.Error(err)
				}
			})
			if super, replicates := role(t, s.Source.PostgresURL); super || replicates != (capture == "logical") {
				t.Errorf("the source's role: superuser %v, replication %v", super, replicates)
			}
			if super, _ := role(t, s.Target.PostgresURL); super {
				t.Error("the target's role is a superuser")
			}
			c, err := s.WriteConfig(t.TempDir(), capture)
			if err != nil {
				t.Fatal(err)
			}
			if c.Address == c.MetricsAddress || c.Token == "" {
				t.Errorf("%+v", c)
			}
		})
	}
}
