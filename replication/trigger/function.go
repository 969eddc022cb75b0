package trigger

import (
	"encoding/json"
	"fmt"
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
}

const descriptionMark = "-- replicator capture: "

func logTable(oid uint32, slot int) string { return fmt.Sprintf("replicator.capture_%d_%d", oid, slot) }

func functionName(oid uint32) string { return fmt.Sprintf("replicator.capture_%d", oid) }

// output is the expression of a value in its type's own text form; a cast may be another one (char(n) loses its blanks).
func output(v string) string { return "pg_catalog.format('%s', " + v + ")" }

// createLog returns the statements that make a table's log anew.
func (d described) createLog(oid uint32) []string {
	var columns strings.Builder
	for i, c := range d.Key {
		switch {
		case !c.Builtin:
			fmt.Fprintf(&columns, ", k%d text NOT NULL", i)
		case c.Collation != "":
			fmt.Fprintf(&columns, ", k%d %s COLLATE %s NOT NULL", i, c.Type, c.Collation)
		default:
			fmt.Fprintf(&columns, ", k%d %s NOT NULL", i, c.Type)
		}
	}
	if len(d.Key) == 0 {
		columns.WriteString(", r text[] NOT NULL")
	}
	var out []string
	for slot := range slots {
		log := logTable(oid, slot)
		out = append(out,
			"DROP TABLE IF EXISTS "+log,
			// Rows are only ever added, and removed by TRUNCATE: there is nothing to vacuum.
			"CREATE TABLE "+log+` (xid xid8 NOT NULL, op "char" NOT NULL`+columns.String()+") WITH (autovacuum_enabled = off, toast.autovacuum_enabled = off)",
			"CREATE INDEX ON "+log+" (xid) WITH (fillfactor = 100)",
			"REVOKE ALL ON "+log+" FROM PUBLIC")
	}
	return out
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

// guard refuses a trigger on any other table, should somebody be able to make one.
const guard = `  IF TG_RELID OPERATOR(pg_catalog.<>) %d THEN
    RAISE EXCEPTION 'this function captures another table';
  END IF;
`

// keyed logs keys: U for an update that leaves the key as it is, to the byte; one that changes it takes the old key away and brings the new.
func (d described) keyed(oid uint32) string {
	var names, olds, news, oldRow, newRow strings.Builder
	for i, c := range d.Key {
		o, n := "OLD."+replication.QuoteIdent(c.Name), "NEW."+replication.QuoteIdent(c.Name)
		if i > 0 {
			oldRow.WriteString(", ")
			newRow.WriteString(", ")
		}
		oldRow.WriteString(o)
		newRow.WriteString(n)
		if !c.Builtin {
			o, n = output(o), output(n)
		}
		fmt.Fprintf(&names, ", k%d", i)
		olds.WriteString(", " + o)
		news.WriteString(", " + n)
	}
	const x = "(pg_catalog.pg_current_xact_id(), "
	into := "INSERT INTO " + logTable(oid, d.Slot) + " (xid, op" + names.String() + ") VALUES "
	same := "ROW(" + oldRow.String() + ")::pg_catalog.record OPERATOR(pg_catalog.*=) ROW(" + newRow.String() + ")::pg_catalog.record"
	return "BEGIN\n" + fmt.Sprintf(guard, oid) +
		"  IF TG_OP OPERATOR(pg_catalog.=) 'UPDATE' THEN\n    IF " + same + " THEN\n      " + into + x + "'U'" + news.String() + ");\n" +
		"    ELSE\n      " + into + x + "'D'" + olds.String() + "), " + x + "'I'" + news.String() + ");\n    END IF;\n" +
		"  ELSIF TG_OP OPERATOR(pg_catalog.=) 'INSERT' THEN\n    " + into + x + "'I'" + news.String() + ");\n" +
		"  ELSE\n    " + into + x + "'D'" + olds.String() + ");\n  END IF;\n  RETURN NULL;\nEND\n"
}

// keyless logs whole rows.
func (d described) keyless(oid uint32) string {
	row := func(of string) string {
		var b strings.Builder
		for i, c := range d.Row {
			if i > 0 {
				b.WriteString(", ")
			}
			v := of + "." + replication.QuoteIdent(c.Name)
			b.WriteString("CASE WHEN " + v + " IS NOT DISTINCT FROM NULL THEN NULL ELSE " + output(v) + " END")
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

// common are the statements that make what all tables share.
var common = []string{
	`CREATE TABLE IF NOT EXISTS replicator.capture (id integer PRIMARY KEY, beat bigint NOT NULL) WITH (fillfactor = 50)`,
	`INSERT INTO replicator.capture VALUES (1, 0) ON CONFLICT DO NOTHING`,
	`CREATE TABLE IF NOT EXISTS replicator.capture_truncated (xid xid8 NOT NULL, relid oid NOT NULL)`,
	`CREATE INDEX IF NOT EXISTS capture_truncated_xid ON replicator.capture_truncated (xid)`,
	`REVOKE ALL ON replicator.capture, replicator.capture_truncated FROM PUBLIC`,
	`CREATE OR REPLACE FUNCTION replicator.capture_truncate() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS '
BEGIN
  INSERT INTO replicator.capture_truncated (xid, relid) VALUES (pg_catalog.pg_current_xact_id(), TG_RELID);
  RETURN NULL;
END'`,
	`REVOKE ALL ON FUNCTION replicator.capture_truncate() FROM PUBLIC`,
}
