package schema

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

// DumpOptions say what to dump and with what.
type DumpOptions struct {
	// PgDump is the program's path; empty: FindPgDump's choice.
	PgDump string
	// URL is the database.
	URL string
	// ID names the sessions.
	ID postgres.Identity
	// LockWait bounds the wait for each table's ACCESS SHARE lock, behind which the application's own statements don't queue; 30 s if
	// zero.
	LockWait time.Duration
}

// dumpArguments: what belongs to the platform or to us stays behind. Roles, grants and tablespaces are the target's own;
// publications and subscriptions would act twice; _heroku holds Heroku's own event triggers.
var dumpArguments = []string{
	"--schema-only", "--format=plain", "--encoding=UTF8", "--no-password", "--no-owner", "--no-privileges", "--no-publications",
	"--no-subscriptions", "--no-security-labels", "--no-tablespaces", "--exclude-schema=replicator", "--exclude-schema=_heroku",
}

// Dump reads the schema of a database by pg_dump and returns its entries, in an order that respects dependencies; our own objects are
// left out. Entries of type MATERIALIZED VIEW DATA, which refresh those views that are populated, stand at the end. It needs a
// pg_dump of the server's major version or newer, and SELECT on every table. It changes nothing.
func Dump(ctx context.Context, o DumpOptions) ([]Entry, error) {
	path, err := FindPgDump(o.PgDump)
	if err != nil {
		return nil, err
	}
	client, err := PgDumpVersion(ctx, path)
	if err != nil {
		return nil, err
	}
	conn, err := postgres.Connect(ctx, o.URL, o.ID, "schema")
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	server, err := serverMajor(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("dump the schema: %w", err)
	}
	if client < server {
		return nil, &preflight.Hinted{Code: "pg-dump-too-old", Err: fmt.Errorf("%s is of version %d, the server of version %d", path, client, server),
			Hint: fmt.Sprintf("install the client programs of PostgreSQL %d or newer", server)}
	}
	populated, err := populatedViews(ctx, conn)
	if err != nil {
		return nil, err
	}
	out, err := runPgDump(ctx, path, o, conn.Config())
	if err != nil {
		return nil, err
	}
	entries, err := splitDump(out)
	if err != nil {
		return nil, err
	}
	return finishEntries(entries, populated), nil
}

func runPgDump(ctx context.Context, path string, o DumpOptions, c *pgx.ConnConfig) (string, error) {
	if strings.ContainsRune(c.Password, 0) {
		return "", fmt.Errorf("run pg_dump: the password contains a zero byte")
	}
	wait := o.LockWait
	if wait <= 0 {
		wait = 30 * time.Second
	}
	conninfo, env := clientConnection(o.URL, c)
	args := append([]string{fmt.Sprintf("--lock-wait-timeout=%d", wait.Milliseconds()), "--dbname=" + conninfo}, dumpArguments...)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = env
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", fmt.Errorf("run pg_dump: %w", ctx.Err())
		}
		return "", &preflight.Hinted{Code: "pg-dump-failed", Err: fmt.Errorf("run pg_dump: %w: %s", err, clean(stderr.String(), &c.Config)),
			Hint: "the role needs SELECT on every table and USAGE on every schema, and no table may stay locked ACCESS EXCLUSIVE longer than " + wait.String()}
	}
	return stdout.String(), nil
}

func serverMajor(ctx context.Context, q Querier) (int, error) {
	var n int
	if err := q.QueryRow(ctx, "SELECT current_setting('server_version_num')::int / 10000").Scan(&n); err != nil {
		return 0, fmt.Errorf("read the server's version: %w", err)
	}
	return n, nil
}

// populatedViews returns the materialized views that have been refreshed at least once.
func populatedViews(ctx context.Context, q Querier) (map[replication.TableName]bool, error) {
	rows, err := q.Query(ctx, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm' AND c.relispopulated`)
	if err != nil {
		return nil, fmt.Errorf("list the materialized views: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowToStructByPos[replication.TableName])
	if err != nil {
		return nil, fmt.Errorf("list the materialized views: %w", err)
	}
	out := map[replication.TableName]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out, nil
}

// finishEntries leaves out what is ours or the platform's, and adds the refreshes in the order of the views, in which each stands
// after those that it reads.
func finishEntries(entries []Entry, populated map[replication.TableName]bool) []Entry {
	var out, refresh []Entry
	for _, e := range entries {
		if ours(e) {
			continue
		}
		e.Seq = len(out)
		out = append(out, e)
		if e.Type != "MATERIALIZED VIEW" {
			continue
		}
		if name, ok := createdView(e.SQL); ok && populated[name] {
			refresh = append(refresh, Entry{Section: PostData, Type: "MATERIALIZED VIEW DATA", Schema: e.Schema, Name: e.Name,
				SQL: "REFRESH MATERIALIZED VIEW " + name.Quoted() + ";"})
		}
	}
	for _, e := range refresh {
		e.Seq = len(out)
		out = append(out, e)
	}
	return out
}

// createdView reads the name from CREATE MATERIALIZED VIEW schema.name.
func createdView(sql string) (replication.TableName, bool) {
	t := tokens(sql)
	for i := 0; i+4 < len(t); i++ {
		if t[i] == "MATERIALIZED" && t[i+1] == "VIEW" && t[i+3] == "." {
			return replication.TableName{Schema: unquoteIdent(t[i+2]), Name: unquoteIdent(t[i+4])}, true
		}
	}
	return replication.TableName{}, false
}

// ours tells whether an entry is something that replicator or the platform put there: triggers that call a function of theirs, and anything
// that stands in or rests on the schemas replicator and _heroku. What is to be decided from names is read from the SQL, not from the
// heading, whose names are not exact.
func ours(e Entry) bool {
	t := tokens(e.SQL)
	switch e.Type {
	case "SCHEMA":
		return e.Name == "replicator" || e.Name == "_heroku"
	case "TRIGGER", "EVENT TRIGGER":
		for i := 0; i+1 < len(t); i++ {
			if platformSchema(t[i]) && t[i+1] == "." {
				return true
			}
		}
	case "COMMENT":
		return len(t) > 3 && t[2] == "SCHEMA" && platformSchema(t[3])
	case "USER MAPPING": // holds a password, and names a role that the target need not have
		return true
	case "PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA", "SUBSCRIPTION", "STATISTICS DATA":
		return true
	}
	return platformSchema(e.Schema)
}

func platformSchema(name string) bool {
	name = unquoteIdent(name)
	return name == "replicator" || name == "_heroku"
}
