package trigger

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

// captured is a table of the stream.
type captured struct {
	oid      uint32
	function uint32 // pg_proc's oid, which a replacement leaves
	name     replication.TableName
	log      described
	// seam is the snapshot of the table's copy; nil once the stream has passed it.
	seam *replication.Snapshot
	// shape is the table as the last window that had changes of it found it; nil before.
	shape *shape
	// slotBytes are the sizes of the log tables at the last upkeep, bytes the table's own.
	slotBytes [slots]int64
	bytes     int64
	scan      scan
}

// shape is a table's description as of a snapshot.
type shape struct {
	name       replication.TableName
	columns    []replication.RelationColumn // without generated ones
	otherKeys  bool                         // it has unique or exclusion constraints besides its key
	statements statements
	relation   *replication.Relation
	keyAt      []int // the key's columns among columns
}

func (s *shape) same(o *shape) bool {
	return s != nil && s.name == o.name && s.otherKeys == o.otherKeys &&
		slices.EqualFunc(s.columns, o.columns, func(a, b replication.RelationColumn) bool {
			return a.Name == b.Name && a.TypeOID == b.TypeOID && a.TypeMod == b.TypeMod
		})
}

// keysSQL gives, of table c, the columns of each index by which they are unique in every snapshot, as JSON: a deferrable one isn't, nor one that is
// being built.
const keysSQL = `(SELECT coalesce(jsonb_agg(k.names), '[]') FROM pg_index i CROSS JOIN LATERAL (
    SELECT jsonb_agg(x.attname) AS names FROM pg_attribute x WHERE x.attrelid = c.oid AND x.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])) k
  WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indisready AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL)`

// shapeSQL reads tables as the transaction's snapshot shows them. rewritten: since the snapshot was taken, the rows have moved to another
// file (TRUNCATE, or an ALTER TABLE that rewrites), and under the snapshot the table looks empty ("Caveats" of concurrency control).
const shapeSQL = `
SELECT jsonb_build_object('oid', c.oid::bigint, 'schema', n.nspname, 'name', c.relname, 'rewritten', c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid),
       'unique', (SELECT count(*) FROM pg_index i WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion)), 'keys', ` + keysSQL + `, 'columns', coalesce(a.columns, '[]'))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
  SELECT jsonb_agg(jsonb_build_object('name', attname, 'type', atttypid::bigint, 'mod', atttypmod, 'full', attnotnull) ORDER BY attnum) AS columns
  FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '') a
WHERE c.oid = ANY($1::text::oid[])`

// found is one row of shapeSQL.
type found struct {
	OID       uint32 `json:"oid"`
	Schema    string `json:"schema"`
	Name      string `json:"name"`
	Rewritten bool   `json:"rewritten"`
	Unique    int    `json:"unique"`
	// Keys are what keysSQL gives.
	Keys    [][]string `json:"keys"`
	Columns []struct {
		Name string `json:"name"`
		Type uint32 `json:"type"`
		Mod  int32  `json:"mod"`
		Full bool   `json:"full"` // NOT NULL
	} `json:"columns"`
}

func (f found) shape(t *captured) *shape {
	s := &shape{name: replication.TableName{Schema: f.Schema, Name: f.Name}, otherKeys: f.Unique > min(len(t.log.Key), 1)}
	for _, c := range f.Columns {
		s.columns = append(s.columns, replication.RelationColumn{Name: c.Name, TypeOID: c.Type, TypeMod: c.Mod})
	}
	return s
}

// unkeyed tells why the columns of the log's key identify a row no longer, in the window's snapshot; empty if they do. A log by key says by nulls what
// was done, and two rows of one key would both be taken for new.
func (f found) unkeyed(t *captured) string {
	if len(t.log.Key) == 0 {
		return ""
	}
	for _, c := range f.Columns {
		if !c.Full && slices.ContainsFunc(t.log.Key, func(k column) bool { return k.Name == c.Name }) {
			return "a column of its key is no longer NOT NULL"
		}
	}
	if !unique(f.Keys, t.log.Key) {
		return "the unique constraint or index of its key is gone, or doesn't hold at once any more"
	}
	return ""
}

// unique tells whether one of the indexes, given by their columns, keeps the key unique: it has no other columns.
func unique(indexes [][]string, key []column) bool {
	return slices.ContainsFunc(indexes, func(names []string) bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			return !slices.ContainsFunc(key, func(k column) bool { return k.Name == name })
		})
	})
}

