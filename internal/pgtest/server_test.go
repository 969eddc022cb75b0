package pgtest_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"replicator/internal/pgtest"

	"github.com/jackc/pgx/v5"
)

func queryString(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	var s string
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

func TestStartIsReadyForLogicalReplication(t *testing.T) {
	t.Parallel()
	for _, version := range []int{13, 15, 18} {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Version: version, Settings: map[string]string{"work_mem": "7MB", "cluster_name": "it's"}})
			conn := pgtest.Connect(t, s.URL("postgres"))
			for setting, want := range map[string]string{
				"wal_level": "logical", "max_prepared_transactions": "10", "work_mem": "7MB", "cluster_name": "it's",
				"listen_addresses": "127.0.0.1", "server_encoding": "UTF8",
			} {
				if got := queryString(t, conn, "select current_setting($1)", setting); got != want {
					t.Errorf("%s is %q, want %q", setting, got, want)
				}
			}
			if got := queryString(t, conn, "select current_setting('server_version_num')::int / 10000 || ''"); got != strconv.Itoa(version) {
				t.Errorf("started version %s", got)
			}
			queryString(t, conn, "select lsn::text from pg_create_logical_replication_slot('s', 'pgoutput')")
			pgtest.Exec(t, s.URL("postgres"), "create table moved (id int primary key)")
			if dump := pgtest.DumpSchema(t, s.URL("postgres")); !strings.Contains(dump, "CREATE TABLE public.moved") || strings.Contains(dump, "restrict") {
				t.Errorf("the dump lacks the table or carries a \\restrict line:\n%s", dump)
			}
		})
	}
}

func TestWrongPasswordIsRefused(t *testing.T) {
	t.Parallel()
	url := strings.Replace(pgtest.Shared(t).URL("postgres"), ":"+pgtest.Password+"@", ":wrong@", 1)
	if conn, err := pgx.Connect(t.Context(), url); err == nil {
		conn.Close(t.Context())
		t.Fatal("a wrong password was let in")
	} else if !strings.Contains(err.Error(), "28P01") {
		t.Fatalf("refused otherwise than by 28P01: %v", err)
	}
}

func TestKillLosesNothingCommittedAndKeepsThePort(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	pgtest.Exec(t, s.URL("postgres"), "create table t (id int)", "insert into t select generate_series(1, 1000)")
	busy := pgtest.Connect(t, s.URL("postgres"))
	backend := int(busy.PgConn().PID())
	port, pid := s.Port(), s.Pid()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []int{pid, backend} {
		if _, err := os.Stat("/proc/" + strconv.Itoa(p)); err == nil {
			state, _ := os.ReadFile("/proc/" + strconv.Itoa(p) + "/stat")
			if !strings.Contains(string(state), ") Z ") {
				t.Errorf("process %d survived: %s", p, state)
			}
		}
	}
	if s.Pid() != 0 {
		t.Error("a killed server has a pid")
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Port() != port {
		t.Errorf("the port moved from %d to %d", port, s.Port())
	}
	if got := queryString(t, pgtest.Connect(t, s.URL("postgres")), "select count(*)::text from t"); got != "1000" {
		t.Errorf("%s rows survived, want 1000", got)
	}
	if err := s.Start(t.Context()); err == nil {
		t.Error("a running server was started again")
	}
}

func TestStopEndsSessionsAndIsRepeatable(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{})
	conn := pgtest.Connect(t, s.URL("postgres"))
	for range 2 {
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the session outlived the server")
	}
	if _, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port())), time.Second); err == nil {
		t.Error("somebody listens on the stopped server's port")
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestServersStartedAtOnceDoNotCollide(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	ports := make([]int, 4)
	for i := range ports {
		wg.Go(func() {
			s, err := pgtest.Launch(t.Context(), filepath.Join(openTempDir(t), strings.Repeat("long", 30)), pgtest.Options{})
			if err != nil {
				t.Errorf("launch: %v", err)
				return
			}
			ports[i] = s.Port()
			t.Cleanup(func() {
				if err := s.Stop(context.Background()); err != nil {
					t.Errorf("stop: %v", err)
				}
				if _, err := os.Stat(s.SocketDir()); err == nil {
					t.Errorf("the socket's directory %s is left", s.SocketDir())
				}
			})
		})
	}
	wg.Wait()
	seen := map[int]bool{}
	for _, p := range ports {
		if p == 0 || seen[p] {
			t.Errorf("ports %v are not distinct", ports)
		}
		seen[p] = true
	}
}

// openTempDir is t.TempDir in a place that every user can enter.
func openTempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "replicator-pgtest-launch-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestTLSRefusesPlainSessionsAndProvesItself(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{TLS: true})
	pgtest.Connect(t, s.URL("postgres"))
	verified := strings.Replace(s.URL("postgres"), "sslmode=require", "sslmode=verify-full&sslrootcert="+s.CertFile(), 1)
	conn := pgtest.Connect(t, verified)
	if got := queryString(t, conn, "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()"); got != "true" {
		t.Errorf("ssl is %s", got)
	}
	plain, err := pgx.Connect(t.Context(), strings.Replace(s.URL("postgres"), "sslmode=require", "sslmode=disable", 1))
	if err == nil {
		plain.Close(t.Context())
		t.Error("an unencrypted session was let in")
	}
}

// A clone below /root can't be entered by the user that runs the servers.
func TestToolsInAPrivateDirectoryAreStarted(t *testing.T) {
	private := t.TempDir() // below a directory that only we may enter
	from := filepath.Join(pgtest.ToolsDir(), "postgres", "node_modules", "pg18")
	to := filepath.Join(private, "postgres", "node_modules")
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("REPLICATOR_TOOLS_DIR", private)
	t.Setenv("TMPDIR", openTempDir(t))
	s := pgtest.Start(t, pgtest.Options{Version: 18})
	queryString(t, pgtest.Connect(t, s.URL("postgres")), "select version()")
}

func TestAMissingVersionNamesTheCommandThatInstallsIt(t *testing.T) {
	t.Parallel()
	_, err := pgtest.Launch(t.Context(), openTempDir(t), pgtest.Options{Version: 12})
	if err == nil || !strings.Contains(err.Error(), "scripts/install-tools versions") {
		t.Fatalf("got %v", err)
	}
}

func TestProgramsThatLaunchDoNotImportTesting(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "replicator/internal/pgtest").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, pkg := range strings.Fields(string(out)) {
		if pkg == "testing" || strings.HasPrefix(pkg, "replicator/") && pkg != "replicator/internal/pgtest" {
			t.Errorf("imports %s", pkg)
		}
	}
}
