package trigger

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"replicator/replication"
)

// Names of what is made on the application's tables.
const (
	rowTrigger      = "replicator_capture"
	truncateTrigger = "replicator_capture_truncate"
)

// slots is how many log tables a table has; its function writes to one of them at a time.
const slots = 2

// column is a column of the key or, where there is none, of the row, as the log keeps it.
type column struct {
	Name string `json:"name"`
	// Type is the column's base type as SQL. A built-in type is kept as itself; any other as text, so that the log never stands in the way of
	// the application's changing or dropping its types.
	Type    string `json:"type"`
	Builtin bool   `json:"builtin"`
	// Collation is the column's as SQL, empty if it has none.
	Collation string `json:"collation,omitempty"`
	// Equals is the schema of the type's equality operator.
	Equals string `json:"equals"`
}

// described is what a capture function says of itself, in a comment in its source: how its log is to be read.
type described struct {
	Table string `json:"table"`
	// Key is empty for a table without key; Row then lists the columns of the whole row.
	Key []column `json:"key,omitempty"`
	Row []column `json:"row,omitempty"`
	// Slot is the log table that is written to.
	Slot int `json:"slot"`
	// Form is how the log is laid out; a table without key has but one.
	Form int `json:"form,omitempty"`
	// Scanned says that updates which leave the key alone may not be logged: they are found by reading the table (scan.go).
	Scanned bool `json:"scanned,omitempty"`
}

// The forms of a log by key. In bothKeys a row holds the key before and the key after, of which an insert has no former and a delete no latter:
// the function needs no condition, and writes one row a change. The form before it (op: I, D or U, and one key) is converted by Install.
const bothKeys = 2

const descriptionMark = "-- replicator capture: "

func logTable(oid uint32, slot int) string { return fmt.Sprintf("replicator.capture_%d_%d", oid, slot) }

func functionName(oid uint32) string { return fmt.Sprintf("replicator.capture_%d", oid) }

// output is the expression of a value in its type's own text form; a cast may be another one (char(n) loses its blanks).
func output(v string) string { return "pg_catalog.format('%s', " + v + ")" }

// outputOrNull is output, of a null null; a composite value of nulls is none.
func outputOrNull(v string) string {
	return "CASE WHEN " + v + " IS NOT DISTINCT FROM NULL THEN NULL ELSE " + output(v) + " END"
}

// logged are the log's columns for one key.
func (d described) logged(prefix string) []string {
	var out []string
	for i, c := range d.Key {
		switch {
		case !c.Builtin:
			out = append(out, fmt.Sprintf("%s%d text", prefix, i))
		case c.Collation != "":
			out = append(out, fmt.Sprintf("%s%d %s COLLATE %s", prefix, i, c.Type, c.Collation))
		default:
			out = append(out, fmt.Sprintf("%s%d %s", prefix, i, c.Type))
		}
	}
	return out
}

// names lists the log's columns for one key.
func (d described) names(prefix string) string {
	out := make([]string, len(d.Key))
	for i := range d.Key {
		out[i] = prefix + strconv.Itoa(i)
	}
	return strings.Join(out, ", ")
}

// createLog returns the statements that make one of a table's log tables.
func (d described) createLog(oid uint32, slot int) []string {
	layout := `op "char" NOT NULL, r text[] NOT NULL`
	if len(d.Key) > 0 {
		layout = strings.Join(append(d.logged("o"), d.logged("k")...), ", ")
	}
	log := logTable(oid, slot)
	return []string{
		// Rows are only ever added, and removed by TRUNCATE: there is nothing to vacuum.
		"CREATE TABLE " + log + " (xid xid8 NOT NULL, " + layout + ") WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)",
		"CREATE INDEX ON " + log + " (xid) WITH (fillfactor = 100)",
		"REVOKE ALL ON " + log + " FROM PUBLIC",
	}
}

// create returns the statement that gives the table's function this description. It runs with the rights of our role and serves no other
// table than its own. Everything in it, operators and types included, is named with its schema, so that no search_path can redirect it; pinning
// the path as well would double what it costs the application (8 µs of 16 a row, PostgreSQL 15), and is done only where settings have to be
// pinned anyway.
func (d described) create(oid uint32) (string, error) {
	description, err := d.comment()
	if err != nil {
		return "", err
	}
	pin := ""
	asText := len(d.Key) == 0
	for _, c := range d.Key {
		asText = asText || !c.Builtin
	}
	if asText {
		// Text forms must not depend on the session that writes (compare the settings pinned in internal/postgres).
		pin = "SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 3 SET lc_monetary = 'C' SET timezone = 'UTC' SET bytea_output = 'hex' SET xmloption = 'content'"
	}
	body := description + d.keyed(oid)
	if len(d.Key) == 0 {
		body = description + d.keyless(oid)
	}
	return "CREATE OR REPLACE FUNCTION " + functionName(oid) + "() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER " + pin + " AS" + replication.QuoteLiteral(body), nil
}