// describe gives the table the shape it has in the window's snapshot. What the log knows of it must still hold.
func (t *captured) describe(found *shape) error {
	if t.shape.same(found) {
		return nil
	}
	r := &replication.Relation{OID: t.oid, Name: found.name, ReplicaIdentity: replication.IdentityDefault, Columns: found.columns}
	byName := map[string]int{}
	for i, c := range r.Columns {
		byName[c.Name] = i
	}
	if len(t.log.Key) == 0 {
		r.ReplicaIdentity = replication.IdentityFull
		row := make([]string, len(r.Columns))
		for i, c := range r.Columns {
			row[i] = c.Name
			r.Columns[i].Key = true
		}
		want := make([]string, len(t.log.Row))
		for i, c := range t.log.Row {
			want[i] = c.Name
		}
		if !slices.Equal(row, want) {
			return altered(t.name, fmt.Sprintf("it has no key and its columns are no longer (%s)", strings.Join(want, ", ")))
		}
	}
	for _, c := range t.log.Key {
		i, ok := byName[c.Name]
		if !ok {
			return altered(t.name, fmt.Sprintf("column %q of its key is gone or renamed", c.Name))
		}
		r.Columns[i].Key = true
		found.keyAt = append(found.keyAt, i)
	}
	found.relation = r
	found.statements = makeStatements(t, found, byName)
	t.shape, t.name = found, found.name
	return nil
}

func altered(name replication.TableName, what string) error {
	return retry.Stop(&preflight.Hinted{Code: "capture-altered", Err: fmt.Errorf("table %s was altered: %s", name, what),
		Hint: fmt.Sprintf("its change log must be made anew and the table copied again, which a pair from source to target does by itself once both sides are alike; if this stays: `replicator resync` with --table %s", name)})
}

// statements read a table's window. $1 and $2 are xmax and xip of the snapshot before it, for a table that is scanned $3 its xmin and $4 what
// scan.known holds.
type statements struct {
	// net gives a row for every key that was touched: the count of inserts minus deletes, whether a delete was among them, whether
	// the row is there now, the key, the row. For a table without key: the net number, and the row.
	net string
	// gone is net without the row.
	gone string
	// all gives the present rows.
	all string
}

// inWindow are the conditions of the log's part between the two snapshots: what the transaction's own snapshot sees and the one before didn't. Both
// are served by the index on xid, however long a transaction among xip has been running; what it has written by then isn't even looked at until it
// has ended (the present snapshot's bounds, by the query ended, say nothing that the rows' visibility doesn't).
var inWindow = []string{"xid >= $1::text::xid8 AND xid < (SELECT xmax FROM ended)", "xid = ANY ((SELECT xip FROM ended)::xid8[])"}

// ended is the query that inWindow refers to: xmax of the transaction's own snapshot, and those of the former one's xip that it sees.
const ended = "ended AS MATERIALIZED (SELECT pg_snapshot_xmax(s) AS xmax, ARRAY(SELECT x FROM unnest($2::text::xid8[]) x WHERE pg_visible_in_snapshot(x, s)) AS xip FROM pg_current_snapshot() s)"

// windowOf is a selection from the log's part between the two snapshots as a subquery of a statement that begins with ended.
func windowOf(oid uint32, columns, condition string) string {
	var parts []string
	for slot := range slots {
		for _, in := range inWindow {
			parts = append(parts, "SELECT "+columns+" FROM "+logTable(oid, slot)+" WHERE "+in+condition)
		}
	}
	return strings.Join(parts, " UNION ALL ")
}

// exact are types of which equal values are the same to the byte, by an equality that is cheap.
var exact = []string{"smallint", "integer", "bigint", "oid", "uuid", "date", "boolean"}

// touched is the log's part between the two snapshots by key, as a subquery of n (1 for a key that came, -1 for one that went, 0 for one that
// stayed), d (it went) and the key's columns.
func (d described) touched(oid uint32) string {
	var olds, news, same []string
	var hasOld, hasNew, noOld []string
	record := false
	for i, c := range d.Key {
		o, n := fmt.Sprintf("o%d", i), fmt.Sprintf("k%d", i)
		hasOld, hasNew, noOld = append(hasOld, o+" IS NOT NULL"), append(hasNew, n+" IS NOT NULL"), append(noOld, o+" IS NULL")
		same = append(same, o+" OPERATOR(pg_catalog.=) "+n)
		record = record || (c.Builtin && !slices.Contains(exact, c.Type))
		if !c.Builtin {
			cast := "::" + c.Type
			if c.Collation != "" {
				o, n = "("+o+cast+") COLLATE "+c.Collation, "("+n+cast+") COLLATE "+c.Collation
			} else {
				o, n = o+cast, n+cast
			}
		}
		olds, news = append(olds, o+" AS "+fmt.Sprintf("k%d", i)), append(news, n+" AS "+fmt.Sprintf("k%d", i))
	}
	stays := strings.Join(same, " AND ")
	if record {
		stays = "ROW(" + d.names("o") + ")::record OPERATOR(pg_catalog.*=) ROW(" + d.names("k") + ")::record"
	}
	// A row with neither key comes through, to be refused.
	return windowOf(oid, "CASE WHEN "+stays+" THEN 0 ELSE 1 END AS n, false AS d, "+strings.Join(news, ", "),
		" AND ("+strings.Join(hasNew, " OR ")+" OR "+strings.Join(noOld, " AND ")+")") + " UNION ALL " +
		windowOf(oid, "-1, true, "+strings.Join(olds, ", "), " AND ("+strings.Join(hasOld, " OR ")+") AND ("+stays+") IS NOT TRUE")
}

