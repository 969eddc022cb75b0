package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

// advisoryKey keeps two processes from installing at once. The number is arbitrary; it only has to be the same everywhere.
const advisoryKey = 0x7265706c63617074 // "replcapt"

// Install puts the change log, its functions and its triggers on the tables, for which schema replicator must exist
// (replication/state makes it). CREATE TRIGGER locks SHARE ROW EXCLUSIVE, which readers don't mind and writers do; so each table is its
// own short transaction with a short lock_timeout, tried again with back-off until ctx ends, the busy ones after the others and none
// behind a vacuum against wraparound. What is right already is left alone: after a crash, or with more tables, it does what is missing.
//
// It returns the tables whose log was made anew: a copy of one that was made before is void, since changes may be missing (Made tells which, whoever
// called Install). Every change that commits after Install has returned is logged. A log that an earlier version laid out otherwise is converted with all it holds (some
// microseconds a row, while the table's writers wait), which voids no copy.
//
// The error names every table that can't be captured, with what to do.
func Install(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, tables []replication.Table) ([]replication.TableName, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := makeCommon(ctx, pool); err != nil {
		return nil, fmt.Errorf("install the change log: %w", err)
	}
	steps, anew, err := missing(ctx, pool, tables)
	if err != nil {
		return nil, fmt.Errorf("install the change log: %w", err)
	}
	run := postgres.Calm{Pool: pool, Log: log, What: "change log"}
	if err := run.Run(ctx, steps, postgres.ShareRowExclusive, explainInstall); err != nil {
		return nil, fmt.Errorf("install the change log: %w", err)
	}
	left, _, err := missing(ctx, pool, tables)
	if err != nil {
		return nil, fmt.Errorf("install the change log: %w", err)
	}
	if len(left) > 0 {
		return nil, fmt.Errorf("install the change log: %s was changed meanwhile: install again", left[0].Name)
	}
	var made []replication.TableName
	for _, s := range steps {
		if i := slices.IndexFunc(tables, func(t replication.Table) bool { return t.OID == s.OID }); anew[s.OID] {
			made = append(made, tables[i].Name)
		}
	}
	return made, nil
}

// makeCommon makes what all tables share.
func makeCommon(ctx context.Context, pool *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(advisoryKey)); err != nil {
			return err
		}
		for _, sql := range common {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

// Convert gives the logs that an earlier version of this program laid out otherwise their present form, as Install does, and leaves all else as it
// is: what isn't captured, or not as it was, is the stream's to find. A stream reads the present form alone.
func Convert(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, tables []replication.Table) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if _, err := pool.Exec(ctx, truncatedIdentity); err != nil {
		return fmt.Errorf("convert the change log: %w", err)
	}
	found, err := look(ctx, pool, tables)
	if err != nil {
		return fmt.Errorf("convert the change log: %w", err)
	}
	var steps []postgres.LockedStep
	for _, t := range tables {
		f := found[t.OID]
		have, ok := parseDescription(f.src)
		d := f.describe(t)
		if !ok || have.Form == d.Form || !have.logsSame(d) {
			continue
		}
		d.Slot, d.Scanned = have.Slot, have.Scanned
		sql, err := f.convert(t, d)
		if err != nil {
			return fmt.Errorf("convert the change log: %w", err)
		}
		steps = append(steps, postgres.LockedStep{OID: t.OID, Name: t.Name.String(), Statements: sql})
	}
	if len(steps) == 0 {
		return nil
	}
	if err := makeCommon(ctx, pool); err != nil {
		return fmt.Errorf("convert the change log: %w", err)
	}
	run := postgres.Calm{Pool: pool, Log: log, What: "change log"}
	if err := run.Run(ctx, steps, postgres.ShareRowExclusive, explainInstall); err != nil {
		return fmt.Errorf("convert the change log: %w", err)
	}
	return nil
}

