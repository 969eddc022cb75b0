package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/preflight"
	"replicator/replication"
)

// client looks whether pg_dump can read the source.
func (r *run) client(ctx context.Context, s *side) {
	path, major, err := r.Catalog.Client(ctx)
	var hinted *preflight.Hinted
	switch {
	case errors.As(err, &hinted):
		r.fail("", hinted.Code, hinted.Hint, "%v", hinted.Err)
	case err != nil:
		r.fail("", "pg-dump-missing", "install the PostgreSQL client programs of the source's major version or newer", "pg_dump doesn't run: %v", err)
	case major < s.major():
		r.fail("", "pg-dump-too-old", fmt.Sprintf("install the client programs of PostgreSQL %d or newer", s.major()), "%s is of version %d, the source of version %d", path, major, s.major())
	default:
		r.ok("", "pg-dump", "%s is of version %d", path, major)
	}
}

const readRights = `
SELECT n.nspname, c.relname,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'),
       pg_has_role(c.relowner, 'USAGE'),
       c.relrowsecurity AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE'))
FROM unnest($1::oid[]) o JOIN pg_class c ON c.oid = o JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY 1, 2`

// readForeignKeys finds foreign keys from replicated tables to tables that aren't; partitioned parents count by their leaves.
const readForeignKeys = `
SELECT DISTINCT format('%s.%s (%s → %s.%s)', n.nspname, c.relname, k.conname, fn.nspname, fc.relname)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class fc ON fc.oid = k.confrelid JOIN pg_namespace fn ON fn.oid = fc.relnamespace
WHERE k.contype = 'f' AND k.conrelid = ANY ($1::oid[]) AND fc.relkind = 'r' AND NOT k.confrelid = ANY ($1::oid[])`

// tables looks at what is to be replicated, and at what can't be.
func (r *run) tables(ctx context.Context, s *side) {
	list, err := r.Catalog.Tables(ctx, s.conn)
	if err != nil {
		r.broke(s.name, "tables", err)
		return
	}
	if len(list) == 0 {
		r.fail(s.name, "tables", "correct tables.include and tables.exclude, or the URL's database", "no table is to be replicated from database %s", s.database)
		return
	}
	s.tables = list
	var bytes int64
	var oids []uint32
	largest := list[0]
	for _, t := range list {
		bytes += t.Bytes
		oids = append(oids, t.OID)
		if t.Bytes > largest.Bytes {
			largest = t
		}
	}
	r.ok(s.name, "tables", "%d tables of %s are replicated; the largest, %s, has %s", len(list), size(bytes), largest.Name, size(largest.Bytes))
	r.rights(ctx, s, oids)
	r.keys(ctx, s, list, oids)
	r.leftOut(ctx, s, oids)
}

func (r *run) rights(ctx context.Context, s *side, oids []uint32) {
	rows, err := s.conn.Query(ctx, readRights, oids)
	if err != nil {
		r.broke(s.name, "select-privilege", err)
		return
	}
	var unreadable, foreign, secured []replication.TableName
	var n replication.TableName
	var readable, owned, hidden bool
	_, err = pgx.ForEachRow(rows, []any{&n.Schema, &n.Name, &readable, &owned, &hidden}, func() error {
		if !readable {
			unreadable = append(unreadable, n)
		}
		if !owned {
			foreign = append(foreign, n)
		}
		if hidden {
			secured = append(secured, n)
		}
		return nil
	})
	if err != nil {
		r.broke(s.name, "select-privilege", err)
		return
	}
	me := quote(s.user)
	if len(unreadable) > 0 {
		r.fail(s.name, "select-privilege", "as their owner: GRANT USAGE ON SCHEMA … TO "+me+"; GRANT SELECT ON … TO "+me+"; or leave them out by tables.exclude", "role %s may not read %s", s.user, names(unreadable))
	} else {
		r.ok(s.name, "select-privilege", "role %s may read all of them", s.user)
	}
	if len(foreign) > 0 {
		r.fail(s.name, "table-owner", "as their owner: ALTER TABLE … OWNER TO "+me+"; or connect as a member of the owning role; or leave them out by tables.exclude",
			"role %s doesn't own %s: it can neither publish them nor put the write gate on them", s.user, names(foreign))
	} else {
		r.ok(s.name, "table-owner", "role %s owns all of them, or has the owner's rights", s.user)
	}
	if len(secured) > 0 && !s.bypassRLS {
		r.fail(s.name, "row-security", "ALTER ROLE "+me+" BYPASSRLS, or connect as the tables' owner and ALTER TABLE … NO FORCE ROW LEVEL SECURITY, or leave them out by tables.exclude",
			"row security would hide rows of %s from role %s", names(secured), s.user)
	} else {
		r.ok(s.name, "row-security", "row security hides no rows from role %s", s.user)
	}
	unreadableSequences, err := column(ctx, s, `SELECT format('%s.%s', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND `+applicationSchema+` AND NOT (has_sequence_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')) ORDER BY 1`)
	switch {
	case err != nil:
		r.broke(s.name, "sequence-privilege", err)
	case len(unreadableSequences) > 0:
		r.fail(s.name, "sequence-privilege", "as their owner: GRANT SELECT ON SEQUENCE … TO "+me, "role %s may not read the sequences %s", s.user, names(unreadableSequences))
	default:
		r.ok(s.name, "sequence-privilege", "role %s may read all sequences", s.user)
	}
}

