package verify

import (
	"fmt"
	"strings"

	"replicator/replication"
)

// pinSQL makes text mean the same on both sides ("Locale and Formatting"), whoever opened the session.
const pinSQL = `
SELECT set_config(name, value, true) FROM (VALUES
  ('datestyle', 'ISO, YMD'), ('intervalstyle', 'postgres'), ('extra_float_digits', '3'), ('lc_monetary', 'C'), ('timezone', 'UTC'),
  ('bytea_output', 'hex'), ('search_path', 'pg_catalog'), ('client_encoding', 'UTF8'), ('row_security', 'off')) AS s(name, value)`

// The seeds of the two hashes; arbitrary, the same on both sides.
const (
	seed1 = 0
	seed2 = 7046029254386353131
)

// comparison writes the SQL for one table. Both sides run the same text.
type comparison struct {
	table replication.Table
	// recode is set where the sides' encodings differ: bytes are then compared in UTF-8.
	recode bool
}

func (c comparison) row(columns []string) string {
	return "ROW(" + strings.Join(columns, ", ") + ")::text"
}

// rowText is the text that is hashed for a row.
func (c comparison) rowText() string {
	columns := make([]string, len(c.table.Columns))
	for i, col := range c.table.Columns {
		columns[i] = replication.QuoteIdent(col.Name)
	}
	return c.row(columns)
}

// keyText is the text that identifies a row; the empty string for a table without key.
func (c comparison) keyText() string {
	switch columns := c.keyColumns(); len(columns) {
	case 0:
		return "''::text"
	case 1:
		return columns[0] + "::text"
	default:
		return c.row(columns)
	}
}

func (c comparison) keyColumns() []string {
	var out []string
	for _, i := range c.table.Key {
		out = append(out, replication.QuoteIdent(c.table.Columns[i].Name))
	}
	return out
}

func (c comparison) hash(text string, seed int64) string {
	if c.recode {
		text = "md5(convert_to(" + text + ", 'UTF8'))"
	}
	return fmt.Sprintf(`hashtextextended(%s COLLATE "C", %d)`, text, seed)
}

// rows is the subquery of key text k and row text t. OFFSET 0 keeps the planner from computing a text once for each use.
func (c comparison) rows(where string) string {
	if where != "" {
		where = " WHERE " + where
	}
	return "(SELECT " + c.keyText() + " AS k, " + c.rowText() + " AS t FROM ONLY " + c.table.Name.Quoted() + where + " OFFSET 0) AS r"
}

// digest sums up the rows of a range of pages; to < 0 is the end of the table.
func (c comparison) digest(p pages) string {
	return "SELECT count(*), coalesce(sum(" + c.hash("t", seed1) + "), 0)::text, coalesce(sum(" + c.hash("t", seed2) + "), 0)::text FROM " + c.rows(p.where())
}

// bucket is the hash by which rows are narrowed down: the key's, or the row's where there is no key.
func (c comparison) bucket(mask int64) string {
	by := "k"
	if len(c.table.Key) == 0 {
		by = "t"
	}
	return fmt.Sprintf("(%s & %d)", c.hash(by, seed2), mask)
}

// buckets sums up the rows of each bucket, folded into one number.
func (c comparison) buckets(mask int64) string {
	return "SELECT " + c.bucket(mask) + ", count(*), hashtextextended(sum(" + c.hash("t", seed1) + ")::text || ' ' || sum(" + c.hash("t", seed2) +
		")::text, 0) FROM " + c.rows("") + " GROUP BY 1"
}

// members lists the distinct rows of some buckets as key, hashes and their number.
func (c comparison) members(mask int64, buckets []int64) string {
	list := make([]string, len(buckets))
	for i, b := range buckets {
		list[i] = fmt.Sprint(b)
	}
	return "SELECT k, " + c.hash("t", seed1) + ", " + c.hash("t", seed2) + ", count(*) FROM " + c.rows("") +
		" WHERE " + c.bucket(mask) + " IN (" + strings.Join(list, ", ") + ") GROUP BY 1, 2, 3"
}

// pages is a range of a table's pages, to exclusive; to < 0 is open.
type pages struct{ from, to int64 }

func (p pages) where() string {
	var out []string
	if p.from > 0 {
		out = append(out, fmt.Sprintf("ctid >= '(%d,0)'::tid", p.from))
	}
	if p.to >= 0 {
		out = append(out, fmt.Sprintf("ctid < '(%d,0)'::tid", p.to))
	}
	return strings.Join(out, " AND ")
}

// split cuts a table of n pages into ranges of at most size pages; the last one is open, for pages added since n was read.
func split(n, size int64) []pages {
	var out []pages
	for from := int64(0); ; from += size {
		if from+size >= n {
			return append(out, pages{from, -1})
		}
		out = append(out, pages{from, from + size})
	}
}
