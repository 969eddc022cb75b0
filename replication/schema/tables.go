package schema

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/replication"
)

// Querier runs statements: a *pgx.Conn, pgx.Tx or *pgxpool.Pool of internal/postgres. Its sessions' search_path must be pg_catalog, as
// theirs is: the spelling of types and definitions depends on it.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// applicationSchema is the condition on pg_namespace n that leaves the system's, the platform's and our own schemas out.
const applicationSchema = `n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'replicator', '_heroku')`

// measured are a table's sizes; unmeasured stands where they would be for who must not wait for a table's lock.
const (
	measured   = `pg_relation_size(c.oid) / current_setting('block_size')::int, pg_table_size(c.oid), pg_indexes_size(c.oid)`
	unmeasured = `NULL::bigint, NULL::bigint, NULL::bigint`
)

// readTables lists ordinary tables and partition leaves: one query however many there are. An index is a key candidate if it is
// valid, unique at once (a deferrable key accepts duplicates in replica role), whole, over NOT NULL columns that aren't generated (no capture
// gets their values from an application's row as it is written, and pgoutput sends none); the primary key comes first, then the replica identity, then the oldest. Tables of extensions are the extension's, but for those that it marks as
// configuration without a condition: their rows are the user's (pg_extension_config_dump in the documentation).
const readTables = `
SELECT n.nspname, c.relname, c.oid, c.relreplident::text, c.relpersistence = 'u',
       ` + measured + `,
       CASE WHEN c.reltuples < 0 OR (c.reltuples = 0 AND c.relpages = 0) THEN -1 ELSE c.reltuples::bigint END,
       a.nums, a.names, a.types, a.mods, a.spelled, a.notnull, a.generated, a.identity,
       coalesce(k.cols, '{}'), coalesce(k.isprimary, false),
       coalesce(p.schemas, '{}'), coalesce(p.names, '{}')
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT coalesce(array_agg(attnum ORDER BY attnum), '{}') AS nums, coalesce(array_agg(attname::text ORDER BY attnum), '{}') AS names,
         coalesce(array_agg(atttypid::bigint ORDER BY attnum), '{}') AS types, coalesce(array_agg(atttypmod ORDER BY attnum), '{}') AS mods,
         coalesce(array_agg(format_type(atttypid, atttypmod) ORDER BY attnum), '{}') AS spelled,
         coalesce(array_agg(attnotnull ORDER BY attnum), '{}') AS notnull,
         coalesce(array_agg(attgenerated <> '' ORDER BY attnum), '{}') AS generated,
         coalesce(array_agg(attidentity::text ORDER BY attnum), '{}') AS identity
  FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
) a
LEFT JOIN LATERAL (
  SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS cols, i.indisprimary AS isprimary
  FROM pg_index i
  WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indisready AND i.indimmediate
    AND i.indpred IS NULL AND i.indexprs IS NULL
    AND NOT EXISTS (SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) col
                    JOIN pg_attribute x ON x.attrelid = c.oid AND x.attnum = col WHERE NOT x.attnotnull OR x.attgenerated <> '')
  ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indexrelid
  LIMIT 1
) k ON true
LEFT JOIN LATERAL (
  SELECT array_agg(pn.nspname::text) AS schemas, array_agg(pc.relname::text) AS names
  FROM pg_partition_ancestors(CASE WHEN c.relispartition THEN c.oid END) anc
  JOIN pg_class pc ON pc.oid = anc AND pc.oid <> c.oid JOIN pg_namespace pn ON pn.oid = pc.relnamespace
) p ON true
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND ` + applicationSchema + `
  AND NOT EXISTS (
    SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND NOT coalesce(e.extcondition[array_position(e.extconfig, c.oid)] = '', false))`

// Tables returns the tables whose rows are replicated, sorted by name: ordinary tables and partition leaves that the filter takes,
// without unlogged and temporary ones (see Unreplicated). A table that inherits from another is a table of its own; name both with
// ONLY. Sizes are read by pg_table_size, which waits while another session holds the table ACCESS EXCLUSIVE: bound ctx.
func Tables(ctx context.Context, q Querier, f Filter) ([]replication.Table, error) {
	return tablesBy(ctx, q, readTables, f)
}

// UnmeasuredTables returns what Tables does, with zeros for the sizes: it takes no lock on any table, and waits for nobody.
func UnmeasuredTables(ctx context.Context, q Querier, f Filter) ([]replication.Table, error) {
	return tablesBy(ctx, q, strings.Replace(readTables, measured, unmeasured, 1), f)
}

func tablesBy(ctx context.Context, q Querier, sql string, f Filter) ([]replication.Table, error) {
	all, err := tables(ctx, q, sql, f)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(t replication.Table) bool { return t.Unlogged }), nil
}