func explainInstall(s postgres.LockedStep, err error) error {
	if postgres.Code(err) == postgres.CodeUndefinedTable {
		return fmt.Errorf("capture %s: %w: read the list of tables again", s.Name, err)
	}
	return fmt.Errorf("capture %s: %w", s.Name, err)
}

// Check returns a finding for every table that can't be captured by triggers, with the remedy, and for tables without key. It changes
// nothing.
func Check(ctx context.Context, q querier, tables []replication.Table) ([]preflight.Finding, error) {
	found, err := look(ctx, q, tables)
	if err != nil {
		return nil, err
	}
	var out []preflight.Finding
	var keyless []string
	for _, t := range tables {
		f := found[t.OID]
		if why, remedy := f.refused(t); why != "" {
			out = append(out, preflight.Finding{Code: "capture-refused", Severity: preflight.Error, Message: why, Hint: remedy})
		}
		if len(t.Key) == 0 {
			keyless = append(keyless, t.Name.String())
		}
	}
	if len(keyless) > 0 {
		out = append(out, preflight.Finding{Code: "capture-keyless", Severity: preflight.Warning,
			Message: fmt.Sprintf("tables without a usable key are logged by whole rows, and changes of theirs are slow to apply: %s", strings.Join(keyless, ", ")),
			Hint:    "add a primary key that isn't deferrable, or exclude tables that change much"})
	}
	return out, nil
}

// existing is what the catalog says of one table.
type existing struct {
	oid                     uint32
	owned, forced, schemaOK bool
	src                     string
	row, truncate           string // tgenabled of the two triggers, empty if missing
	narrow                  bool   // the row trigger leaves updates out that don't name the key
	columns                 map[string]column
	stored, full            []string   // the columns that aren't generated, and those that are NOT NULL
	keys                    [][]string // what keysSQL gives
}

// refused tells why a table can't be captured and what to do, both empty if it can.
func (f existing) refused(t replication.Table) (why, remedy string) {
	switch {
	case f.oid == 0:
		return fmt.Sprintf("table %s is gone", t.Name), "read the list of tables again"
	case !f.owned:
		return fmt.Sprintf("table %s belongs to another role: only its owner may make a trigger fire always", t.Name),
			fmt.Sprintf("connect with that role, be made a member of it, or ALTER TABLE %s OWNER TO this role", t.Name.Quoted())
	case f.forced:
		return fmt.Sprintf("table %s has FORCE ROW LEVEL SECURITY: its owner doesn't see all rows", t.Name),
			fmt.Sprintf("ALTER TABLE %s NO FORCE ROW LEVEL SECURITY, connect with a role that has BYPASSRLS, or exclude the table", t.Name.Quoted())
	case len(t.Stored()) == 0:
		return fmt.Sprintf("table %s has no columns", t.Name), "exclude it"
	}
	return "", ""
}

