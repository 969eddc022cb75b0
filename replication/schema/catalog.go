package schema

import (
	"context"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

// Catalog answers what the probes ask, for one pair.
type Catalog struct {
	Filter Filter
	// PgDump is the configured path, empty for FindPgDump's choice.
	PgDump string
}

// Tables is the package's Tables with the pair's filter.
func (c Catalog) Tables(ctx context.Context, conn *pgx.Conn) ([]replication.Table, error) {
	return Tables(ctx, conn, c.Filter)
}

// Unreplicated is the package's Unreplicated with the pair's filter: the reason by name.
func (c Catalog) Unreplicated(ctx context.Context, conn *pgx.Conn) (map[replication.TableName]string, error) {
	list, err := Unreplicated(ctx, conn, c.Filter)
	if err != nil {
		return nil, err
	}
	out := map[replication.TableName]string{}
	for _, s := range list {
		out[s.Name] = s.Reason
	}
	return out, nil
}

// Client returns the pg_dump that Dump would use and its major version.
func (c Catalog) Client(ctx context.Context) (path string, major int, err error) {
	if path, err = FindPgDump(c.PgDump); err != nil {
		return "", 0, err
	}
	major, err = PgDumpVersion(ctx, path)
	return path, major, err
}