func tables(ctx context.Context, q Querier, sql string, f Filter) ([]replication.Table, error) {
	rows, err := q.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	defer rows.Close()
	var out []replication.Table
	for rows.Next() {
		t, above, err := scanTable(rows)
		if err != nil {
			return nil, fmt.Errorf("list the tables: %w", err)
		}
		if f.Match(t.Name, above...) {
			out = append(out, t)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	slices.SortFunc(out, func(a, b replication.Table) int { return a.Name.Compare(b.Name) })
	return out, nil
}

func scanTable(rows pgx.Rows) (t replication.Table, above []replication.TableName, err error) {
	var (
		identity                       string
		pages, bytes, indexes          *int64 // null once the table is dropped
		nums, key                      []int16
		names, spelled, identities     []string
		types                          []int64
		mods                           []int32
		notNull, generated             []bool
		ancestorSchemas, ancestorNames []string
	)
	if err := rows.Scan(&t.Name.Schema, &t.Name.Name, &t.OID, &identity, &t.Unlogged, &pages, &bytes, &indexes, &t.Rows, &nums, &names, &types, &mods,
		&spelled, &notNull, &generated, &identities, &key, &t.HasPrimaryKey, &ancestorSchemas, &ancestorNames); err != nil {
		return t, nil, err
	}
	t.ReplicaIdentity = replication.ReplicaIdentity(identity[0])
	if pages != nil && bytes != nil && indexes != nil {
		t.Pages, t.Bytes, t.IndexBytes = *pages, *bytes, *indexes
	}
	for i := range nums {
		c := replication.Column{Name: names[i], TypeOID: uint32(types[i]), TypeMod: mods[i], Type: spelled[i], NotNull: notNull[i], Generated: generated[i]}
		if identities[i] != "" {
			c.Identity = identities[i][0]
		}
		t.Columns = append(t.Columns, c)
	}
	for _, num := range key {
		t.Key = append(t.Key, slices.Index(nums, num))
	}
	for i := range ancestorNames {
		above = append(above, replication.TableName{Schema: ancestorSchemas[i], Name: ancestorNames[i]})
	}
	return t, above, nil
}

const readNames = `
SELECT n.nspname, c.relname, coalesce(p.schemas, '{}'), coalesce(p.names, '{}')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN LATERAL (
  SELECT array_agg(pn.nspname::text) AS schemas, array_agg(pc.relname::text) AS names
  FROM pg_partition_ancestors(CASE WHEN c.relispartition THEN c.oid END) anc
  JOIN pg_class pc ON pc.oid = anc AND pc.oid <> c.oid JOIN pg_namespace pn ON pn.oid = pc.relnamespace
) p ON true
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND ` + applicationSchema

// Names returns the names alone of the ordinary tables and partition leaves that the filter takes, those of extensions among them. Unlike Tables
// it measures nothing, and waits for nobody.
func Names(ctx context.Context, q Querier, f Filter) ([]replication.TableName, error) {
	rows, err := q.Query(ctx, readNames)
	if err != nil {
		return nil, fmt.Errorf("list the tables' names: %w", err)
	}
	var out []replication.TableName
	var name replication.TableName
	var schemas, names []string
	if _, err := pgx.ForEachRow(rows, []any{&name.Schema, &name.Name, &schemas, &names}, func() error {
		var above []replication.TableName
		for i := range names {
			above = append(above, replication.TableName{Schema: schemas[i], Name: names[i]})
		}
		if f.Match(name, above...) {
			out = append(out, name)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("list the tables' names: %w", err)
	}
	slices.SortFunc(out, replication.TableName.Compare)
	return out, nil
}

// Skipped is a relation whose rows can't be replicated, and why.
type Skipped struct {
	Name   replication.TableName
	Reason string // "unlogged table", "foreign table", "extension table"
}

const readForeign = `
SELECT n.nspname, c.relname, CASE WHEN c.relkind = 'f' THEN 'foreign table' ELSE 'extension table' END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE ` + applicationSchema + ` AND (c.relkind = 'f' OR c.relkind = 'r' AND EXISTS (
    SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND coalesce(e.extcondition[array_position(e.extconfig, c.oid)], '') <> ''))`

// Unreplicated returns the relations that the filter takes and that hold rows which no capture carries: unlogged tables (they aren't in
// the WAL and are empty after a crash), foreign tables (their rows are elsewhere), and extensions' configuration tables of which
// only some rows are the user's. Temporary tables are nobody else's business.
func Unreplicated(ctx context.Context, q Querier, f Filter) ([]Skipped, error) {
	all, err := tables(ctx, q, readTables, f)
	if err != nil {
		return nil, err
	}
	var out []Skipped
	for _, t := range all {
		if t.Unlogged {
			out = append(out, Skipped{t.Name, "unlogged table"})
		}
	}
	rows, err := q.Query(ctx, readForeign)
	if err != nil {
		return nil, fmt.Errorf("list foreign tables: %w", err)
	}
	foreign, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (s Skipped, err error) {
		err = r.Scan(&s.Name.Schema, &s.Name.Name, &s.Reason)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("list foreign tables: %w", err)
	}
	for _, s := range foreign {
		if f.Match(s.Name) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Skipped) int { return cmp.Or(a.Name.Compare(b.Name), cmp.Compare(a.Reason, b.Reason)) })
	return out, nil
}
