package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

const (
	// maxBody bounds a request's body; the largest that makes sense names some thousand tables.
	maxBody = 256 << 10
	// answerTime bounds an ordinary request; long ones set their own.
	answerTime = 30 * time.Second
	// shutdownTime bounds how long a stopping server waits for requests under way.
	shutdownTime = 5 * time.Second
)

// Options say what a Server serves and where.
type Options struct {
	// Listen is the admin listener's address, MetricsListen that of the metrics; port 0 takes a free one.
	Listen, MetricsListen string
	Tokens                Tokens
	// Pprof serves /debug/pprof/ to operators.
	Pprof   bool
	Backend Backend
	// Gatherer is what /metrics shows.
	Gatherer prometheus.Gatherer
	// Live returns an error only if our own loops have stopped turning, never for a dependency or a wait; nil means always live.
	Live func() error
	// Ready returns why the process isn't ready; a standby is. nil means always ready.
	Ready func() error
	Log   *slog.Logger
}

// Server is the admin and the metrics listener.
type Server struct {
	o             Options
	auth          *auth
	hub           *hub
	verifications *verifications
	admin         net.Listener
	metrics       net.Listener
}

// NewServer builds a server; Listen opens its addresses and Run serves.
func NewServer(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Gatherer == nil {
		o.Gatherer = prometheus.NewRegistry()
	}
	h := newHub()
	return &Server{o: o, auth: newAuth(o.Tokens), hub: h, verifications: newVerifications(o.Backend, h)}
}

// Listen opens both addresses, so that an address in use is told before anything else begins.
func (s *Server) Listen(ctx context.Context) error {
	var (
		err error
		lc  net.ListenConfig
	)
	if s.admin, err = lc.Listen(ctx, "tcp", s.o.Listen); err != nil {
		return fmt.Errorf("open the admin listener: %w: choose another address by REPLICATOR_LISTEN or admin.listen", err)
	}
	if s.metrics, err = lc.Listen(ctx, "tcp", s.o.MetricsListen); err != nil {
		_ = s.admin.Close()
		return fmt.Errorf("open the metrics listener: %w: choose another address by REPLICATOR_METRICS_LISTEN or metrics.listen", err)
	}
	return nil
}

// AdminAddr returns the address of the admin listener that Listen opened.
func (s *Server) AdminAddr() string { return s.admin.Addr().String() }

// MetricsAddr returns the address of the metrics listener that Listen opened.
func (s *Server) MetricsAddr() string { return s.metrics.Addr().String() }

// Publish sends an event to everybody who listens on /api/v1/events. It never blocks: who reads too slowly loses events and gets
// the whole status instead.
func (s *Server) Publish(e Event) { s.hub.publish(e) }

// Run serves until ctx ends, then lets requests under way finish for a few seconds. Listen comes first.
func (s *Server) Run(ctx context.Context) error {
	if s.auth.open() {
		s.o.Log.Warn("no token is configured: everybody who reaches the admin listener may look, nobody may act", "listen", s.AdminAddr())
	}
	s.o.Log.Info("serving", "admin", "http://"+s.AdminAddr()+"/", "metrics", "http://"+s.MetricsAddr()+"/metrics")
	g, ctx := errgroup.WithContext(ctx)
	// Handlers that wait (events, caught-up) end with ctx; the others get shutdownTime.
	g.Go(func() error { return s.serve(ctx, s.admin, s.handler(ctx)) })
	g.Go(func() error { return s.serve(ctx, s.metrics, s.metricsHandler()) })
	g.Go(func() error { return s.watch(ctx) })
	err := g.Wait()
	s.verifications.wait()
	return err
}

func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if err := server.Shutdown(bound); err != nil {
		_ = server.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	}
	return nil
}

// handler is everything on the admin listener. running ends with the server; actions are bound to it and not to the client's
// connection, so that closing a terminal doesn't leave a finish half done.
func (s *Server) handler(running context.Context) http.Handler {
	mux := http.NewServeMux()
	s.health(mux)
	api := &api{Server: s, running: running}
	api.register(mux)
	s.page(mux)
	if s.o.Pprof {
		profiles := http.NewServeMux()
		profiles.HandleFunc("/debug/pprof/", pprof.Index)
		profiles.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		profiles.HandleFunc("/debug/pprof/profile", pprof.Profile)
		profiles.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		profiles.HandleFunc("/debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("/debug/pprof/", func(w http.ResponseWriter, r *http.Request) {
			if p := s.auth.require(r, Operator); p != nil {
				writeProblem(w, p)
				return
			}
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(10 * time.Minute))
			profiles.ServeHTTP(w, r)
		})
	}
	return guarded(mux)
}

func (s *Server) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	s.health(mux)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.o.Gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError, Timeout: 10 * time.Second,
	}))
	return guarded(mux)
}

func (s *Server) health(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", probe("healthy", s.o.Live))
	mux.HandleFunc("GET /readyz", probe("ready", s.o.Ready))
}

// probe answers 200 with the good word, or 503 with the reason.
func probe(good string, check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if check != nil {
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = fmt.Fprintf(w, "not %s: %v\n", good, err)
				return
			}
		}
		_, _ = fmt.Fprintln(w, good)
	}
}

// guarded bounds every request and tells browsers to trust nothing that isn't ours.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime)) // a test's recorder has none
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}
