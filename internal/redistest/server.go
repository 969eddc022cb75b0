package redistest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options say how a server is started. The zero value is a Redis without persistence, password or TLS.
type Options struct {
	// Version is one of Versions; redis-server from PATH if empty.
	Version string
	// Binary is a server program, instead of a version's.
	Binary string
	// Settings are configuration directives, such as "maxmemory": "100mb".
	Settings map[string]string
	// Password, if set, is asked of every client.
	Password string
	// TLS makes the server speak TLS only, with a certificate made for it; CAFile holds the authority.
	TLS bool
	// ClockAhead is how far the server's clock is ahead of ours, in whole milliseconds.
	ClockAhead time.Duration
	// Persistent keeps the data over a restart (an append-only file, written at every command).
	Persistent bool
}

// TB is what Start needs of a testing.TB.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// Server is one running (or stopped) server. Its port stays the same over restarts. Methods may be called concurrently.
type Server struct {
	o    Options
	dir  string
	port int
	ca   string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a server that is killed at the end of the test; failing to start fails the test.
func Start(t TB, o Options) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := Launch(ctx, t.TempDir(), o)
	if err != nil {
		t.Fatalf("start redis-server: %v", err)
	}
	t.Cleanup(func() { _ = s.Kill() })
	return s
}

// Launch starts a server in dir, which must exist and be empty, and returns when it answers. The server dies with this process.
func Launch(ctx context.Context, dir string, o Options) (*Server, error) {
	if o.Binary == "" {
		var err error
		if o.Binary, err = program(o.Version); err != nil {
			return nil, err
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, dir: dir}
	if o.TLS {
		if s.ca, err = makeCertificate(dir); err != nil {
			return nil, err
		}
	}
	var last error
	for range 5 { // the port may be taken between the choice and the start
		if s.port, err = freePort(); err != nil {
			return nil, err
		}
		if last = s.Start(ctx); last == nil {
			return s, nil
		}
	}
	return nil, last
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Start starts a server that was stopped or killed, on the same port, and returns when it answers.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("the server runs already")
	}
	settings := map[string]string{"bind": "127.0.0.1", "port": strconv.Itoa(s.port), "dir": s.dir, "save": "", "appendonly": "no", "daemonize": "no",
		"logfile": filepath.Join(s.dir, "server.log"), "repl-diskless-sync-delay": "0"}
	if s.o.Version != "redis-6.0" { // there, it is always allowed
		settings["enable-debug-command"] = "local"
	}
	if s.o.Persistent {
		settings["appendonly"], settings["appendfsync"] = "yes", "always"
	}
	if s.o.Password != "" {
		settings["requirepass"] = s.o.Password
	}
	if s.o.TLS {
		settings["port"], settings["tls-port"] = "0", strconv.Itoa(s.port)
		settings["tls-cert-file"], settings["tls-key-file"], settings["tls-ca-cert-file"] = filepath.Join(s.dir, "server.crt"), filepath.Join(s.dir, "server.key"), s.ca
		settings["tls-auth-clients"] = "no"
	}
	for k, v := range s.o.Settings {
		settings[k] = v
	}
	var conf strings.Builder
	for _, k := range sorted(settings) {
		fmt.Fprintf(&conf, "%s %s\n", k, quote(settings[k]))
	}
	file := filepath.Join(s.dir, "server.conf")
	if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
		return err
	}
	cmd := exec.Command(s.o.Binary, file)
	if s.o.ClockAhead != 0 {
		var err error
		if cmd.Env, err = clockEnvironment(s.dir, s.o.ClockAhead); err != nil {
			return err
		}
	}
	// In a group of its own, a terminal's Ctrl-C reaches only us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// Pdeathsig follows the thread that started the process: start it from one that lives as long as we do.
	if err := launcher.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", s.o.Binary, err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	for {
		if s.answers(ctx) {
			s.cmd, s.done = cmd, done
			return nil
		}
		select {
		case <-done:
			log, _ := os.ReadFile(filepath.Join(s.dir, "server.log"))
			return fmt.Errorf("%s ended at once: %s", s.o.Binary, log[max(0, len(log)-500):])
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-done
			return fmt.Errorf("wait for %s: %w", s.o.Binary, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// answers tells whether the server takes commands; a TLS server, whether it listens.
func (s *Server) answers(ctx context.Context) bool {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", s.Address())
	if err != nil {
		return false
	}
	defer c.Close()
	if s.o.TLS {
		return true
	}
	c.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprint(c, "PING\r\n")
	line, err := bufio.NewReader(c).ReadString('\n')
	return err == nil && (strings.HasPrefix(line, "+PONG") || strings.HasPrefix(line, "-NOAUTH"))
}

// Address is host:port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Port is the port the server listens on.
func (s *Server) Port() int { return s.port }

// CAFile is the authority's certificate of a TLS server.
func (s *Server) CAFile() string { return s.ca }

// URL is redis[s]://[:PASSWORD@]127.0.0.1:PORT.
func (s *Server) URL() string {
	scheme, auth := "redis", ""
	if s.o.TLS {
		scheme = "rediss"
	}
	if s.o.Password != "" {
		auth = ":" + s.o.Password + "@"
	}
	return scheme + "://" + auth + s.Address()
}

// Log is the end of the server's log, or what comes before and behind the beginning of its last report of a crash.
func (s *Server) Log() string {
	log, _ := os.ReadFile(filepath.Join(s.dir, "server.log"))
	if i := bytes.LastIndex(log, []byte("BUG REPORT START")); i >= 0 {
		return string(log[max(0, i-1000):min(len(log), i+4000)])
	}
	return string(log[max(0, len(log)-4000):])
}

// Pid is the process id, 0 while the server is stopped.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Kill ends the server at once (SIGKILL). It does nothing if the server isn't running.
func (s *Server) Kill() error { return s.end(context.Background(), syscall.SIGKILL) }

// Stop ends the server in an orderly way (SIGTERM) and waits for it.
func (s *Server) Stop(ctx context.Context) error { return s.end(ctx, syscall.SIGTERM) }

func (s *Server) end(ctx context.Context, sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.done:
		s.cmd = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sorted(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// quote leaves values of several words, such as "normal 0 0 0", as they are.
func quote(v string) string {
	if v == "" {
		return `""`
	}
	return v
}