// keyed logs the key before and the key after, which for an insert and a delete are null in part (the record variable is: "Trigger Functions" of
// PL/pgSQL). What a row costs is mostly the setting up of expressions and statements, anew in each transaction and statement: so there is no
// condition in it, and that it serves no other table, should somebody be able to make a trigger there, is said by a null that the log refuses.
func (d described) keyed(oid uint32) string {
	value := func(of string, c column) string {
		v := of + "." + replication.QuoteIdent(c.Name)
		if c.Builtin {
			return v
		}
		return outputOrNull(v)
	}
	var olds, news []string
	for _, c := range d.Key {
		olds, news = append(olds, value("OLD", c)), append(news, value("NEW", c))
	}
	return "BEGIN\n  INSERT INTO " + logTable(oid, d.Slot) + " (xid, " + d.names("o") + ", " + d.names("k") + ")\n  VALUES (CASE WHEN TG_RELID OPERATOR(pg_catalog.=) " +
		strconv.FormatUint(uint64(oid), 10) + " THEN pg_catalog.pg_current_xact_id() END, " + strings.Join(olds, ", ") + ", " + strings.Join(news, ", ") + ");\n  RETURN NULL;\nEND\n"
}

// guard refuses a trigger on any other table.
const guard = `  IF TG_RELID OPERATOR(pg_catalog.<>) %d THEN
    RAISE EXCEPTION 'this function captures another table';
  END IF;
`

// keyless logs whole rows.
func (d described) keyless(oid uint32) string {
	row := func(of string) string {
		var b strings.Builder
		for i, c := range d.Row {
			if i > 0 {
				b.WriteString(", ")
			}
			v := of + "." + replication.QuoteIdent(c.Name)
			b.WriteString(outputOrNull(v))
		}
		return "ARRAY[" + b.String() + "]::pg_catalog.text[]"
	}
	into := "INSERT INTO " + logTable(oid, d.Slot) + " (xid, op, r) VALUES (pg_catalog.pg_current_xact_id(), "
	return "DECLARE\n  old_row pg_catalog.text[];\n  new_row pg_catalog.text[];\nBEGIN\n" + fmt.Sprintf(guard, oid) +
		"  IF TG_OP OPERATOR(pg_catalog.<>) 'INSERT' THEN\n    old_row := " + row("OLD") + ";\n  END IF;\n" +
		"  IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE' THEN\n    new_row := " + row("NEW") + ";\n  END IF;\n" +
		"  IF old_row IS NOT NULL AND new_row IS NOT NULL AND old_row OPERATOR(pg_catalog.=) new_row THEN\n    RETURN NULL;\n  END IF;\n" +
		"  IF old_row IS NOT NULL THEN\n    " + into + "'D', old_row);\n  END IF;\n" +
		"  IF new_row IS NOT NULL THEN\n    " + into + "'I', new_row);\n  END IF;\n  RETURN NULL;\nEND\n"
}

// comment is the line that parseDescription reads.
func (d described) comment() (string, error) {
	b, err := json.Marshal(d)
	if err != nil {
		return "", fmt.Errorf("describe the capture of %s: %w", d.Table, err)
	}
	return descriptionMark + string(b) + "\n", nil
}

func parseDescription(src string) (described, bool) {
	_, rest, ok := strings.Cut(src, descriptionMark)
	if !ok {
		return described{}, false
	}
	line, _, _ := strings.Cut(rest, "\n")
	var d described
	return d, json.Unmarshal([]byte(line), &d) == nil
}

// truncatedIdentity lets rows be deleted where somebody publishes all tables, which otherwise takes a key. It waits only briefly, since truncations
// by the application queue behind it.
const truncatedIdentity = `DO '
BEGIN
  IF EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(''replicator.capture_truncated'') AND relreplident <> ''f'') THEN
    SET LOCAL lock_timeout = ''2s'';
    ALTER TABLE replicator.capture_truncated REPLICA IDENTITY FULL;
  END IF;
END'`

// common are the statements that make what all tables share.
var common = []string{
	`CREATE TABLE IF NOT EXISTS replicator.capture (id integer PRIMARY KEY, beat bigint NOT NULL) WITH (fillfactor = 50)`,
	`INSERT INTO replicator.capture VALUES (1, 0) ON CONFLICT DO NOTHING`,
	`CREATE TABLE IF NOT EXISTS replicator.capture_truncated (xid xid8 NOT NULL, relid oid NOT NULL)`,
	`CREATE INDEX IF NOT EXISTS capture_truncated_xid ON replicator.capture_truncated (xid)`,
	truncatedIdentity,
	`REVOKE ALL ON replicator.capture, replicator.capture_truncated FROM PUBLIC`,
	`CREATE OR REPLACE FUNCTION replicator.capture_truncate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS '
BEGIN
  INSERT INTO replicator.capture_truncated (xid, relid) VALUES (pg_catalog.pg_current_xact_id(), TG_RELID);
  RETURN NULL;
END'`,
	`REVOKE ALL ON FUNCTION replicator.capture_truncate() FROM PUBLIC`,
}
