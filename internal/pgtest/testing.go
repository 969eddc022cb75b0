package pgtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// TB is what this package needs of a testing.TB. It keeps package testing, and its flags, out of programs that only Launch.
type TB interface {
	Helper()
	Name() string
	Failed() bool
	Logf(format string, args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Cleanup(f func())
}

// Start starts a server for one test, which ends and removes it when it is done. When the test fails, the end of the server's
// log is printed.
func Start(t TB, o Options) *Server {
	t.Helper()
	sweep()
	dir, err := os.MkdirTemp("", fmt.Sprintf("replicator-pg-%d-", os.Getpid()))
	if err != nil {
		t.Fatalf("make the server's directory: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the server's directory: %v", err)
		}
	})
	guard, err := newJanitor(dir)
	if err != nil {
		t.Fatalf("start the janitor of %s: %v", dir, err)
	}
	t.Cleanup(guard.dismiss)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := Launch(ctx, dir, o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("PostgreSQL %d on port %d, end of its log:\n%s", s.version, s.port, tail(s.logFrom(0), 60))
		}
		s.lifecycle.Lock()
		defer s.lifecycle.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.end(ctx, syscall.SIGQUIT); err != nil {
			t.Errorf("end the server: %v", err)
		}
	})
	return s
}

func tail(log []byte, lines int) string {
	all := strings.Split(strings.TrimRight(string(log), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

var shared struct {
	sync.Mutex
	server *Server
	err    error
	guard  *janitor // held so that its pipe isn't collected and closed while the process lives
}

// Shared returns the server of DefaultVersion that all tests of this process share, started on first use. Give each test its own
// Database; don't stop, kill or reconfigure it. It is removed when the process ends.
func Shared(t TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = startShared()
	}
	if shared.err != nil {
		t.Fatalf("%v", shared.err)
	}
	return shared.server
}

func startShared() (*Server, error) {
	sweep()
	dir, err := os.MkdirTemp("", fmt.Sprintf("replicator-pg-%d-", os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("make the shared server's directory: %w", err)
	}
	if shared.guard, err = newJanitor(dir); err != nil {
		return nil, fmt.Errorf("start the janitor of %s: %w", dir, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return Launch(ctx, dir, Options{Settings: map[string]string{
		"max_wal_senders": "60", "max_replication_slots": "100", "max_connections": "300", "max_prepared_transactions": "40",
	}})
}

// Connect opens a session that the test closes when it is done.
func Connect(t TB, url string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server may be gone, on purpose
	})
	return conn
}

// Exec runs scripts of one or more statements each in a session of its own.
func Exec(t TB, url string, scripts ...string) {
	t.Helper()
	if err := execute(url, scripts...); err != nil {
		t.Fatalf("%v", err)
	}
}

func execute(url string, scripts ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close(ctx)
	for _, script := range scripts {
		if _, err := conn.PgConn().Exec(ctx, script).ReadAll(); err != nil {
			return fmt.Errorf("run %q: %w", script[:min(len(script), 200)], err)
		}
	}
	return nil
}

// DumpSchema returns the database's schema by pg_dump --schema-only. The \restrict lines, which carry a random key, are left out,
// so that two dumps of equal schemas are equal.
func DumpSchema(t TB, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	_ = conn.Close(ctx)
	version, err := strconv.Atoi(major)
	if err != nil {
		t.Fatalf("read the server's version %q: %v", major, err)
	}
	cmd := exec.CommandContext(ctx, PgDump(version), "--schema-only", "--dbname="+url)
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run pg_dump (scripts/install-tools pg versions): %v\n%s", err, problems.String())
	}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, `\restrict `) && !strings.HasPrefix(line, `\unrestrict `) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// sweep removes the directories of test processes that ended without a janitor.
var sweep = sync.OnceFunc(func() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), "replicator-pg-*-*"))
	for _, dir := range dirs {
		owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "replicator-pg-"), "-")
		pid, err := strconv.Atoi(owner)
		if err != nil || alive(pid) {
			continue
		}
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		_ = os.RemoveAll(dir) // best effort: its server is dead, the next sweep tries again
	}
})
