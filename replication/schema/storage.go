package schema

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

// Storage is where a table's rows are stored, and which versions of its columns' definitions they were written under. An ALTER TABLE that computes
// rows anew (TYPE … USING, also to the same type; ADD COLUMN with a volatile default) fires no trigger and sends nothing to a slot, but in one
// transaction it gives the table another file and writes the pg_attribute rows of the columns concerned anew, whose xmin says so. VACUUM FULL,
// CLUSTER, TRUNCATE, SET TABLESPACE and SET LOGGED give it another file only; SET DEFAULT, SET NOT NULL, GRANT and their like write
// pg_attribute only.
type Storage struct {
	OID, File uint32
	// Columns is a digest of the live columns' numbers and versions; "none" where there are none.
	Columns string
}

const readStorage = `
SELECT n.nspname, c.relname, c.oid, c.relfilenode,
  (SELECT coalesce(md5(string_agg(a.attnum || ' ' || a.xmin::text, ',' ORDER BY a.attnum)), 'none') FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND ` + applicationSchema

// ReadStorage reads, in one statement and hence one snapshot, where the rows of the application's tables are stored. It locks nothing.
func ReadStorage(ctx context.Context, q Querier) (map[replication.TableName]Storage, error) {
	rows, err := q.Query(ctx, readStorage)
	if err != nil {
		return nil, fmt.Errorf("read where the tables' rows are stored: %w", err)
	}
	out := map[replication.TableName]Storage{}
	var name replication.TableName
	var s Storage
	_, err = pgx.ForEachRow(rows, []any{&name.Schema, &name.Name, &s.OID, &s.File, &s.Columns}, func() error {
		out[name] = s
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read where the tables' rows are stored: %w", err)
	}
	return out, nil
}

// Rewritten tells whether rows may have been computed anew, or the table replaced by another, between s and later. It misses no such change; it is
// wrong where a table got another file and, apart from that, other definitions of columns in between.
func (s Storage) Rewritten(later Storage) bool {
	return s.OID != later.OID || (s.File != later.File && s.Columns != later.Columns)
}

// String is the text that ParseStorage reads.
func (s Storage) String() string { return fmt.Sprintf("%d %d %s", s.OID, s.File, s.Columns) }

// ParseStorage reads what String wrote.
func ParseStorage(text string) (s Storage, err error) {
	if _, err := fmt.Sscan(text, &s.OID, &s.File, &s.Columns); err != nil {
		return Storage{}, fmt.Errorf("parse where a table's rows were stored (%q): %w", text, err)
	}
	return s, nil
}
