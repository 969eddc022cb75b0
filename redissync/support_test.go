package redissync

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// client is a test's own connection to a server.
type client struct {
	t *testing.T
	s *session
}

func dialServer(t *testing.T, srv *redistest.Server) *client {
	t.Helper()
	return dialAt(t, srv.URL(), TLS{CAFile: srv.CAFile()})
}

func dialURL(t *testing.T, url string) *client {
	t.Helper()
	return dialAt(t, url, TLS{})
}

func dialAt(t *testing.T, url string, trust TLS) *client {
	t.Helper()
	e, err := parseEndpoint(url, trust)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t, &session{endpoint: e, name: "application"}}
	t.Cleanup(c.s.close)
	return c
}

// do runs one command; an error fails the test.
func (c *client) do(args ...string) value {
	c.t.Helper()
	v, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("%q: %v", args, err)
	}
	return v
}

func (c *client) try(args ...string) (value, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if n, err := c.s.owner(ctx, ""); err == nil && n != c.s { // a cluster
		return c.routed(ctx, args)
	}
	v, err := c.s.do(ctx, args...)
	if args[0] == "SELECT" && c.s.link != nil {
		c.s.link.db = -1 // the session's own notion is void
	}
	return v, err
}

// routed runs one command where its key is.
func (c *client) routed(ctx context.Context, args []string) (value, error) {
	key := keyOf(args)
	switch args[0] {
	case "SELECT":
		return value{}, nil
	case "XGROUP":
		key = args[2]
	case "XREADGROUP":
		key = args[slices.Index(args, "STREAMS")+1]
	}
	if key == "" {
		return c.s.do(ctx, args...)
	}
	r, err := c.s.exec(ctx, 0, []unit{{key, []command{args}}})
	if err != nil {
		return value{}, err
	}
	return r[0][0], r[0][0].err()
}

// lines runs several commands, one per line, split at blanks.
func (c *client) lines(text string) {
	c.t.Helper()
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 {
			c.do(f...)
		}
	}
}

type rig struct {
	patience       time.Duration // how long anything may take; 40 s if zero
	t              *testing.T
	source, target *redistest.Server
	a, b           *client
	o              Options
	pair           *Pair
	stop           func() error
}

func newRig(t *testing.T, source, target redistest.Options) *rig {
	t.Helper()
	// Other servers can be put in the place of redis-server, to try pairs of versions.
	for o, name := range map[*redistest.Options]string{&source: "REPLICATOR_TEST_SOURCE_REDIS", &target: "REPLICATOR_TEST_TARGET_REDIS"} {
		if v := os.Getenv(name); v != "" && o.Version == "" {
			o.Version = v
		}
	}
	r := &rig{t: t, source: redistest.Start(t, source), target: redistest.Start(t, target)}
	r.a, r.b = dialServer(t, r.source), dialServer(t, r.target)
	r.o = Options{Migration: "shop", Name: "cache", SourceURL: r.source.URL(), TargetURL: r.target.URL(), Epoch: 1,
		SourceTLS: TLS{CAFile: r.source.CAFile()}, TargetTLS: TLS{CAFile: r.target.CAFile()}, Log: testLog(t)}
	return r
}

func testLog(t *testing.T) *slog.Logger {
	if os.Getenv("REPLICATOR_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// run starts a pair; the returned rig's stop ends it and returns its error.
func (r *rig) run(reverse bool) *Pair {
	r.t.Helper()
	p := New(r.o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, reverse) }()
	ended := false
	stop := func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			r.t.Error("Run doesn't end")
			return nil
		}
	}
	r.t.Cleanup(func() { stop() })
	r.pair, r.stop = p, stop
	return p
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(r.patience, 40*time.Second))
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) caughtUp() {
	r.t.Helper()
	if err := r.pair.CaughtUp(r.ctx()); err != nil {
		r.t.Fatalf("not caught up: %v; status %+v", err, r.pair.Status())
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func soak() bool { return os.Getenv("REPLICATOR_SOAK") == "1" }

func hasProblem(s Status, code string) bool {
	return slices.ContainsFunc(s.Problems, func(f findingT) bool { return f.Code == code })
}
