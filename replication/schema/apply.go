package schema

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

// applySettings are what pg_dump sets before its entries: bodies of functions may name what isn't there yet.
const applySettings = `BEGIN; SET LOCAL search_path = ''; SET LOCAL check_function_bodies = off; SET LOCAL xmloption = content;
SET LOCAL default_table_access_method = heap; SET LOCAL default_tablespace = ''; SET LOCAL row_security = off;
SET LOCAL standard_conforming_strings = on; SET LOCAL client_min_messages = warning`

// Apply runs one entry in a transaction of its own, with a note of the caller's, in one round trip. It may be called again for an entry that was
// applied before, whether or not the answer of that time arrived: an object that is there already counts as done. For constraints and
// partitions it is checked that the existing object is the same; for all others ReadFingerprint of both sides tells in the end. A comment on a
// schema or extension that belongs to somebody else is left out silently. Lock waits are bounded by ctx or the session's lock_timeout.
func Apply(ctx context.Context, conn *pgx.Conn, e Entry, note string) error {
	err := postgres.Several(ctx, conn, applied(e, note)...)
	if err == nil {
		return nil
	}
	done, checkErr := exists(ctx, conn, e, err)
	if checkErr != nil {
		return fmt.Errorf("create %s: %w (and look whether it is there: %w)", e, err, checkErr)
	}
	if done {
		if err := postgres.Several(ctx, conn, note); err != nil {
			return fmt.Errorf("note %s: %w", e, err)
		}
		return nil
	}
	if hint := applyHint(e, err); hint != "" {
		return &preflight.Hinted{Code: "schema-apply-failed", Err: fmt.Errorf("create %s: %w", e, err), Hint: hint}
	}
	return fmt.Errorf("create %s: %w", e, err)
}

// ApplyTogether runs entries one after the other, each in a transaction of its own with its note, all in one round trip. After an error some are
// done, as their notes tell; the others want to be applied one at a time, so that what is there already is recognised.
func ApplyTogether(ctx context.Context, conn *pgx.Conn, entries []Entry, note func(Entry) string) error {
	var all []string
	for _, e := range entries {
		all = append(all, applied(e, note(e))...)
	}
	return postgres.Several(ctx, conn, all...)
}

func applied(e Entry, note string) []string { return []string{applySettings, e.SQL, note, "COMMIT"} }

// SQLSTATEs that say "it is there already", by the kind of object.
var duplicateCodes = map[string]bool{
	"42P07": true, // duplicate_table: any relation
	"42710": true, // duplicate_object
	"42P06": true, // duplicate_schema
	"42723": true, // duplicate_function
}

const (
	codeInvalidTable    = "42P16" // a second primary key
	codeWrongObjectType = "42809" // a partition that is attached already
	codePrerequisite    = "55000" // a column that has its identity already
	codeUnique          = "23505" // on a catalog's index: text search objects report duplicates so
)

// exists tells whether err only says that what the entry makes is there.
func exists(ctx context.Context, conn *pgx.Conn, e Entry, err error) (bool, error) {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return false, nil
	}
	if c, ok := parseAddConstraint(e.SQL); ok && (duplicateCodes[pe.Code] || pe.Code == codeInvalidTable) {
		return constraintExists(ctx, conn, c)
	}
	switch {
	case e.Type == "COMMENT" && pe.Code == postgres.CodeInsufficientPriv:
		return strings.HasPrefix(e.SQL, "COMMENT ON EXTENSION ") || strings.HasPrefix(e.SQL, "COMMENT ON SCHEMA "), nil
	case duplicateCodes[pe.Code]:
		return true, nil
	case pe.Code == codeUnique:
		return pe.SchemaName == "pg_catalog", nil
	case pe.Code == codeWrongObjectType && e.Type == "TABLE ATTACH":
		return attached(ctx, conn, e)
	case pe.Code == codePrerequisite && e.Type == "SEQUENCE":
		return identityExists(ctx, conn, e)
	}
	return false, nil
}

const selectConstraint = `SELECT pg_get_constraintdef(c.oid) FROM pg_constraint c
WHERE c.conrelid = to_regclass($1) AND c.conname = $2`

// constraintExists tells whether the table has a constraint of that name and kind; for foreign keys and checks, of that text.
func constraintExists(ctx context.Context, conn *pgx.Conn, c addedConstraint) (bool, error) {
	var def string
	err := conn.QueryRow(ctx, selectConstraint, c.table.Quoted(), c.name).Scan(&def)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	have := tokens(def)
	if len(have) == 0 || have[0] != c.rest[0] {
		return false, nil
	}
	if c.rest[0] != "FOREIGN" && c.rest[0] != "CHECK" {
		return true, nil
	}
	return constraintText(have) == constraintText(c.rest), nil
}

// constraintText is a definition without its state of validation. The catalog's text leaves pg_catalog out, the dump's doesn't need
// to: both are deparsed by the server with the same rules but for search_path.
func constraintText(t []string) string {
	s := strings.TrimSuffix(strings.Join(t, " "), " ;")
	s = strings.TrimSuffix(s, " NOT VALID")
	return strings.ReplaceAll(s, "pg_catalog . ", "")
}

// attached tells whether the partition of a TABLE ATTACH entry hangs below its parent.
func attached(ctx context.Context, conn *pgx.Conn, e Entry) (bool, error) {
	var names []replication.TableName
	t := tokens(e.SQL)
	for i := 1; i+1 < len(t) && len(names) < 2; i++ {
		if t[i] == "." {
			names = append(names, replication.TableName{Schema: unquoteIdent(t[i-1]), Name: unquoteIdent(t[i+1])})
		}
	}
	if len(names) < 2 {
		return false, nil
	}
	var yes bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass($1) AND inhrelid = to_regclass($2))`,
		names[0].Quoted(), names[1].Quoted()).Scan(&yes)
	return yes, err
}

// identityExists tells whether ALTER TABLE schema.table ALTER COLUMN c ADD GENERATED … has been done.
func identityExists(ctx context.Context, conn *pgx.Conn, e Entry) (bool, error) {
	t := tokens(e.SQL)
	if len(t) < 8 || t[0] != "ALTER" || t[1] != "TABLE" || t[3] != "." || t[5] != "ALTER" || t[6] != "COLUMN" {
		return false, nil
	}
	table := replication.TableName{Schema: unquoteIdent(t[2]), Name: unquoteIdent(t[4])}
	var yes bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 AND attidentity <> '')`,
		table.Quoted(), unquoteIdent(t[7])).Scan(&yes)
	return yes, err
}

func applyHint(e Entry, err error) string {
	switch postgres.Code(err) {
	case "0A000", "58P01", "42704":
		if e.Type == "EXTENSION" {
			return "the target doesn't offer this extension: choose a server that has it, or drop it on the source"
		}
	case postgres.CodeInsufficientPriv:
		return "grant the target's role the right to create this, or create it by hand as a role that may, then start again"
	}
	return ""
}
