package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"replicator/internal/demo"
	"replicator/internal/demo/ledger"
	"replicator/internal/demo/shop"
)

// binary is the replicator under test, built once.
var binary string

func TestMain(m *testing.M) {
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func build(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "replicator-e2e-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary = filepath.Join(dir, "replicator")
	if out, err := exec.Command("go", "build", "-o", binary, "replicator/cmd/replicator").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build replicator: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// world is one migration under test.
type world struct {
	t       *testing.T
	servers *demo.Servers
	config  demo.Config
	daemon  *demo.Daemon
	api     *demo.Client
	hook    *shop.Switch
	ledger  *ledger.Ledger
	writers *shop.Writers
	log     *logFile

	stopWriting context.CancelFunc
	resting     chan error
}

// size is large enough for a copy to be met while it runs.
var size = shop.Size{Users: 2000, Products: 300, Orders: 8000, Events: 12000, Keys: 6000, Seed: 1}

// rate is how many writes the application does a second.
func rate() float64 {
	if soak() {
		return 150
	}
	return 60
}

// soak tells whether tests do all that they can.
func soak() bool { return os.Getenv("REPLICATOR_SOAK") != "" }

var captures = []string{"logical", "trigger"}

// everyCapture runs a test once for each capture, on servers whose roles are made for it.
func everyCapture(t *testing.T, test func(t *testing.T, o demo.ServersOptions)) {
	for _, capture := range captures {
		t.Run(capture, func(t *testing.T) { test(t, demo.ServersOptions{Capture: capture}) })
	}
}

// newWorld starts servers with a loaded shop, the writers, and readies a daemon, not started yet. All ends with the test.
func newWorld(t *testing.T, o demo.ServersOptions, seed uint64) *world {
	t.Helper()
	w := &world{t: t, log: newLogFile(t), resting: make(chan error, 1)}
	dir, err := os.MkdirTemp("", "replicator-e2e-world-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { // root runs the servers as another user
		t.Fatal(err)
	}
	if w.servers, err = demo.LaunchServers(t.Context(), dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := w.servers.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := shop.Load(t.Context(), w.servers.Source, size); err != nil {
		t.Fatal(err)
	}
	w.ledger = ledger.New(strings.ToLower(rand.Text()[:6]))
	w.writers = shop.NewWriters(shop.WritersOptions{
		At: w.servers.Source, Ledger: w.ledger, Size: size, Rate: rate(), Workers: 6, Seed: seed,
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	})
	w.hook = &shop.Switch{Secret: rand.Text(), Source: w.servers.Source, Target: w.servers.Target, Use: w.writers.Use}
	hooks := httptest.NewServer(w.hook)
	t.Cleanup(hooks.Close)
	w.servers.HookURL, w.servers.HookSecret = hooks.URL, w.hook.Secret
	if w.config, err = w.servers.WriteConfig(dir, o.Capture); err != nil {
		t.Fatal(err)
	}
	w.api = &demo.Client{Address: w.config.Address, Token: w.config.Token}
	w.daemon = &demo.Daemon{Executable: binary, Args: []string{"run", "--config", w.config.Path}, Env: w.config.Env, Log: w.log}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		if err := w.daemon.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	writing, stop := context.WithCancel(context.Background())
	w.stopWriting = stop
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.resting <- w.writers.Run(writing)
	}()
	t.Cleanup(func() { stop(); <-done })
	return w
}

// start starts the daemon if it doesn't run.
func (w *world) start() {
	w.t.Helper()
	if err := w.daemon.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// await waits until the status is as asked. A daemon that ended by itself is a failure.
func (w *world) await(ctx context.Context, what string, good func(demo.Status) bool) demo.Status {
	w.t.Helper()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-w.daemon.Exited():
			cancel(fmt.Errorf("the daemon ended by itself: %w", w.daemon.Err()))
		case <-ctx.Done():
		}
	}()
	s, err := w.api.Await(ctx, good)
	if err != nil {
		w.t.Fatalf("waiting until %s: %v (%v)", what, err, context.Cause(ctx))
	}
	return s
}

// awaitPairs waits until every pair is in one of the phases and knows its lag.
func (w *world) awaitPairs(ctx context.Context, phases ...string) {
	w.t.Helper()
	w.await(ctx, "every pair is "+strings.Join(phases, " or "), func(s demo.Status) bool {
		for _, p := range s.Postgres {
			if p.LagSeconds == nil {
				return false
			}
		}
		return pairsIn(s, phases...)
	})
}

func pairsIn(s demo.Status, phases ...string) bool {
	in := func(phase string) bool {
		for _, p := range phases {
			if p == phase {
				return true
			}
		}
		return false
	}
	for _, p := range s.Postgres {
		if !in(p.Phase) {
			return false
		}
	}
	for _, p := range s.Redis {
		if !in(p.Phase) {
			return false
		}
	}
	return len(s.Postgres)+len(s.Redis) > 0
}

// command runs a client command and returns its output and exit status.
func (w *world) command(ctx context.Context, args ...string) (stdout string, status int) {
	w.t.Helper()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), w.config.Env...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("replicator %v: %v", args, err)
	}
	if err != nil {
		w.t.Logf("replicator %v: %v\n%s%s", args, err, out.String(), problems.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// rest ends the writers.
func (w *world) rest() {
	w.t.Helper()
	w.stopWriting()
	err := <-w.resting
	w.resting <- err
	if err != nil {
		w.t.Fatal(err)
	}
}

// prove demands, with the writers at rest and the daemon running, that both sides are equal and that the side in use holds each
// acknowledged write exactly once.
func (w *world) prove(ctx context.Context, at shop.Endpoint) {
	w.t.Helper()
	if used := w.writers.At(); used != at {
		w.t.Errorf("the application writes to the %s, it has to be the %s", used.Name, at.Name)
	}
	if _, status := w.command(ctx, "wait", "caught-up", "--timeout", "60s"); status != 0 {
		w.t.Fatalf("wait caught-up ended with status %d", status)
	}
	differences, err := shop.Compare(ctx, w.servers.Source, w.servers.Target)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range differences {
		w.t.Errorf("the sides differ: %s", d)
	}
	report, err := shop.Audit(ctx, w.ledger, at)
	if err != nil {
		w.t.Fatal(err)
	}
	totals := w.ledger.Totals()
	w.t.Logf("the ledger against the %s: %v; %+v", at.Name, report, totals)
	if !report.Good() {
		w.t.Error("writes are lost, doubled or made up")
	}
	for store, t := range totals {
		if t.Failed > 0 {
			w.t.Errorf("%d writes to %s failed for good", t.Failed, store)
		}
		if t.Acknowledged == 0 {
			w.t.Errorf("nothing was ever written to %s", store)
		}
	}
}

// holds demands that the target shows a state that the source had at a transaction boundary.
func (w *world) holds(ctx context.Context) {
	w.t.Helper()
	broken, err := shop.Invariants(ctx, w.servers.Target.PostgresURL)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range broken {
		w.t.Errorf("the target shows a state that the source never had: %s", b)
	}
}

// logFile collects the daemon's and the application's logs and shows their end if the test fails.
type logFile struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func newLogFile(t *testing.T) *logFile {
	l := &logFile{}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.Failed() {
			lines := strings.Split(strings.TrimSpace(l.text.String()), "\n")
			t.Logf("the end of the logs:\n%s", strings.Join(lines[max(0, len(lines)-150):], "\n"))
		}
	})
	return l
}

// Write implements io.Writer.
func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}
