package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pinned are the settings of every session. Text forms of values depend on them (PostgreSQL documentation, "Locale and
// Formatting", "Statement Behavior"), and a bound that is zero here is kept by contexts instead, so that an ALTER ROLE of the
// application's can't cut our sessions.
var pinned = map[string]string{
	"datestyle":                           "ISO, YMD",
	"intervalstyle":                       "postgres",
	"extra_float_digits":                  "3",
	"lc_monetary":                         "C",
	"timezone":                            "UTC",
	"bytea_output":                        "hex",
	"xmloption":                           "content",
	"client_encoding":                     "UTF8",
	"search_path":                         "pg_catalog",
	"standard_conforming_strings":         "on",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"row_security":                        "off",
	"default_transaction_isolation":       "read committed",
	"default_transaction_read_only":       "off",
	"default_transaction_deferrable":      "off",
	"synchronous_commit":                  "local", // ours is durable whatever the role's default says, and waits for no standby
	"synchronize_seqscans":                "off",
	"jit":                                 "off", // queries of the catalog compile for seconds and run for milliseconds
	"client_min_messages":                 "warning",
	"tcp_keepalives_idle":                 "30",
	"tcp_keepalives_interval":             "10",
	"tcp_keepalives_count":                "3",
	"tcp_user_timeout":                    "60000",
}

// Identity names a session to whoever looks at pg_stat_activity, and to a successor that has to end it.
type Identity struct {
	Migration string
	Pair      string
	Epoch     int64 // 0 before the lead is taken
}

var unsafeInName = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// ApplicationName returns the application_name of a session in the given role ("apply", "copy", "state"):
// replicator/MIGRATION/PAIR/ROLE/eEPOCH, cut to PostgreSQL's 63 bytes with the epoch kept whole.
func (i Identity) ApplicationName(role string) string {
	tail := fmt.Sprintf("/%s/e%d", role, i.Epoch)
	head := i.prefix()
	if len(head)+len(tail) > 63 {
		head = head[:63-len(tail)]
	}
	return head + tail
}

// ApplicationPrefix is what the application names of all sessions of the migration begin with, cut as ApplicationName cuts.
func (i Identity) ApplicationPrefix() string {
	p := "replicator/" + unsafeInName.ReplaceAllString(i.Migration, "_") + "/"
	return p[:min(len(p), 40)]
}

// PairPrefix is what the application names of all sessions of the pair begin with. (The configuration bounds names, so that it is whole.)
func (i Identity) PairPrefix() string {
	p := i.prefix() + "/"
	return p[:min(len(p), 45)]
}

func (i Identity) prefix() string {
	return "replicator/" + unsafeInName.ReplaceAllString(i.Migration, "_") + "/" + unsafeInName.ReplaceAllString(i.Pair, "_")
}

// ObjectName returns the name of a publication or slot of this pair: lower-case letters, digits and underscores only, since slot
// names allow no others ("Replication Slots" in the PostgreSQL documentation), at most 63 bytes.
func (i Identity) ObjectName(suffix string) string {
	s := strings.ToLower("replicator_" + i.Migration + "_" + i.Pair)
	s = regexp.MustCompile(`[^a-z0-9_]+`).ReplaceAllString(s, "_")
	if suffix != "" {
		suffix = "_" + suffix
	}
	if len(s)+len(suffix) > 63 {
		s = s[:63-len(suffix)]
	}
	return s + suffix
}

// Config parses a connection URL or keyword string and pins the session's settings and name. The error never shows the password.
func Config(url string, id Identity, role string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse the connection URL: %w", redact(err, url))
	}
	prepare(c, id, role)
	return c, nil
}

func prepare(c *pgx.ConnConfig, id Identity, role string) {
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 10 * time.Second
	}
	c.DialFunc = dial
	c.AfterConnect = pinLater
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // one round trip; what is asked often is prepared by who asks
	maps.Copy(c.RuntimeParams, pinned)
	c.RuntimeParams["application_name"] = id.ApplicationName(role)
}

// Connect opens one session.
func Connect(ctx context.Context, url string, id Identity, role string) (*pgx.Conn, error) {
	c, err := Config(url, id, role)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("connect for %s: %w", role, err)
	}
	return conn, nil
}

// ConnectReplication opens a session in logical replication mode (libpq's replication=database).
func ConnectReplication(ctx context.Context, url string, id Identity, role string) (*pgconn.PgConn, error) {
	c, err := Config(url, id, role)
	if err != nil {
		return nil, err
	}
	c.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, &c.Config)
	if err != nil {
		return nil, fmt.Errorf("connect for %s: %w", role, err)
	}
	return conn, nil
}

// Pool opens a pool of at most size sessions. It connects lazily; the error is about the URL only.
func Pool(ctx context.Context, url string, id Identity, role string, size int32) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse the connection URL: %w", redact(err, url))
	}
	prepare(c.ConnConfig, id, role)
	c.MaxConns = size
	c.MinConns = 0
	c.MaxConnIdleTime = time.Minute
	p, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open a pool for %s: %w", role, err)
	}
	return p, nil
}

// Several sends statements without parameters in one round trip ("Multiple Statements in a Simple Query" in the PostgreSQL documentation). The
// first that fails ends it, and with it the transaction that they have begun, if any: the session can be used again.
func Several(ctx context.Context, conn *pgx.Conn, statements ...string) error {
	_, err := conn.PgConn().Exec(ctx, strings.Join(statements, ";\n")).ReadAll()
	if err != nil && conn.PgConn().TxStatus() != 'I' {
		err = errors.Join(err, Rollback(ctx, conn))
	}
	return err
}

// Rollback ends a transaction that has failed, so that the session can be used again. One that is gone needs nothing.
func Rollback(ctx context.Context, conn *pgx.Conn) error {
	if conn.IsClosed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := conn.PgConn().Exec(ctx, "ROLLBACK").ReadAll(); err != nil {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}
