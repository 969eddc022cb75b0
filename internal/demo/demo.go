package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/internal/demo/ledger"
	"replicator/internal/demo/shop"
)

// Options are those of the command.
type Options struct {
	// Auto cuts over by itself, proves the result and ends; otherwise the demo stays up until ctx ends.
	Auto bool
	// Capture is logical or trigger; empty means logical.
	Capture string
	// Rate is the number of Postgres transactions a second, and of Redis writes besides; 0 means 200.
	Rate float64
	// Duration is how long Auto streams before it cuts over; 0 means 20 s.
	Duration time.Duration
	// Keep leaves the directory with the servers' data and logs in place.
	Keep bool
	// JSON writes the result of Auto as one document instead of a table.
	JSON bool
	// Stdout gets the result, Stderr the progress.
	Stdout, Stderr io.Writer
	// Executable is the replicator to run; empty means this program.
	Executable string
}

// ErrFailed is returned when the demo ran to its end and what it found isn't good; the result says what.
var ErrFailed = errors.New("the migration did not go as it has to: see the result above")

func (o Options) withDefaults() (Options, error) {
	switch o.Capture {
	case "":
		o.Capture = "logical"
	case "logical", "trigger":
	default:
		return o, fmt.Errorf("unknown capture %q: give logical or trigger", o.Capture)
	}
	if o.Rate == 0 {
		o.Rate = 200
	}
	if o.Rate < 0 || o.Duration < 0 {
		return o, errors.New("rate and duration can't be negative")
	}
	if o.Duration == 0 {
		o.Duration = 20 * time.Second
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Executable == "" {
		var err error
		if o.Executable, err = os.Executable(); err != nil {
			return o, fmt.Errorf("find this program: %w", err)
		}
	}
	return o, nil
}

// stage is a running demo.
type stage struct {
	o       Options
	started time.Time
	dir     string
	console *console
	servers *Servers
	rows    int64 // loaded
	keys    int64
	ledger  *ledger.Ledger
	lag     *lagProbe
	writers *shop.Writers
	hooks   *http.Server
	daemon  *Daemon
	api     *Client
	resting chan struct{} // closed when the writers have ended all they had in hand
}

// Run runs the demo until it has ended by itself (Auto) or ctx ends, which is no error then, and stops and removes all that it
// started.
func Run(ctx context.Context, o Options) (err error) {
	o, err = o.withDefaults()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "replicator-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	s := &stage{o: o, started: time.Now(), dir: dir, console: newConsole(o.Stderr), resting: make(chan struct{})}
	defer func() {
		if o.Keep {
			s.console.say("kept: data, logs and configuration in %s", dir)
			return
		}
		if rmErr := os.RemoveAll(dir); rmErr != nil {
			err = errors.Join(err, fmt.Errorf("remove the demo's directory: %w", rmErr))
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil { // the servers may run as another user
		return err
	}
	err = s.run(ctx)
	s.console.end()
	if err != nil && ctx.Err() == nil {
		s.showLog()
	}
	if ctx.Err() != nil && !o.Auto && errors.Is(err, context.Canceled) {
		return nil // the way to end it
	}
	return err
}

// showLog shows the end of the daemon's log, which goes with the directory.
func (s *stage) showLog() {
	text, err := os.ReadFile(filepath.Join(s.dir, "replicator.log"))
	if err != nil || len(text) == 0 {
		return // it never started
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	s.console.say("the end of the daemon's log:\n%s", strings.Join(lines[max(0, len(lines)-30):], "\n"))
}

func (s *stage) run(ctx context.Context) (err error) {
	s.console.say("starting two Postgres and two Redis servers in %s", s.dir)
	if s.servers, err = LaunchServers(ctx, s.dir, ServersOptions{Capture: s.o.Capture}); err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		err = errors.Join(err, s.servers.Stop(stopping))
	}()

	s.console.say("filling the shop")
	if s.rows, s.keys, err = shop.Load(ctx, s.servers.Source, shop.Medium); err != nil {
		return err
	}
	s.console.say("the shop has %s rows and %s keys", thousands(s.rows), thousands(s.keys))

	s.ledger = ledger.New(strings.ToLower(rand.Text()[:6]))
	s.lag = &lagProbe{target: s.servers.Target}
	appLog, err := os.Create(filepath.Join(s.dir, "shop.log"))
	if err != nil {
		return err
	}
	defer appLog.Close()
	s.writers = shop.NewWriters(shop.WritersOptions{
		At: s.servers.Source, Ledger: s.ledger, Size: shop.Medium, Rate: s.o.Rate, Seed: uint64(s.started.UnixNano()),
		Acknowledged: s.lag.acknowledged, Log: slog.New(slog.NewTextHandler(appLog, nil)),
	})
	stopHooks, err := s.serveHooks(ctx)
	if err != nil {
		return err
	}
	defer stopHooks()
	stopDaemon, err := s.prepareDaemon(ctx)
	if err != nil {
		return err
	}

	// The writers outlive the scenario's context by a little: they rest before the proof, not with it.
	writing, rest := context.WithCancel(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(s.resting)
		return s.writers.Run(writing)
	})
	keeping, letGo := context.WithCancel(context.WithoutCancel(ctx))
	group.Go(func() error {
		return s.daemon.Keep(keeping, func(err error) { s.console.say("the daemon ended (%v); starting it again", err) })
	})
	group.Go(func() error {
		defer func() { rest(); letGo(); stopDaemon() }()
		if s.o.Auto {
			return s.auto(ctx, rest)
		}
		return s.stay(ctx, rest)
	})
	return group.Wait()
}

// serveHooks starts the application's end of the webhook.
func (s *stage) serveHooks(ctx context.Context) (stop func(), err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the switch hook: %w", err)
	}
	s.servers.HookURL = "http://" + l.Addr().String() + "/switch"
	s.servers.HookSecret = rand.Text()
	handler := &shop.Switch{Secret: s.servers.HookSecret, Source: s.servers.Source, Target: s.servers.Target, Use: s.writers.Use}
	s.hooks = &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.hooks.Serve(l) // always returns ErrServerClosed, or the listener's end, on which the switch hook fails visibly
	}()
	return func() {
		_ = s.hooks.Close()
		<-done
	}, nil
}

// prepareDaemon writes the configuration and readies the daemon, which Keep starts.
func (s *stage) prepareDaemon(ctx context.Context) (stop func(), err error) {
	config, err := s.servers.WriteConfig(s.dir, s.o.Capture)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "replicator.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	s.daemon = &Daemon{Executable: s.o.Executable, Args: []string{"run", "--config", config.Path}, Env: config.Env, Log: log}
	s.api = &Client{Address: config.Address, Token: config.Token}
	return func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		_ = s.daemon.Stop(stopping) // its own end is in its log
		_ = log.Close()
	}, nil
}
