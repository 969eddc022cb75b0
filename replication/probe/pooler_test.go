package probe

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// pgbouncer starts PgBouncer in transaction mode before the database and returns the pooled URL. It runs as nobody, since it refuses
// root.
func pgbouncer(t *testing.T, direct string, more ...string) string {
	t.Helper()
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	dir, err := os.MkdirTemp("", "replicator-pgbouncer-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	password, _ := u.User.Password()
	config := fmt.Sprintf("[databases]\n* = host=%s port=%s user=%s password=%s\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\nauth_type = any\npool_mode = transaction\nunix_socket_dir =\n%s\n",
		u.Hostname(), u.Port(), u.User.Username(), password, port, strings.Join(more, "\n"))
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	args := []string{file}
	if os.Getuid() == 0 {
		args = []string{"-u", "nobody", file}
	}
	cmd := exec.CommandContext(ctx, "pgbouncer", args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatalf("start pgbouncer (apt-get install pgbouncer): %v", err)
	}
	t.Cleanup(func() { cancel(); _ = cmd.Wait() })
	address := fmt.Sprintf("127.0.0.1:%d", port)
	var dialer net.Dialer
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := dialer.DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pgbouncer doesn't answer: %v\n%s", err, out.String())
		}
	}
	u.Host = address
	return u.String()
}

// A pooled URL is recognised both where the pooler refuses our settings and where it swallows them.
func TestPooledURL(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY)")
	check(t, options(pgbouncer(t, src), dst), "source/pooled-url=error")
	ignore := "ignore_startup_parameters = extra_float_digits,intervalstyle,lc_monetary,bytea_output,xmloption,search_path,statement_timeout,lock_timeout," +
		"idle_in_transaction_session_timeout,row_security,default_transaction_isolation,default_transaction_read_only,default_transaction_deferrable," +
		"synchronize_seqscans,jit,client_min_messages,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count"
	check(t, options(src, pgbouncer(t, dst, ignore)), "target/pooled-url=error")
}
