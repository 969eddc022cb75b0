package probe

import (
	"context"
	"strings"
)

// readOccupants lists what the application's schemas of the target hold that isn't an extension's.
const readOccupants = `
SELECT kind || ' ' || name FROM (
  SELECT CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'type' ELSE 'table' END AS kind,
         n.nspname || '.' || c.relname AS name
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND c.relpersistence <> 't' AND ` + applicationSchema + `
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
  UNION ALL
  SELECT 'function', n.nspname || '.' || p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  WHERE ` + applicationSchema + ` AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
  UNION ALL
  SELECT 'type', n.nspname || '.' || t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
  WHERE t.typtype IN ('e', 'd', 'r') AND ` + applicationSchema + ` AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
) o ORDER BY 1`

// target looks whether the target can be built.
func (r *run) target(ctx context.Context, s *side) {
	r.occupants(ctx, s)
	if s.replicaRole {
		r.ok(s.name, "session-replication-role", "role %s may set session_replication_role", s.user)
	} else {
		r.fail(s.name, "session-replication-role", "connect as the RDS master user, or let a superuser GRANT SET ON PARAMETER session_replication_role TO "+quote(s.user)+" (from version 15 on)",
			"role %s may not set session_replication_role: the application's triggers would fire again for what they did on the source", s.user)
	}
	var public, usable bool
	switch err := s.conn.QueryRow(ctx, `SELECT to_regnamespace('public') IS NOT NULL, coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'USAGE'), false)
		AND coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'CREATE'), false)`).Scan(&public, &usable); {
	case err != nil:
		r.broke(s.name, "schema-public", err)
	case !public:
		r.fail(s.name, "schema-public", "CREATE SCHEMA public", "the target has no schema public")
	case !usable:
		r.fail(s.name, "schema-public", "GRANT ALL ON SCHEMA public TO "+quote(s.user)+", or make it the database's owner", "role %s may not create tables in schema public", s.user)
	default:
		r.ok(s.name, "schema-public", "role %s may create tables in schema public", s.user)
	}
	r.targetSettings(ctx, s)
}

// foreignState tells whether schema replicator is there and isn't this migration's. An earlier run of this one that died before it had
// made anything else leaves the schema behind, with no other name in it.
func (r *run) foreignState(ctx context.Context, s *side) (foreign bool, err error) {
	var schema, table bool
	if err := s.conn.QueryRow(ctx, "SELECT to_regnamespace('replicator') IS NOT NULL, to_regclass('replicator.migration') IS NOT NULL").Scan(&schema, &table); err != nil {
		return false, err
	}
	if !schema || !table {
		return schema, nil
	}
	err = s.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM replicator.migration WHERE name <> $1)", r.ID.Migration).Scan(&foreign)
	return foreign, err
}

func (r *run) occupants(ctx context.Context, s *side) {
	if r.Resuming {
		r.ok(s.name, "target-empty", "the migration has begun: the target holds its tables")
		return
	}
	switch foreign, err := r.foreignState(ctx, s); {
	case err != nil:
		r.broke(s.name, "target-empty", err)
		return
	case foreign:
		r.fail(s.name, "target-state", "end that migration with replicator finish, or, if it is to be forgotten, DROP SCHEMA replicator CASCADE and empty the database", "the target holds the state of another migration in schema replicator")
	default:
		r.ok(s.name, "target-state", "the target holds no state of another migration")
	}
	list, err := column(ctx, s, readOccupants)
	loaded := r.Copy == "none"
	switch {
	case err != nil:
		r.broke(s.name, "target-empty", err)
	case loaded && len(list) == 0:
		r.fail(s.name, "target-empty", "load the target to the slot's position, or set copy to full", "with copy: none the target must have been loaded, but it is empty")
	case loaded:
		r.ok(s.name, "target-empty", "the target has been loaded by other means")
	case len(list) > 0:
		r.fail(s.name, "target-empty", "give an empty database, or drop what is in this one (DROP SCHEMA … CASCADE; CREATE SCHEMA public)", "the target isn't empty: %s", names(list))
	default:
		r.ok(s.name, "target-empty", "the target is empty")
	}
}

// targetSettings names settings that make a copy slow. They are the operator's to choose.
func (r *run) targetSettings(ctx context.Context, s *side) {
	low, err := column(ctx, s, `SELECT name || ' = ' || current_setting(name) FROM pg_settings
		WHERE name = 'maintenance_work_mem' AND setting::bigint < 262144 OR name = 'max_wal_size' AND setting::bigint < 4096 OR name = 'fsync' AND setting = 'off'
		   OR name = 'full_page_writes' AND setting = 'off' ORDER BY 1`)
	switch {
	case err != nil:
		r.broke(s.name, "target-settings", err)
	case len(low) > 0:
		r.info(s.name, "target-settings", "for the time of the copy: maintenance_work_mem of 256 MB or more, max_wal_size of 4 GB or more; fsync and full_page_writes on, always, where data matters",
			"settings that make the copy slow or unsafe: %s", names(low))
	default:
		r.ok(s.name, "target-settings", "memory and WAL settings suit a copy")
	}
}

// targetRollback says by which capture the target's changes would go back after the cutover. A pair chooses it anew then, as for auto.
func (r *run) targetRollback(s *side) {
	obstacles := s.grants.Obstacles()
	if len(obstacles) == 0 {
		r.ok(s.name, "rollback-capture", "rollback is possible: after the cutover the target's changes are captured by %s, because: %s", captureWords["logical"], Reason(s.name, nil))
		return
	}
	var remedies []string
	for _, o := range obstacles {
		remedies = append(remedies, o.Hint)
	}
	r.info(s.name, "rollback-capture", "nothing has to be done; who would rather have logical capture on the way back: "+strings.Join(remedies, "; "),
		"rollback is possible: after the cutover the target's changes are captured by %s, because: %s", captureWords["trigger"], Reason(s.name, obstacles))
}