// applicationSchema leaves out schemas of the system, the platform and ourselves; it holds for pg_namespace n.
const applicationSchema = `n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'replicator', '_heroku')`

func (r *run) keys(ctx context.Context, s *side, list []replication.Table, oids []uint32) {
	var keyless []replication.TableName
	for _, t := range list {
		if len(t.Key) == 0 {
			keyless = append(keyless, t.Name)
		}
	}
	if len(keyless) > 0 {
		r.warn(s.name, "no-key", "give them a PRIMARY KEY, or a UNIQUE index over NOT NULL columns with REPLICA IDENTITY USING INDEX; or leave them out by tables.exclude",
			"no key identifies a row of %s: while they are replicated they get REPLICA IDENTITY FULL, which makes their updates and deletes slow and writes more WAL", names(keyless))
	} else {
		r.ok(s.name, "no-key", "every table has a key")
	}
	unidentified := slices.DeleteFunc(slices.Clone(list), func(t replication.Table) bool {
		return len(t.Key) > 0 || len(t.Stored()) == len(t.Columns) || s.major() < 18
	})
	if len(unidentified) > 0 {
		list := make([]replication.TableName, len(unidentified))
		for i, t := range unidentified {
			list[i] = t.Name
		}
		r.warn(s.name, "generated-identity", "give them a key without generated columns, or set capture: trigger, or leave them out by tables.exclude",
			"%s have generated columns and no key without them: capture: logical refuses them, since from PostgreSQL 18 on the application could neither update nor delete their rows", names(list))
	}
	deferrable, err := column(ctx, s, `SELECT DISTINCT format('%s.%s (%s)', n.nspname, c.relname, i.relname) FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid
		JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE x.indrelid = ANY ($1::oid[]) AND x.indisunique AND NOT x.indimmediate ORDER BY 1`, oids)
	switch {
	case err != nil:
		r.broke(s.name, "deferrable-key", err)
	case len(deferrable) > 0:
		r.info(s.name, "deferrable-key", "where such a key is the table's only one, add a unique index that isn't deferrable", "deferrable keys can't identify rows: %s", names(deferrable))
	default:
		r.ok(s.name, "deferrable-key", "no key is deferrable")
	}
	excluded, err := column(ctx, s, readForeignKeys, oids)
	switch {
	case err != nil:
		r.broke(s.name, "foreign-key-left-out", err)
	case len(excluded) > 0:
		r.fail(s.name, "foreign-key-left-out", "replicate the referenced tables too, or leave out both", "foreign keys point to tables that aren't replicated, and can't hold on the target: %s", names(excluded))
	default:
		r.ok(s.name, "foreign-key-left-out", "no foreign key points to a table that isn't replicated")
	}
}

// leftOut looks for what no capture carries.
func (r *run) leftOut(ctx context.Context, s *side, oids []uint32) {
	skipped, err := r.Catalog.Unreplicated(ctx, s.conn)
	if err != nil {
		r.broke(s.name, "not-replicated", err)
	} else if len(skipped) > 0 {
		var list []text
		for n, why := range skipped {
			list = append(list, text(n.String()+" ("+why+")"))
		}
		slices.Sort(list)
		r.warn(s.name, "not-replicated", "copy their rows by hand if they matter, or ALTER TABLE … SET LOGGED; or leave them out by tables.exclude", "they are made on the target, but their rows aren't carried: %s", names(list))
	} else {
		r.ok(s.name, "not-replicated", "no unlogged, foreign or extension's table is among them")
	}
	var large int64
	switch err := s.conn.QueryRow(ctx, "SELECT count(*) FROM pg_largeobject_metadata").Scan(&large); {
	case err != nil:
		r.broke(s.name, "large-objects", err)
	case large > 0:
		r.fail(s.name, "large-objects", "move them into bytea columns, and unlink what no row refers to any more (vacuumlo)", "the database has %d large objects, which no stream carries", large)
	default:
		r.ok(s.name, "large-objects", "there are no large objects")
	}
	r.leftBehind(ctx, s, oids)
}

