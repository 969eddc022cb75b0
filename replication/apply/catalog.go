package apply

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

// target is a table of the destination, as its catalog describes it.
type target struct {
	name    replication.TableName
	columns []targetColumn
	// key names the columns of a unique, immediate, complete index over NOT NULL columns, the primary key first; nil if none.
	key []string
	// suppressed: a trigger or a rule that acts on replicated changes too may keep rows from being inserted.
	suppressed bool
}

type targetColumn struct {
	name string
	// cast is the type without modifiers, as SQL; typ the whole type as people read it.
	cast, typ string
	// equals is the type's equality operator as SQL, schema included.
	equals    string
	generated bool
	always    bool // GENERATED ALWAYS AS IDENTITY
	required  bool // NOT NULL without default
	// plain: equal values have equal bytes, whoever made them.
	plain bool
}

const columnsSQL = `
SELECT a.attname::text, format_type(a.atttypid, -1), format_type(a.atttypid, a.atttypmod),
       coalesce((SELECT quote_ident(n.nspname) FROM pg_type b JOIN pg_operator o ON o.oprleft = b.oid AND o.oprright = b.oid AND o.oprname = '='
                 JOIN pg_namespace n ON n.oid = o.oprnamespace
                 WHERE b.oid = coalesce(nullif(t.typbasetype, 0), t.oid) AND b.typtype = 'b' LIMIT 1), 'pg_catalog'),
       a.attgenerated <> '', a.attidentity = 'a', a.attnotnull AND NOT a.atthasdef AND a.attidentity = '',
       t.typtype = 'e' OR coalesce(nullif(t.typbasetype, 0), t.oid) = ANY (ARRAY['bool', 'bytea', '"char"', 'name', 'int8', 'int2', 'int4', 'text', 'oid', 'json',
         'bpchar', 'varchar', 'date', 'time', 'timestamp', 'timestamptz', 'timetz', 'uuid', 'money', 'interval', 'inet', 'cidr', 'macaddr', 'pg_lsn']::regtype[])
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`

const keySQL = `
SELECT (SELECT array_agg(a.attname::text ORDER BY k.ord) FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY k(att, ord)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.att)
FROM pg_index i
WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k(att) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.att WHERE NOT a.attnotnull)
ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid LIMIT 1`

const suppressedSQL = `
SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgenabled <> 'D' AND (tgenabled IN ('A', 'R') OR current_setting('session_replication_role') <> 'replica')
               AND tgtype & 1 = 1 AND tgtype & 2 = 2 AND tgtype & 4 = 4)
    OR EXISTS (SELECT FROM pg_rewrite WHERE ev_class = to_regclass($1) AND ev_type <> '1')`

// readTargets reads tables in one round trip. One that isn't there has no columns.
func readTargets(ctx context.Context, conn *pgx.Conn, names []replication.TableName) ([]*target, error) {
	out := make([]*target, len(names))
	var b pgx.Batch
	for i, name := range names {
		t := &target{name: name}
		out[i] = t
		b.Queue(columnsSQL, name.Quoted()).Query(func(rows pgx.Rows) (err error) {
			t.columns, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (c targetColumn, err error) {
				var operators string
				err = r.Scan(&c.name, &c.cast, &c.typ, &operators, &c.generated, &c.always, &c.required, &c.plain)
				c.equals = "OPERATOR(" + operators + ".=)"
				return c, err
			})
			return err
		})
		b.Queue(keySQL, name.Quoted()).Query(func(rows pgx.Rows) error {
			keys, err := pgx.CollectRows(rows, pgx.RowTo[[]string])
			if len(keys) > 0 {
				t.key = keys[0]
			}
			return err
		})
		b.Queue(suppressedSQL, name.Quoted()).QueryRow(func(row pgx.Row) error { return row.Scan(&t.suppressed) })
	}
	if err := conn.SendBatch(ctx, &b).Close(); err != nil {
		return nil, fmt.Errorf("read the columns, key and triggers of %s and %d more: %w", names[0], len(names)-1, err)
	}
	return out, nil
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// drift is the error of a destination table that no longer fits the stream. It is not permanent: once the statement has been
// carried out, the pair goes on where it stopped.
func drift(table replication.TableName, what, statement string) error {
	return retry.Stop(&preflight.Hinted{Code: "schema-drift", Err: fmt.Errorf("table %s has drifted: %s", table, what),
		Hint: "nothing is lost and the pair waits; on the destination: " + statement})
}

// checkDrift compares what the stream says of the table with the destination's catalog. types are the stream's columns' types as the
// origin names them, now its columns' types of today by name: a column of the destination that is only younger than the stream's
// description, and may stay out of an INSERT, is no drift.
func checkDrift(r *replication.Relation, t *target, types []string, now map[string]string) error {
	if len(t.columns) == 0 {
		return drift(r.Name, "the table does not exist on the destination", fmt.Sprintf("create it there as it is on the origin (pg_dump --schema-only --table=%s)", shellQuote(r.Name.Quoted())))
	}
	have := make(map[string]*targetColumn, len(t.columns))
	for i := range t.columns {
		have[t.columns[i].name] = &t.columns[i]
	}
	table := "ALTER TABLE " + r.Name.Quoted() + " "
	streamed := make(map[string]bool, len(r.Columns))
	for i, c := range r.Columns {
		streamed[c.Name] = true
		tc := have[c.Name]
		switch {
		case tc == nil:
			return drift(r.Name, fmt.Sprintf("column %q (%s) exists only on the origin", c.Name, types[i]), table+"ADD COLUMN "+replication.QuoteIdent(c.Name)+" "+types[i]+";")
		case tc.generated:
			return drift(r.Name, fmt.Sprintf("column %q is generated only on the destination", c.Name), table+"ALTER COLUMN "+replication.QuoteIdent(c.Name)+" DROP EXPRESSION;")
		case !sameType(tc.typ, types[i]):
			return drift(r.Name, fmt.Sprintf("column %q is %s on the origin and %s on the destination", c.Name, types[i], tc.typ), table+"ALTER COLUMN "+replication.QuoteIdent(c.Name)+" TYPE "+types[i]+";")
		}
	}
	for _, c := range t.columns {
		younger := !c.required && now[c.name] != "" && sameType(c.typ, now[c.name])
		if !streamed[c.name] && !c.generated && !younger {
			return drift(r.Name, fmt.Sprintf("column %q exists only on the destination", c.name), table+"DROP COLUMN "+replication.QuoteIdent(c.name)+";")
		}
	}
	return nil
}

// sameType compares two spellings of a type; on older Heroku databases the types of extensions live in schema heroku_ext.
func sameType(a, b string) bool {
	bare := func(s string) string {
		s = strings.TrimPrefix(s, "heroku_ext.")
		return strings.TrimPrefix(s, "public.")
	}
	return a == b || (strings.Contains(a+b, "heroku_ext.") && bare(a) == bare(b))
}