// lookSQL reads what is there. A column's equality operator is the one of its base type, looked for by name as ORDER BY and indexes find it.
const lookSQL = `
SELECT c.oid, pg_has_role(c.relowner, 'USAGE'),
       c.relforcerowsecurity AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user),
       coalesce(has_schema_privilege(to_regnamespace('replicator'), 'CREATE'), has_database_privilege(current_database(), 'CREATE')),
       coalesce((SELECT p.prosrc FROM pg_proc p WHERE p.pronamespace = to_regnamespace('replicator') AND p.proname = 'capture_' || c.oid AND p.pronargs = 0), ''),
       coalesce((SELECT t.tgenabled::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = c.oid AND t.tgname = 'replicator_capture'
         AND p.pronamespace = to_regnamespace('replicator') AND p.proname = 'capture_' || c.oid AND t.tgtype = 29 AND t.tgqual IS NULL), ''),
       coalesce((SELECT t.tgenabled::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid WHERE t.tgrelid = c.oid AND t.tgname = 'replicator_capture_truncate'
         AND p.pronamespace = to_regnamespace('replicator') AND p.proname = 'capture_truncate' AND t.tgtype = 32), ''),
       EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = 'replicator_capture' AND t.tgattr <> ''),
       x.names, x.types, x.builtin, x.collations, x.operators, coalesce(x.stored, '{}'), coalesce(x.notnull, '{}'), ` + keysSQL + `
FROM pg_class c CROSS JOIN LATERAL (
  SELECT array_agg(a.attname::text ORDER BY a.attnum) AS names,
         array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attgenerated = '') AS stored,
         array_agg(a.attname::text) FILTER (WHERE a.attnotnull) AS notnull,
         array_agg(format_type(b.oid, -1) ORDER BY a.attnum) AS types,
         array_agg(b.oid < 16384 AND b.typnamespace = 'pg_catalog'::regnamespace ORDER BY a.attnum) AS builtin,
         array_agg(coalesce((SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace
                   WHERE l.oid = a.attcollation), '') ORDER BY a.attnum) AS collations,
         array_agg(coalesce((SELECT quote_ident(n.nspname) FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
                   WHERE o.oprname = '=' AND o.oprleft = b.oid AND o.oprright = b.oid LIMIT 1), 'pg_catalog') ORDER BY a.attnum) AS operators
  FROM pg_attribute a
  CROSS JOIN LATERAL (WITH RECURSIVE base(oid, up) AS (
      SELECT t.oid, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
      UNION ALL SELECT t.oid, t.typbasetype FROM base JOIN pg_type t ON t.oid = base.up)
    SELECT t.oid, t.typnamespace FROM base JOIN pg_type t ON t.oid = base.oid WHERE base.up = 0) b
  WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) x
WHERE c.oid = ANY($1)`

func look(ctx context.Context, q querier, tables []replication.Table) (map[uint32]existing, error) {
	oids := make([]uint32, len(tables))
	for i, t := range tables {
		oids[i] = t.OID
	}
	rows, err := q.Query(ctx, lookSQL, oids)
	if err != nil {
		return nil, fmt.Errorf("read the tables' catalog: %w", err)
	}
	defer rows.Close()
	out := map[uint32]existing{}
	for rows.Next() {
		var e existing
		var names, types, collations, operators []string
		var builtin []bool
		var keys []byte
		if err := rows.Scan(&e.oid, &e.owned, &e.forced, &e.schemaOK, &e.src, &e.row, &e.truncate, &e.narrow, &names, &types, &builtin, &collations, &operators, &e.stored, &e.full, &keys); err != nil {
			return nil, fmt.Errorf("read the tables' catalog: %w", err)
		}
		if err := json.Unmarshal(keys, &e.keys); err != nil {
			return nil, fmt.Errorf("read the tables' catalog: %w", err)
		}
		e.columns = map[string]column{}
		for i := range names {
			e.columns[names[i]] = column{Name: names[i], Type: types[i], Builtin: builtin[i], Collation: collations[i], Equals: operators[i]}
		}
		out[e.oid] = e
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the tables' catalog: %w", err)
	}
	return out, nil
}

// describe says what a table's function must log.
func (f existing) describe(t replication.Table) described {
	d := described{Table: t.Name.String()}
	for _, i := range t.Key {
		d.Key = append(d.Key, f.columns[t.Columns[i].Name])
		d.Form = bothKeys
	}
	if len(t.Key) == 0 {
		for _, c := range t.Stored() {
			d.Row = append(d.Row, column{Name: c.Name})
		}
	}
	return d
}

func (d described) logsSame(e described) bool {
	return slices.Equal(d.Key, e.Key) && slices.Equal(d.Row, e.Row)
}