// leftBehind names what the target's operator has to set up: settings and grants aren't part of a schema without owners.
func (r *run) leftBehind(ctx context.Context, s *side, oids []uint32) {
	settings, err := column(ctx, s, `SELECT DISTINCT split_part(c, '=', 1) FROM pg_db_role_setting g, unnest(g.setconfig) c
		WHERE g.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database())) AND g.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user)) ORDER BY 1`)
	switch {
	case err != nil:
		r.broke(s.name, "database-settings", err)
	case len(settings) > 0:
		r.info(s.name, "database-settings", "set those that the application needs on the target by ALTER DATABASE or ALTER ROLE", "settings of the database or role aren't carried over: %s", names(settings))
	default:
		r.ok(s.name, "database-settings", "the database and the role have no settings of their own")
	}
	grantees, err := column(ctx, s, `SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee)::text END
		FROM pg_class c, aclexplode(c.relacl) a WHERE c.oid = ANY ($1::oid[]) AND a.grantee <> c.relowner ORDER BY 1`, oids)
	switch {
	case err != nil:
		r.broke(s.name, "grants", err)
	case len(grantees) > 0:
		r.info(s.name, "grants", "make the roles on the target and GRANT them what they need before the cutover", "owners and grants aren't carried over; these roles have grants on tables: %s", names(grantees))
	default:
		r.ok(s.name, "grants", "no other role has grants on the tables")
	}
}

const readPrepared = `SELECT gid, database::text, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts ORDER BY prepared`

const readLong = `SELECT format('pid %s (%s, %s)', pid, coalesce(nullif(application_name, ''), 'unnamed'), date_trunc('second', clock_timestamp() - xact_start))
FROM pg_stat_activity WHERE xact_start < clock_timestamp() - interval '5 minutes' AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL) AND pid <> pg_backend_pid()
  AND backend_type = 'client backend' ORDER BY xact_start`

// calm looks for what would hold up the beginning: it waits for every transaction that is open.
func (r *run) calm(ctx context.Context, s *side) {
	rows, err := s.conn.Query(ctx, readPrepared)
	var old, young []text
	var gid, database string
	var age float64
	if err == nil {
		_, err = pgx.ForEachRow(rows, []any{&gid, &database, &age}, func() error {
			t := text(fmt.Sprintf("%q in database %s since %s", gid, database, time.Duration(age)*time.Second))
			if age > 60 {
				old = append(old, t)
			} else {
				young = append(young, t)
			}
			return nil
		})
	}
	switch {
	case err != nil:
		r.broke(s.name, "prepared-transactions", err)
	case len(old) > 0:
		r.fail(s.name, "prepared-transactions", "in that database: COMMIT PREPARED or ROLLBACK PREPARED with the name, whichever its owner means", "prepared transactions hold up the beginning for as long as they stand: %s", names(old))
	case len(young) > 0:
		r.info(s.name, "prepared-transactions", "nothing, if they end by themselves", "prepared transactions are open: %s", names(young))
	default:
		r.ok(s.name, "prepared-transactions", "no prepared transaction is open")
	}
	long, err := column(ctx, s, readLong)
	switch {
	case err != nil:
		r.broke(s.name, "long-transactions", err)
	case len(long) > 0:
		r.warn(s.name, "long-transactions", "wait for them, or end them by pg_terminate_backend(pid)", "transactions open for minutes hold up the beginning and the freeze: %s", names(long))
	default:
		r.ok(s.name, "long-transactions", "no transaction has been open for more than 5 minutes")
	}
}

func (r *run) sourceRollback(_ context.Context, s *side) {
	if s.replicaRole {
		r.ok(s.name, "rollback-apply", "role %s may set session_replication_role: the way back can be applied", s.user)
	} else {
		r.info(s.name, "rollback-apply", "nothing has to be done; what is put aside comes back before a rollback opens this side, and at finish",
			"role %s may not set session_replication_role: from the switch on this side's triggers are disabled and its foreign keys dropped while it only follows", s.user)
	}
}

func quote(identifier string) string { return replication.QuoteIdent(identifier) }

// size writes bytes for people.
func size(n int64) string {
	f, units := float64(n), strings.Fields("bytes kB MB GB TB PB")
	i := 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
