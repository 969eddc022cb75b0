package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"testing"
	"time"

	"replicator/internal/postgres"
	"replicator/replication/pair"
	"replicator/replication/state"
)

// roleVariable holds the child's order as JSON; a process that finds it set is the child.
const roleVariable = "REPLICATOR_BENCH_CHILD"

// order tells the child which pair to run.
type order struct {
	Source, Target, Migration, Profile string
	Workers                            int
}

func TestMain(m *testing.M) {
	if o := os.Getenv(roleVariable); o != "" {
		if err := beReplicator(o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	release := reserveHugePages()
	code := m.Run()
	release()
	os.Exit(code)
}

// beReplicator runs a pair until standard input ends, and prints each phase that it reaches.
func beReplicator(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	if o.Profile != "" {
		f, err := os.Create(o.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when the parent closes it or is gone
		cancel()
	}()
	pool, err := postgres.Pool(ctx, o.Target, postgres.Identity{Migration: o.Migration}, "bench", 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := state.Ensure(ctx, pool); err != nil {
		return err
	}
	lead, err := state.TakeLead(ctx, o.Target, o.Migration, nil)
	if err != nil {
		return err
	}
	defer lead.Release(context.WithoutCancel(ctx))
	p := pair.New(pair.Options{Migration: o.Migration, Name: "main", SourceURL: o.Source, TargetURL: o.Target, Epoch: lead.Epoch, CopyWorkers: o.Workers,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: logLevel()}))})
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, false) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var phase pair.Phase
	for {
		if now := p.Status().Phase; now != phase {
			phase = now
			fmt.Println(phase)
		}
		select {
		case err := <-done:
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		case <-tick.C:
		}
	}
}

// logLevel is what the child logs at to standard error: REPLICATOR_BENCH_LOG, warn if it isn't set.
func logLevel() slog.Level {
	level := slog.LevelWarn
	_ = level.UnmarshalText([]byte(os.Getenv("REPLICATOR_BENCH_LOG"))) // what it doesn't know leaves warn
	return level
}

// child is a running replicator.
type child struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	phases *bufio.Scanner
}

var profiles int

// start starts replicator on a pair of databases.
func start(b *testing.B, o order) *child {
	b.Helper()
	if dir := os.Getenv("REPLICATOR_BENCH_PROFILE"); dir != "" {
		profiles++
		o.Profile = filepath.Join(dir, "cpu-"+filepath.Base(b.Name())+"-"+strconv.Itoa(profiles)+".pprof")
	}
	text, err := json.Marshal(o)
	if err != nil {
		b.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	touch(b, self)
	c := &child{cmd: exec.CommandContext(b.Context(), self)}
	c.cmd.Env = append(os.Environ(), roleVariable+"="+string(text))
	c.cmd.Stderr = os.Stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	c.phases = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	return c
}

// touch reads a program's file, so that its pages are in memory as those of one that has been running for long, as the servers' own are: kernels that
// take away what hasn't been used for seconds would let a new process wait for the disk.
func touch(b *testing.B, program string) {
	b.Helper()
	f, err := os.Open(program)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.Discard, f); err != nil {
		b.Fatal(err)
	}
}

// await returns when the child has reached the phase.
func (c *child) await(b *testing.B, want pair.Phase) {
	b.Helper()
	for c.phases.Scan() {
		if c.phases.Text() == string(want) {
			return
		}
	}
	b.Fatalf("replicator ended before it was %s", want)
}

// stop ends the child and waits for it.
func (c *child) stop(b *testing.B) {
	b.Helper()
	_ = c.stdin.Close() // the child takes the end of its input as the order to stop
	for c.phases.Scan() {
		continue // Wait closes the pipe under a reader
	}
	if err := c.cmd.Wait(); err != nil {
		b.Fatalf("replicator: %v", err)
	}
}
