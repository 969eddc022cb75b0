package schema

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

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
	// Names gives the live columns' numbers by their names, as JSON; empty where a former version of this program read it.
	Names string
}

const readStorage = `
SELECT n.nspname, c.relname, c.oid, c.relfilenode,
  (SELECT coalesce(md5(string_agg(a.attnum || ' ' || a.xmin::text, ',' ORDER BY a.attnum)), 'none') FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
  (SELECT coalesce(jsonb_object_agg(a.attname, a.attnum), '{}')::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
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
	_, err = pgx.ForEachRow(rows, []any{&name.Schema, &name.Name, &s.OID, &s.File, &s.Columns, &s.Names}, func() error {
		out[name] = s
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read where the tables' rows are stored: %w", err)
	}
	return out, nil
}

// Rewritten tells whether rows may have been computed anew, the table replaced by another, or other values come under a column's name, between s and
// later. It misses no such change; it is wrong where a table got another file and, apart from that, other definitions of columns in between.
func (s Storage) Rewritten(later Storage) bool {
	return s.OID != later.OID || (s.File != later.File && s.Columns != later.Columns) || s.renumbered(later)
}

// renumbered tells whether a name that stays belongs to another column: one that was dropped and made anew, or renamed while another took its name.
// Neither moves a row, and rows are told apart by nothing but names.
func (s Storage) renumbered(later Storage) bool {
	if s.Names == later.Names || s.Names == "" || later.Names == "" {
		return false
	}
	was, is := s.numbers(), later.numbers()
	for name, n := range was {
		if m, ok := is[name]; ok && m != n {
			return true
		}
	}
	return false
}

func (s Storage) numbers() map[string]int {
	out := map[string]int{}
	_ = json.Unmarshal([]byte(s.Names), &out) // of the server's own making, or checked by ParseStorage
	return out
}

// Since returns s, with the names that earlier has besides: a column that is gone is remembered, so that one which takes its name later is known to be
// another.
func (s Storage) Since(earlier Storage) Storage {
	if s.OID != earlier.OID || s.Names == earlier.Names || s.Names == "" || earlier.Names == "" {
		return s
	}
	names := earlier.numbers()
	maps.Copy(names, s.numbers())
	b, err := json.Marshal(names)
	if err == nil {
		s.Names = string(b)
	}
	return s
}

// String is the text that ParseStorage reads.
func (s Storage) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%d %d %s %s", s.OID, s.File, s.Columns, s.Names), " ")
}

// ParseStorage reads what String wrote, in this version of the program or a former one.
func ParseStorage(text string) (s Storage, err error) {
	parts := strings.SplitN(text, " ", 4)
	if len(parts) < 3 {
		return Storage{}, fmt.Errorf("parse where a table's rows were stored (%q): too few words", text)
	}
	oid, e1 := strconv.ParseUint(parts[0], 10, 32)
	file, e2 := strconv.ParseUint(parts[1], 10, 32)
	s = Storage{OID: uint32(oid), File: uint32(file), Columns: parts[2]}
	var e3 error
	if len(parts) == 4 {
		s.Names = parts[3]
		e3 = json.Unmarshal([]byte(s.Names), &map[string]int{})
	}
	if err := errors.Join(e1, e2, e3); err != nil {
		return Storage{}, fmt.Errorf("parse where a table's rows were stored (%q): %w", text, err)
	}
	return s, nil
}
