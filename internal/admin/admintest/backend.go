// Package admintest runs an admin server on a made-up migration, for tests of the API's clients.
//
// How to add an action: a field for what it returns, a line in Calls when it is called.
package admintest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"replicator/cutover"
	"replicator/internal/admin"
	"replicator/internal/preflight"
)

// Backend is a migration that exists in memory only. Change it by Set; every call is noted.
type Backend struct {
	mu       sync.Mutex
	status   admin.Status
	calls    []string
	caughtUp chan struct{}
	verified []admin.VerifiedPair
	fail     error
	next     func(*admin.Status)
}

// New returns a backend with one Postgres and one Redis pair that stream.
func New() *Backend {
	lag, dirty, bytes := 0.25, int64(3), int64(4096)
	return &Backend{caughtUp: make(chan struct{}), status: admin.Status{
		Migration: "shop", Leader: true, Version: "v1.2.3",
		Postgres: []admin.PostgresStatus{{Name: "main", Capture: "logical", Phase: admin.Streaming, LagSeconds: &lag, LagBytes: &bytes, RetainedBytes: &bytes,
			Tables: admin.Tables{Total: 6, Copied: 6}, Copy: admin.Copy{Rows: 1234567, Bytes: 98765432}, AppliedTransactions: 42}},
		Redis:    []admin.RedisStatus{{Name: "sidekiq", Feed: "tracking", Phase: admin.Streaming, LagSeconds: &lag, DirtyKeys: &dirty, Keys: admin.Keys{Copied: 77}}},
		Problems: []admin.Problem{{Code: "retained-bytes", Severity: preflight.Warning, Pair: "main", Side: "source", Message: "the slot holds 9 GB <of> log", Hint: "find out what the pair waits for"}},
	}}
}

// Set changes the status.
func (b *Backend) Set(change func(*admin.Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&b.status)
}

// Next changes the status as soon as it has been read once more.
func (b *Backend) Next(change func(*admin.Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = change
}

// Fail makes every action return err; nil ends that.
func (b *Backend) Fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

// Verified is what Verify returns from now on.
func (b *Backend) Verified(pairs ...admin.VerifiedPair) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.verified = pairs
}

// LetCatchUp releases all who wait in CaughtUp.
func (b *Backend) LetCatchUp() { close(b.caughtUp) }

// Calls returns the actions so far, in order.
func (b *Backend) Calls() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.calls)
}

func (b *Backend) call(format string, args ...any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls = append(b.calls, fmt.Sprintf(format, args...))
	return b.fail
}

// Status implements admin.Backend.
func (b *Backend) Status(context.Context) (admin.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.status
	s.Postgres, s.Redis, s.Problems = slices.Clone(s.Postgres), slices.Clone(s.Redis), slices.Clone(s.Problems)
	if b.next != nil {
		b.next(&b.status)
		b.next = nil
	}
	return s, nil
}

// CaughtUp implements admin.Backend.
func (b *Backend) CaughtUp(ctx context.Context) error {
	if err := b.call("caught-up"); err != nil {
		return err
	}
	select {
	case <-b.caughtUp:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pair main is 4 kB behind: %w", ctx.Err())
	}
}

// StartCutover implements admin.Backend.
func (b *Backend) StartCutover(_ context.Context, r admin.CutoverRequest) (string, error) {
	if err := b.call("start reverse=%t dry_run=%t budget=%s", r.Reverse, r.DryRun, r.FreezeBudget); err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status.Cutover.Running() {
		return "", &cutover.RunningError{Attempt: *b.status.Cutover.Attempt}
	}
	attempt := fmt.Sprintf("attempt-%d", len(b.calls))
	b.status.Cutover = admin.CutoverStatus{Attempt: &attempt, Phase: "preflight", DryRun: r.DryRun, Direction: "forward"}
	if r.Reverse {
		b.status.Cutover.Direction = "reverse"
	}
	return attempt, nil
}

// AbortCutover implements admin.Backend.
func (b *Backend) AbortCutover(_ context.Context, attempt string) error {
	if err := b.call("abort %s", attempt); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.status.Cutover.Running() || *b.status.Cutover.Attempt != attempt {
		return &preflight.Hinted{Code: "no-such-attempt", Err: cutover.ErrNoAttempt, Hint: "look at the status"}
	}
	b.status.Cutover.Phase, b.status.Cutover.Outcome = "aborted", "aborted"
	return nil
}

// Finish implements admin.Backend.
func (b *Backend) Finish(context.Context) error { return b.call("finish") }

// Verify implements admin.Backend.
func (b *Backend) Verify(_ context.Context, r admin.VerifyRequest) ([]admin.VerifiedPair, error) {
	err := b.call("verify pair=%s tables=%v repair=%t", r.Pair, r.Tables, r.Repair)
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.verified), err
}

// Resync implements admin.Backend.
func (b *Backend) Resync(_ context.Context, r admin.ResyncRequest) error {
	return b.call("resync %s %v", r.Pair, r.Tables)
}

// SetPaused implements admin.Backend.
func (b *Backend) SetPaused(_ context.Context, paused bool) error {
	b.Set(func(s *admin.Status) { s.Paused = paused })
	return b.call("paused=%t", paused)
}

// Serve runs a server on free ports until the test ends. It fails the test if the server doesn't stop cleanly.
func Serve(t testing.TB, o admin.Options) *admin.Server {
	t.Helper()
	o.Listen, o.MetricsListen = "127.0.0.1:0", "127.0.0.1:0"
	s := admin.NewServer(o)
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the server ended with %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server doesn't stop")
		}
	})
	return s
}
