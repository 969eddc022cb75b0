package redissync

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
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
	e, err := parseEndpoint(srv.URL(), TLS{CAFile: srv.CAFile()})
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
	short          bool          // one trouble only
	patience       time.Duration // how long anything may take; 40 s if zero
	versions       [2]string
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

// equal fails unless both servers hold the same keys, values and expiries. It reads them by its own means.
func (r *rig) equal() {
	r.t.Helper()
	a, b := contents(r.t, r.a), contents(r.t, r.b)
	bad := 0
	for k, x := range a {
		y, ok := b[k]
		if ok && x.value == y.value && near(x.expires, y.expires, 5*time.Millisecond) {
			continue
		}
		if !ok && x.expires != 0 && x.expires <= time.Now().Add(50*time.Millisecond).UnixMilli() {
			continue // expired between the two readings
		}
		if bad++; bad < 10 {
			r.t.Errorf("key %v: source %q expires %d, target %q expires %d (there: %v)", k, clipS(x.value), x.expires, clipS(y.value), y.expires, ok)
		}
	}
	for k, y := range b {
		if _, ok := a[k]; !ok && (y.expires == 0 || y.expires > time.Now().UnixMilli()) {
			if bad++; bad < 10 {
				r.t.Errorf("key %v is on the target only: %q", k, clipS(y.value))
			}
		}
	}
	if bad > 0 {
		r.t.Fatalf("%d keys differ of %d and %d", bad, len(a), len(b))
	}
}

func clipS(s string) string { return s[:min(len(s), 60)] }

type whole struct {
	value   string
	expires int64
}

// contents reads everything but replicator's own keys by plain commands.
func contents(t *testing.T, c *client) map[keyID]whole {
	t.Helper()
	out := map[keyID]whole{}
	ctx := context.Background()
	info, err := readInfo(ctx, c.s, "keyspace")
	if err != nil {
		t.Fatal(err)
	}
	for db := range info.databases {
		err := scanKeys(ctx, c.s, db, Options{}, func(keys []string) error {
			for _, k := range keys {
				v, err := plainValue(ctx, c.s, db, k)
				if err != nil {
					return err
				}
				x, err := c.s.exec(ctx, db, []unit{{k, []command{{"MULTI"}, {"PTTL", k}, {"TIME"}, {"EXEC"}}}})
				if err != nil {
					return err
				}
				left, now := x[0][3].items[0].num, x[0][3].items[1].strings()
				sec, _ := strconv.ParseInt(now[0], 10, 64)
				usec, _ := strconv.ParseInt(now[1], 10, 64)
				if left >= 0 {
					left += sec*1000 + usec/1000
				}
				if v != "none" && left != -2 {
					out[keyID{db, k}] = whole{v, max(0, left)}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	c.s.exec(ctx, 0, []unit{{"", []command{{"PING"}}}})
	return out
}

func plainValue(ctx context.Context, s *session, db int, key string) (string, error) {
	r, err := s.exec(ctx, db, []unit{{key, []command{{"TYPE", key}}}})
	if err != nil {
		return "", err
	}
	var cmds []command
	switch r[0][0].str {
	case "string":
		cmds = []command{{"GET", key}}
	case "list":
		cmds = []command{{"LRANGE", key, "0", "-1"}}
	case "set":
		cmds = []command{{"SMEMBERS", key}}
	case "hash":
		cmds = []command{{"HGETALL", key}}
	case "zset":
		cmds = []command{{"ZRANGE", key, "0", "-1", "WITHSCORES"}}
	case "stream":
		cmds = []command{{"XRANGE", key, "-", "+"}, {"XINFO", "GROUPS", key}}
	default:
		return "none", nil
	}
	r, err = s.exec(ctx, db, []unit{{key, cmds}})
	if err != nil {
		return "", err
	}
	text := ""
	for i, v := range r[0] {
		if cmds[0][0] == "SMEMBERS" {
			slices.SortFunc(v.items, func(a, b value) int { return strings.Compare(a.str, b.str) })
		}
		if cmds[0][0] == "XRANGE" && i == 1 { // newer servers tell more of a group
			for g := range v.items {
				v.items[g].items = v.items[g].items[:min(len(v.items[g].items), 8)]
			}
		}
		if cmds[0][0] == "HGETALL" {
			v.items = []value{{kind: kindBulk, str: strings.Join(sortedPairs(v.strings()), ",")}}
		}
		if cmds[0][0] == "ZRANGE" { // servers print scores differently
			for i := 1; i < len(v.items); i += 2 {
				score, _ := strconv.ParseFloat(v.items[i].str, 64)
				v.items[i].str = strconv.FormatFloat(score, 'g', -1, 64)
			}
		}
		text += fmt.Sprint(flat(v)) + "\n"
	}
	return text, nil
}

func flat(v value) any {
	switch {
	case v.null:
		return nil
	case v.kind == kindInt:
		return v.num
	case len(v.items) > 0:
		out := make([]any, len(v.items))
		for i := range v.items {
			out[i] = flat(v.items[i])
		}
		return out
	}
	return strconv.Quote(v.str)
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
