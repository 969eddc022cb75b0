package schema

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/preflight"
)

// debianClients is where Debian and the PostgreSQL project's own packages put each major version's client programs.
const debianClients = "/usr/lib/postgresql/*/bin/pg_dump"

// FindPgDump returns the pg_dump to use: path if given, else the newest major version in Debian's place, else what PATH has.
func FindPgDump(path string) (string, error) {
	if path != "" {
		if _, err := exec.LookPath(path); err != nil {
			return "", &preflight.Hinted{Code: "pg-dump-missing", Err: fmt.Errorf("find pg_dump: %w", err), Hint: "correct the configured path of pg_dump"}
		}
		return path, nil
	}
	found, _ := filepath.Glob(debianClients) // the pattern is well formed
	best, bestMajor := "", 0
	for _, f := range found {
		major, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(f))))
		if err == nil && major > bestMajor {
			best, bestMajor = f, major
		}
	}
	if best != "" {
		return best, nil
	}
	if p, err := exec.LookPath("pg_dump"); err == nil {
		return p, nil
	}
	return "", &preflight.Hinted{Code: "pg-dump-missing", Err: errors.New("find pg_dump: none in " + debianClients + " nor in PATH"),
		Hint: "install the PostgreSQL client programs of the source's major version or newer (Debian: postgresql-client)"}
}

var clientVersion = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// PgDumpVersion returns the major version of the pg_dump at path.
func PgDumpVersion(ctx context.Context, path string) (int, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if ctx.Err() != nil {
		err = ctx.Err() // rather than the signal by which it ended
	}
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	m := clientVersion.FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("ask %s for its version: it answers %q", path, strings.TrimSpace(string(out)))
	}
	return strconv.Atoi(string(m[1]))
}

// clientParameters are the connection parameters that mean the same to libpq's programs and to us; what else an URL may carry are
// run-time settings, which libpq would refuse.
var clientParameters = map[string]bool{
	"sslmode": true, "sslrootcert": true, "sslcert": true, "sslkey": true, "sslsni": true, "sslcrl": true, "ssl_min_protocol_version": true,
	"ssl_max_protocol_version": true, "channel_binding": true, "target_session_attrs": true, "krbsrvname": true, "gssencmode": true,
	"keepalives": true, "keepalives_idle": true, "keepalives_interval": true, "keepalives_count": true, "sslnegotiation": true,
}

// clientConnection turns a connection URL or keyword string into a keyword string without secrets, for a command line, and the
// environment that holds the rest.
func clientConnection(dsn string, c *pgx.ConnConfig) (conninfo string, env []string) {
	set := map[string]string{"user": c.User, "dbname": c.Database}
	hosts, ports := []string{c.Host}, []string{strconv.Itoa(int(c.Port))}
	for _, f := range c.Fallbacks {
		if n := len(hosts) - 1; f.Host != hosts[n] || strconv.Itoa(int(f.Port)) != ports[n] { // TLS fallbacks repeat the host
			hosts, ports = append(hosts, f.Host), append(ports, strconv.Itoa(int(f.Port)))
		}
	}
	set["host"], set["port"] = strings.Join(hosts, ","), strings.Join(ports, ",")
	given := dsnParameters(dsn)
	for k, v := range given {
		if clientParameters[k] {
			set[k] = v
		}
	}
	if c.ConnectTimeout > 0 {
		set["connect_timeout"] = strconv.Itoa(max(2, int(c.ConnectTimeout.Seconds())))
	}
	for _, k := range []string{"host", "port", "user", "dbname"} {
		conninfo += k + "=" + quoteConninfo(set[k]) + " "
		delete(set, k)
	}
	for k, v := range set {
		conninfo += k + "=" + quoteConninfo(v) + " "
	}
	options := clientSettings
	if o := given["options"]; o != "" {
		options = o + " " + options
	}
	env = []string{"LC_ALL=C", "PGOPTIONS=" + options, "PGAPPNAME=" + c.RuntimeParams["application_name"]}
	if c.Password != "" {
		env = append(env, "PGPASSWORD="+c.Password)
	}
	for _, k := range []string{"PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"} {
		if v, ok := os.LookupEnv(k); ok {
			env = append(env, k+"="+v)
		}
	}
	return strings.TrimSpace(conninfo), env
}

// clientSettings hold for pg_dump's session. It sets most of what matters itself; these it doesn't, or takes from the server:
// literals must read the same whatever the role's defaults are.
const clientSettings = "-c standard_conforming_strings=on -c default_transaction_read_only=off -c quote_all_identifiers=off -c tcp_keepalives_idle=30"

// dsnParameters returns the parameters of a connection URL's query or of a keyword string.
func dsnParameters(dsn string) map[string]string {
	out := map[string]string{}
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		if u, err := url.Parse(dsn); err == nil {
			for k, v := range u.Query() {
				out[k] = v[len(v)-1]
			}
		}
		return out
	}
	for _, m := range keywordPair.FindAllStringSubmatch(dsn, -1) {
		v := m[2]
		if strings.HasPrefix(v, "'") {
			v = v[1 : len(v)-1]
		}
		out[m[1]] = keywordEscape.ReplaceAllString(v, "$1")
	}
	return out
}

var (
	keywordPair   = regexp.MustCompile(`(\w+)\s*=\s*('(?:[^'\\]|\\.)*'|(?:[^\s\\']|\\.)*)`)
	keywordEscape = regexp.MustCompile(`\\(.)`)
)

func quoteConninfo(s string) string {
	return "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `'`, `\'`) + "'"
}

// clean takes the password out of a program's words, and keeps the end of them, where the reason stands.
func clean(stderr string, c *pgconn.Config) string {
	s := strings.TrimSpace(stderr)
	if c.Password != "" {
		s = strings.ReplaceAll(s, c.Password, "xxxxx")
	}
	if len(s) > 2000 {
		s = "…" + s[len(s)-2000:]
	}
	return s
}