// operatorName is the equality operator of a key column.
func (c column) operatorName() string { return "OPERATOR(" + c.Equals + ".=)" }

func makeStatements(t *captured, s *shape, byName map[string]int) statements {
	table := s.name.Quoted()
	var row []string
	for _, c := range s.columns {
		row = append(row, "t."+replication.QuoteIdent(c.Name))
	}
	// A prepared statement can't live on when its result's types change: the types are part of its text.
	var types strings.Builder
	for _, c := range s.columns {
		fmt.Fprintf(&types, " %d", c.TypeOID)
	}
	version := " /*" + types.String() + " */"
	out := statements{all: "SELECT " + strings.Join(row, ", ") + " FROM ONLY " + table + " t" + version}
	if len(t.log.Key) == 0 {
		var cells []string
		for i := range s.columns {
			cells = append(cells, fmt.Sprintf("r[%d]", i+1))
		}
		out.net = "WITH " + ended + " SELECT n, " + strings.Join(cells, ", ") + " FROM (SELECT r, sum(CASE op WHEN 'I' THEN 1 ELSE -1 END)::int AS n FROM (" +
			windowOf(t.oid, "op, r", "") + ") l GROUP BY r) w WHERE n <> 0 ORDER BY n" + version
		return out
	}
	var keys, join []string
	for i, c := range t.log.Key {
		k := fmt.Sprintf("k%d", i)
		keys = append(keys, k)
		join = append(join, "t."+replication.QuoteIdent(c.Name)+" "+c.operatorName()+" w."+k)
	}
	list := strings.Join(keys, ", ")
	touched := t.log.touched(t.oid)
	if t.log.Scanned {
		touched += " UNION ALL " + t.log.updated(table)
	}
	head := "WITH " + ended + ", w AS MATERIALIZED (SELECT " + list + ", sum(n)::int AS n, bool_or(d) AS d FROM (" +
		touched + ") l GROUP BY " + list + " ORDER BY " + list + ") SELECT w.n, w.d, t.ctid IS NOT NULL, w." + strings.Join(keys, ", w.")
	tail := " FROM w LEFT JOIN ONLY " + table + " t ON " + strings.Join(join, " AND ") + version
	out.gone = head + tail
	out.net = head + ", " + strings.Join(row, ", ") + tail
	return out
}

// probe asks which of the tables have changes in the window.
func probe(tables []*captured) string {
	var parts []string
	for _, t := range tables {
		var exists []string
		for slot := range slots {
			for _, condition := range inWindow {
				exists = append(exists, "EXISTS (SELECT FROM "+logTable(t.oid, slot)+" WHERE "+condition+")")
			}
		}
		parts = append(parts, fmt.Sprintf("SELECT %d::oid WHERE %s", t.oid, strings.Join(exists, " OR ")))
	}
	return "WITH " + ended + " " + strings.Join(parts, " UNION ALL ")
}

const capturedSQL = `
SELECT c.oid, n.nspname, c.relname, p.oid, p.prosrc, EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = c.oid AND g.tgname = 'replicator_capture' AND g.tgattr <> '')
FROM unnest($1::text[], $2::text[]) x(s, t)
JOIN pg_namespace n ON n.nspname = x.s JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.t
JOIN pg_proc p ON p.pronamespace = 'replicator'::regnamespace AND p.proname = 'capture_' || c.oid AND p.pronargs = 0
ORDER BY 2, 3`

// readCaptured finds the tables' logs.
func readCaptured(ctx context.Context, q querier, names []replication.TableName) ([]*captured, error) {
	schemas, tables := make([]string, len(names)), make([]string, len(names))
	missing := map[replication.TableName]bool{}
	for i, n := range names {
		schemas[i], tables[i] = n.Schema, n.Name
		missing[n] = true
	}
	rows, err := q.Query(ctx, capturedSQL, schemas, tables)
	if err != nil {
		return nil, fmt.Errorf("find the change log: %w", err)
	}
	defer rows.Close()
	var out []*captured
	for rows.Next() {
		t := &captured{scan: scan{updates: -1}}
		var src string
		if err := rows.Scan(&t.oid, &t.name.Schema, &t.name.Name, &t.function, &src, &t.scan.narrow); err != nil {
			return nil, fmt.Errorf("find the change log: %w", err)
		}
		var ok bool
		if t.log, ok = parseDescription(src); !ok {
			return nil, retry.Stop(&preflight.Hinted{Code: "capture-lost", Err: fmt.Errorf("the capture of table %s was given up, or function %s() was not written by this program", t.name, functionName(t.oid)),
				Hint: lostHint})
		}
		delete(missing, t.name)
		out = append(out, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("find the change log: %w", err)
	}
	for n := range missing {
		return nil, retry.Stop(&preflight.Hinted{Code: "capture-lost", Err: fmt.Errorf("table %s has no change log: it was dropped, renamed or made anew, or its log was removed", n),
			Hint: fmt.Sprintf("changes may be missing: run `replicator resync` with --table %s, or exclude the table", n)})
	}
	return out, nil
}