// missing returns the steps for the tables whose capture isn't complete, and which of them get a new log.
func missing(ctx context.Context, q querier, tables []replication.Table) (steps []postgres.LockedStep, anew map[uint32]bool, err error) {
	found, err := look(ctx, q, tables)
	if err != nil {
		if postgres.Code(err) == "3F000" {
			return nil, nil, &preflight.Hinted{Code: "no-schema", Err: errors.New("schema replicator is missing"), Hint: "prepare the state first"}
		}
		return nil, nil, err
	}
	anew = map[uint32]bool{}
	var refused []error
	for _, t := range tables {
		f := found[t.OID]
		if why, remedy := f.refused(t); why != "" {
			refused = append(refused, fmt.Errorf("%s: %s", why, remedy))
			continue
		}
		d := f.describe(t)
		have, ok := parseDescription(f.src)
		intact := ok && have.logsSame(d) && f.row == "A" && f.truncate == "A" && (have.Scanned || !f.narrow)
		if intact && have.Form == d.Form {
			continue
		}
		statements := f.statements
		if intact {
			d.Slot, d.Scanned = have.Slot, have.Scanned
			statements = f.convert
		}
		sql, err := statements(t, d)
		if err != nil {
			return nil, nil, err
		}
		anew[t.OID] = !intact
		steps = append(steps, postgres.LockedStep{OID: t.OID, Name: t.Name.String(), Statements: sql})
	}
	return steps, anew, errors.Join(refused...)
}

func lockWriters(t replication.Table) string {
	return "LOCK TABLE ONLY " + t.Name.Quoted() + " IN SHARE ROW EXCLUSIVE MODE"
}

// statements install a table's capture anew. With writers locked out, a log that is there can be replaced.
func (f existing) statements(t replication.Table, d described) ([]string, error) {
	function, err := d.create(t.OID)
	if err != nil {
		return nil, err
	}
	table := t.Name.Quoted()
	out := []string{lockWriters(t)}
	for slot := range slots {
		out = append(out, "DROP TABLE IF EXISTS "+logTable(t.OID, slot))
		out = append(out, d.createLog(t.OID, slot)...)
	}
	out = append(out, function, "REVOKE ALL ON FUNCTION "+functionName(t.OID)+"() FROM PUBLIC",
		"DO "+replication.QuoteLiteral(fmt.Sprintf("BEGIN EXECUTE pg_catalog.format('COMMENT ON FUNCTION %s() IS %%L', '%s' || pg_catalog.pg_current_xact_id()); END", functionName(t.OID), madeMark)))
	switch {
	case f.row == "":
		out = append(out, "CREATE TRIGGER "+d.rowTrigger(t.OID, table, false))
	case f.narrow:
		out = append(out, "CREATE OR REPLACE TRIGGER "+d.rowTrigger(t.OID, table, false))
	}
	if f.truncate == "" {
		out = append(out, "CREATE TRIGGER "+truncateTrigger+" AFTER TRUNCATE ON "+table+" FOR EACH STATEMENT EXECUTE FUNCTION replicator.capture_truncate()")
	}
	return append(out, "ALTER TABLE ONLY "+table+" ENABLE ALWAYS TRIGGER "+rowTrigger+", ENABLE ALWAYS TRIGGER "+truncateTrigger), nil
}

// convert gives a log by key its present form. With writers locked out, everybody who has written to it has ended; what they wrote keeps the
// ids of their transactions, by which alone it is read.
func (f existing) convert(t replication.Table, d described) ([]string, error) {
	function, err := d.create(t.OID)
	if err != nil {
		return nil, err
	}
	var before, after []string
	for i := range d.Key {
		before, after = append(before, fmt.Sprintf("CASE WHEN op <> 'I' THEN k%d END", i)), append(after, fmt.Sprintf("CASE WHEN op <> 'D' THEN k%d END", i))
	}
	out := []string{lockWriters(t)}
	for slot := range slots {
		log := logTable(t.OID, slot)
		former := log + "_former"
		out = append(out, "ALTER TABLE "+log+" RENAME TO "+strings.TrimPrefix(former, "replicator."))
		out = append(out, d.createLog(t.OID, slot)...)
		out = append(out, "INSERT INTO "+log+" (xid, "+d.names("o")+", "+d.names("k")+") SELECT xid, "+strings.Join(before, ", ")+", "+strings.Join(after, ", ")+" FROM "+former,
			"DROP TABLE "+former)
	}
	return append(out, function), nil
}

