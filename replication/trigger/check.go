package trigger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

// Uncaptured returns those of the tables that have no log, or one that no longer fits: another table has taken the name; columns that the log
// keeps were renamed, dropped or changed, and the application's writes fail until Install is run again, or Silence; nothing keeps the key unique any more;
// a table that is logged by all its columns has others; or its capture was given up (Silence). Their copies are void.
func Uncaptured(ctx context.Context, q querier, tables []replication.Table) ([]replication.TableName, error) {
	found, err := look(ctx, q, tables)
	if err != nil {
		return nil, err
	}
	var out []replication.TableName
	for _, t := range tables {
		f := found[t.OID]
		if d, ok := parseDescription(f.src); f.oid != 0 && (!ok || !f.has(d)) {
			out = append(out, t.Name)
		}
	}
	return out, nil
}

// has tells whether the table still is what its log keeps: all columns that are stored, or a key that is one.
func (f existing) has(d described) bool {
	if len(d.Key) == 0 {
		return slices.EqualFunc(d.Row, f.stored, func(c column, name string) bool { return c.Name == name })
	}
	for _, c := range d.Key {
		if f.columns[c.Name] != c || !slices.Contains(f.stored, c.Name) || !slices.Contains(f.full, c.Name) {
			return false
		}
	}
	return unique(f.keys, d.Key)
}

// fails tells whether the function can't do its work, since columns that it names are gone or not what they were.
func (f existing) fails(d described) bool {
	for _, c := range d.Key {
		if f.columns[c.Name] != c {
			return true
		}
	}
	for _, c := range d.Row {
		if _, ok := f.columns[c.Name]; !ok {
			return true
		}
	}
	return false
}

// enabledSQL names tables that haven't both triggers as Install and the scanning make them: of our functions, for every row and truncation, and for every
// update unless the table is scanned.
const enabledSQL = `
SELECT x.oid::text FROM unnest($1::text::oid[], $2::text::oid[], $3::text::bool[]) x(oid, function, scanned) LEFT JOIN pg_trigger t
  ON t.tgrelid = x.oid AND t.tgname IN ('replicator_capture', 'replicator_capture_truncate') AND t.tgenabled = 'A' AND t.tgqual IS NULL
  AND CASE WHEN t.tgname = 'replicator_capture' THEN t.tgtype = 29 AND t.tgfoid = x.function AND (x.scanned OR t.tgattr = '')
      ELSE t.tgtype = 32 AND t.tgfoid = (SELECT p.oid FROM pg_proc p WHERE p.pronamespace = to_regnamespace('replicator') AND p.proname = 'capture_truncate' AND p.pronargs = 0) END
GROUP BY x.oid HAVING count(t.oid) <> 2`

// tablesSQL identifies the set of tables; a partition that was attached or a table that came or went changes it.
const tablesSQL = `
SELECT count(*) || ' ' || coalesce(sum(c.oid::bigint), 0) || ' ' || (SELECT count(*) || ' ' || coalesce(sum(inhrelid::bigint * 31 + inhparent::bigint), 0) FROM pg_inherits)
FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'`

// check locks the tables that have changes, and makes sure that the window can be trusted: no table has been rewritten since the snapshot was
// taken, all triggers have stood in place, and the catalog is as it was.
func (w *window) check(ctx context.Context) error {
	var queries []query
	var bad uint32
	var tables string
	var shapes []found
	if len(w.dirty) > 0 {
		oids := make([]uint32, len(w.dirty))
		for i, t := range w.dirty {
			oids[i] = t.oid
		}
		queries = append(queries, query{sql: lockStatement(w.dirty)}, query{shapeSQL, [][]byte{oidArray(oids)}, func(row [][]byte) error {
			var f found
			err := json.Unmarshal(row[0], &f)
			shapes = append(shapes, f)
			return err
		}})
	}
	var silenced string
	queries = append(queries, query{silencedSQL, nil, func(row [][]byte) error {
		silenced = string(row[0])
		return nil
	}}, query{tablesSQL, nil, func(row [][]byte) error {
		tables = string(row[0])
		return nil
	}}, query{enabledSQL, w.triggers(), func(row [][]byte) error {
		oid, err := strconv.ParseUint(string(row[0]), 10, 32)
		bad = uint32(oid)
		return err
	}})
	if err := w.ask(ctx, queries); err != nil {
		if postgres.Code(err) == postgres.CodeUndefinedTable {
			return retry.Stop(&preflight.Hinted{Code: "capture-altered", Err: fmt.Errorf("a table with changes was dropped or renamed: %w", err),
				Hint: "make both sides alike, then run `replicator resync` for it, or exclude it"})
		}
		return err
	}
	if bad != 0 {
		name := w.tables[bad].name
		return retry.Stop(&preflight.Hinted{Code: "capture-disabled", Err: fmt.Errorf("the capture triggers of table %s are, or were for a while, switched off, altered or gone (ALTER TABLE … DISABLE TRIGGER, or the table was dropped): changes may be missing", name),
			Hint: fmt.Sprintf("run `replicator resync` with --table %s, and keep triggers enabled: DISABLE TRIGGER ALL and USER hit ours too", name)})
	}
	if silenced != w.silenced {
		return retry.Stop(&preflight.Hinted{Code: "capture-lost", Err: errors.New("the capture of a table was given up, so that the application could write"), Hint: lostHint})
	}
	reshaped, err := w.describe(shapes)
	if errors.As(err, new(*preflight.Hinted)) {
		// What the two sides differ in says more: the statement that makes them alike.
		return cmp.Or(w.drift(ctx), err)
	}
	if err != nil {
		return err
	}
	w.reshaped = reshaped
	if w.s.o.Drift == nil || (!reshaped && tables == w.catalog && time.Since(w.driftAsked) < w.s.o.DriftEvery) {
		return nil
	}
	if err := w.drift(ctx); err != nil {
		return err
	}
	w.driftAsked, w.catalog = time.Now(), tables
	return nil
}

