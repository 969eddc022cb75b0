package logical

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
)

// published is what of the tables' changes a publication of ours carries.
const published = "(publish = 'insert, update, delete, truncate')"

const publishedSQL = `
SELECT n.nspname::text, c.relname::text FROM pg_publication p
JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = $1`

// EnsurePublication makes the publication hold exactly these tables and the heartbeat ("CREATE PUBLICATION"). It is never FOR ALL
// TABLES: that would make the application's own UPDATE and DELETE fail on tables without replica identity. Idempotent.
func EnsurePublication(ctx context.Context, q querier, name string, tables []replication.TableName) error {
	want := append(slices.Clone(tables), heartbeat)
	slices.SortFunc(want, replication.TableName.Compare)
	exists, err := PublicationExists(ctx, q, name)
	if err != nil {
		return err
	}
	if !exists {
		// Leaves are published one by one, under their own names.
		_, err := q.Exec(ctx, "CREATE PUBLICATION "+replication.QuoteIdent(name)+" FOR TABLE "+list(want)+" WITH "+published)
		if err == nil || postgres.Code(err) != postgres.CodeDuplicateObject {
			return wrapPublication("create", name, err)
		}
	}
	have, err := Published(ctx, q, name)
	if err != nil {
		return err
	}
	slices.SortFunc(have, replication.TableName.Compare)
	if slices.Equal(have, want) {
		return nil
	}
	_, err = q.Exec(ctx, "ALTER PUBLICATION "+replication.QuoteIdent(name)+" SET TABLE "+list(want))
	return wrapPublication("alter", name, err)
}

// Published returns the tables that the publication holds, by their present names.
func Published(ctx context.Context, q querier, name string) ([]replication.TableName, error) {
	rows, err := q.Query(ctx, publishedSQL, name)
	if err != nil {
		return nil, wrapPublication("read", name, err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowToStructByPos[replication.TableName])
	return have, wrapPublication("read", name, err)
}

// PublicationExists tells whether there is a publication of that name.
func PublicationExists(ctx context.Context, q querier, name string) (bool, error) {
	var ok bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, name).Scan(&ok)
	return ok, wrapPublication("look for", name, err)
}

// DropPublication removes it; one that does not exist is fine.
func DropPublication(ctx context.Context, q querier, name string) error {
	_, err := q.Exec(ctx, "DROP PUBLICATION IF EXISTS "+replication.QuoteIdent(name))
	return wrapPublication("drop", name, err)
}

func wrapPublication(what, name string, err error) error {
	if err == nil || errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	return fmt.Errorf("%s publication %q: %w", what, name, err)
}

func list(tables []replication.TableName) string {
	var b strings.Builder
	for i, t := range tables {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("ONLY " + t.Quoted())
	}
	return b.String()
}
