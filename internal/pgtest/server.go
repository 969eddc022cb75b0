package pgtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Options say which server to start. The zero value is a server of DefaultVersion ready for logical replication.
type Options struct {
	// Version is the major version, 13 to 18; 0 means DefaultVersion.
	Version int
	// Settings override defaults of postgresql.conf, without quotes: {"max_connections": "20"}.
	Settings map[string]string
	// TLS makes the server present a self-signed certificate (CertFile) and refuse unencrypted TCP sessions, as Heroku and RDS do.
	TLS bool
}

// settingsFile is included by the template's postgresql.conf; ALTER SYSTEM still overrides it.
const settingsFile = "replicator.conf"

func defaults() map[string]string {
	return map[string]string{
		"listen_addresses":          "127.0.0.1",
		"wal_level":                 "logical",
		"fsync":                     "off",
		"full_page_writes":          "off",
		"max_connections":           "200",
		"max_wal_senders":           "20",
		"max_replication_slots":     "20",
		"max_prepared_transactions": "10",
		"max_worker_processes":      "20",
		"shared_buffers":            "128MB",
		"log_line_prefix":           "%m [%p] %q%u@%d %a ",
		"log_timezone":              "UTC",
		"timezone":                  "UTC",
	}
}

// Server is one PostgreSQL server. Its methods may be called from several goroutines, but Start, Stop and Kill exclude one
// another.
type Server struct {
	version   int
	install   string
	dir       string
	socketDir string
	ownSocket bool // socketDir lies outside dir and goes when the server ends
	port      int
	tls       bool
	as        account

	lifecycle sync.Mutex // held through Start, Stop and Kill
	mu        sync.Mutex // guards process
	process   *process   // nil while stopped

	databases databases
}

// Launch starts a server whose data lies below dir, without a test around it. A data directory that an earlier Launch left in
// dir is started again as it is. ctx bounds the start only: the caller ends the server with Stop, and it dies with this process.
// For root, dir must lie where every user can enter.
func Launch(ctx context.Context, dir string, o Options) (*Server, error) {
	if o.Version == 0 {
		o.Version = DefaultVersion
	}
	as, err := runAs()
	if err != nil {
		return nil, err
	}
	install, err := installation(o.Version, as)
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the server's directory: %w", err)
	}
	s := &Server{version: o.Version, install: install, dir: dir, tls: o.TLS, as: as}
	if err := s.prepare(o); err != nil {
		return nil, fmt.Errorf("prepare PostgreSQL %d in %s: %w", o.Version, dir, err)
	}
	if err := s.startOnFreePort(ctx); err != nil {
		return nil, fmt.Errorf("start PostgreSQL %d in %s: %w", o.Version, dir, err)
	}
	return s, nil
}

// prepare makes the directories and the settings file.
func (s *Server) prepare(o Options) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	if s.as.switched && !open(s.dir) {
		return fmt.Errorf("the user %s, which runs the server, can't enter it: choose a directory below %s", s.as.name, os.TempDir())
	}
	if err := s.makeSocketDir(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(s.DataDir(), "PG_VERSION")); errors.Is(err, os.ErrNotExist) {
		from, err := template(s.install, s.version, s.as)
		if err != nil {
			return err
		}
		if err := copyTree(from, s.DataDir(), s.as); err != nil {
			return err
		}
	}
	settings := defaults()
	if o.TLS {
		if err := s.makeCertificate(); err != nil {
			return err
		}
		settings["ssl"] = "on"
	}
	settings["unix_socket_directories"] = s.socketDir
	maps.Copy(settings, o.Settings)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	return s.write(settingsFile, b.String(), 0o600)
}

// write puts a file into the data directory, owned by the account that runs the server.
func (s *Server) write(name, content string, mode os.FileMode) error {
	path := filepath.Join(s.DataDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		return err
	}
	return s.as.give(path)
}

// makeSocketDir picks a directory whose path leaves room for the socket's name: sun_path holds 107 bytes (unix(7)).
func (s *Server) makeSocketDir() error {
	dir := filepath.Join(s.dir, "socket")
	if len(dir) > 85 {
		short, err := os.MkdirTemp("", "replicator-pg-socket-")
		if err != nil {
			return err
		}
		dir, s.ownSocket = short, true
	}
	s.socketDir = dir
	return nil
}

// startOnFreePort chooses ports until one works: between our look and the server's bind another process may take it.
func (s *Server) startOnFreePort(ctx context.Context) error {
	s.lifecycle.Lock()
	defer s.lifecycle.Unlock()
	var err error
	for range 20 {
		if s.port, err = freePort(); err != nil {
			return err
		}
		if err = s.spawn(ctx); !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return err
}

// freePort returns a port that nobody listens on, below the range from which the system gives outgoing connections theirs.
func freePort() (int, error) {
	var last error
	for range 100 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		return port, l.Close()
	}
	return 0, fmt.Errorf("find a free port: %w", last)
}

// URL returns the superuser's URL of a database.
func (s *Server) URL(db string) string { return s.url("postgres", Password, db) }

func (s *Server) url(user, password, db string) string {
	mode := "disable"
	if s.tls {
		mode = "require"
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path: "/" + db, RawQuery: "sslmode=" + mode,
	}
	return u.String()
}

// Version returns the major version.
func (s *Server) Version() int { return s.version }

// Port returns the TCP port, the same for the server's whole life, restarts included.
func (s *Server) Port() int { return s.port }

// DataDir returns the data directory.
func (s *Server) DataDir() string { return filepath.Join(s.dir, "data") }

// SocketDir returns the directory of the Unix socket, through which every role is trusted.
func (s *Server) SocketDir() string { return s.socketDir }

// BinDir returns the directory of the server's programs.
func (s *Server) BinDir() string { return filepath.Join(s.install, "bin") }

// LogFile returns the path of the server's log, which all its starts append to.
func (s *Server) LogFile() string { return filepath.Join(s.dir, "log") }

// CertFile returns the path of the certificate that the server presents (Options.TLS), which is also its own authority: it is
// valid for localhost and 127.0.0.1.
func (s *Server) CertFile() string { return filepath.Join(s.DataDir(), "server.crt") }