// driftWaitSQL is below the least deadlock_timeout that is usual: where the application's ALTER and the window wait for each other's tables, it is the
// window that gives way.
const driftWaitSQL = "SET LOCAL lock_timeout = '300ms'"

// drift asks within a savepoint. Reading the catalog locks what views and rules refer to (pg_get_viewdef), and the window may stay open for long: going
// back to the savepoint gives those locks back, with the settings.
func (w *window) drift(ctx context.Context) error {
	if w.s.o.Drift == nil {
		return nil
	}
	if err := postgres.Several(ctx, w.conn, "SAVEPOINT drift", driftWaitSQL); err != nil {
		return fmt.Errorf("ask for drift: %w", err)
	}
	// What the session forbids the planner for the log's sake would make a query of the whole catalog slow.
	if _, err := w.conn.Exec(ctx, `SELECT set_config(x, 'on', true) FROM unnest($1::text[]) x`, forbidden); err != nil {
		return fmt.Errorf("ask for drift: %w", err)
	}
	if err := w.s.o.Drift(ctx, w.conn); err != nil {
		return err
	}
	if err := postgres.Several(ctx, w.conn, "ROLLBACK TO SAVEPOINT drift", "RELEASE SAVEPOINT drift"); err != nil {
		return fmt.Errorf("ask for drift: %w", err)
	}
	return nil
}

// describe takes over the descriptions of the tables that have changes; reshaped tells whether one is new or no longer what it was.
func (w *window) describe(shapes []found) (reshaped bool, err error) {
	for _, f := range shapes {
		if f.Rewritten {
			return false, errRewritten
		}
		t := w.tables[f.OID]
		was := t.shape
		if err := t.describe(f.shape(t)); err != nil {
			return false, err
		}
		if why := f.unkeyed(t); why != "" {
			return false, altered(t.name, why)
		}
		reshaped = reshaped || t.shape != was
	}
	if len(shapes) != len(w.dirty) {
		return false, retry.Stop(&preflight.Hinted{Code: "capture-altered", Err: errors.New("a table with changes was dropped"), Hint: "exclude it, or make it again and run `replicator resync` for it"})
	}
	return reshaped, nil
}

// triggers are the parameters of enabledSQL.
func (w *window) triggers() [][]byte {
	functions := make([]uint32, len(w.order))
	scanned := []byte{'{'}
	for i, t := range w.order {
		functions[i] = t.function
		if i > 0 {
			scanned = append(scanned, ',')
		}
		scanned = strconv.AppendBool(scanned, t.log.Scanned)
	}
	return [][]byte{oidArray(w.oids), oidArray(functions), append(scanned, '}')}
}

func oidArray(oids []uint32) []byte {
	b := []byte{'{'}
	for i, o := range oids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(o), 10)
	}
	return append(b, '}')
}

const lockHoldersSQL = `
SELECT coalesce(string_agg(DISTINCT c.relname || ' by pid ' || coalesce(l.pid::text, '? (prepared)') || ' (' || coalesce(nullif(a.application_name, ''), 'no name') || ', ' ||
  coalesce(a.state, '?') || ', open for ' || coalesce(date_trunc('second', clock_timestamp() - a.xact_start)::text, '?') || ')', '; '), 'somebody')
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = ANY($1) AND l.granted AND l.mode = 'AccessExclusiveLock' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// holders names who holds the tables that the window needs.
func (w *window) holders(ctx context.Context) string {
	var who string
	if err := w.conn.QueryRow(ctx, lockHoldersSQL, w.oids).Scan(&who); err != nil {
		return "somebody"
	}
	return who
}