// madeMark begins the comment on a function that says which transaction made the table's log, or put its triggers back. A rotation leaves it alone.
const madeMark = "replicator: change log made by transaction "

const madeSQL = `
SELECT n.nspname, c.relname, coalesce(substring(obj_description(p.oid, 'pg_proc') FROM '^' || $3 || '([0-9]+)$'), '0')::numeric::text
FROM unnest($1::text[], $2::text[]) x(s, t)
JOIN pg_namespace n ON n.nspname = x.s JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = x.t
JOIN pg_proc p ON p.pronamespace = to_regnamespace('replicator') AND p.proname = 'capture_' || c.oid AND p.pronargs = 0`

// Made returns the transaction that made each table's log as it is. Only what committed after it is certain to be logged: a copy whose snapshot
// doesn't see it is void, unless the stream began after it. 0, which everybody sees, for a log of an earlier version, which doesn't say.
func Made(ctx context.Context, q querier, tables []replication.TableName) (map[replication.TableName]uint64, error) {
	schemas, names := make([]string, len(tables)), make([]string, len(tables))
	for i, t := range tables {
		schemas[i], names[i] = t.Schema, t.Name
	}
	rows, err := q.Query(ctx, madeSQL, schemas, names, madeMark)
	if err != nil {
		return nil, fmt.Errorf("read when the change log was made: %w", err)
	}
	out := map[replication.TableName]uint64{}
	var t replication.TableName
	var text string
	_, err = pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &text}, func() (err error) {
		out[t], err = strconv.ParseUint(text, 10, 64)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read when the change log was made: %w", err)
	}
	return out, nil
}

const installedSQL = `
SELECT c.oid, n.nspname, c.relname, array_agg(t.tgname::text ORDER BY t.tgname)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace pn ON pn.oid = p.pronamespace
WHERE pn.nspname = 'replicator' AND p.proname ~ '^capture_' AND t.tgname IN ('replicator_capture', 'replicator_capture_truncate') AND t.tgparentid = 0
GROUP BY 1, 2, 3 ORDER BY 2, 3`

const leftoversSQL = `
SELECT format('DROP FUNCTION IF EXISTS replicator.%I()', p.proname)
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'replicator' AND p.proname ~ '^capture_' AND p.pronargs = 0
UNION ALL
SELECT format('DROP TABLE IF EXISTS replicator.%I', c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'replicator' AND c.relkind = 'r' AND c.relname ~ '^capture(_|$)'`

// Uninstall removes the triggers, table by table as calmly as Install (DROP TRIGGER locks ACCESS EXCLUSIVE and also waits for readers), then
// the functions and the log. A second call goes on where the first ended; with nothing installed it does nothing. Schema
// replicator stays.
func Uninstall(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	steps, err := installed(ctx, pool, func(replication.TableName) bool { return true })
	if err != nil {
		return fmt.Errorf("uninstall the change log: %w", err)
	}
	run := postgres.Calm{Pool: pool, Log: log, What: "change log"}
	if err := run.Run(ctx, steps, postgres.AccessExclusive, func(s postgres.LockedStep, err error) error {
		return fmt.Errorf("drop the triggers of %s: %w", s.Name, err)
	}); err != nil {
		return fmt.Errorf("uninstall the change log: %w", err)
	}
	rows, err := pool.Query(ctx, leftoversSQL)
	if err != nil {
		return fmt.Errorf("uninstall the change log: %w", err)
	}
	drops, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("uninstall the change log: %w", err)
	}
	for _, sql := range drops {
		if _, err := pool.Exec(ctx, sql); err != nil {
			return fmt.Errorf("uninstall the change log: %s: %w", sql, err)
		}
	}
	return nil
}
