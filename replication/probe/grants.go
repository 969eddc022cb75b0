package probe

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
)

// Grants is what a side allows of logical capture. `check` and a pair that begins judge by it alike.
type Grants struct {
	User, WALLevel               string
	Replication                  bool
	Slots, MaxSlots              int // those in use, our own slot apart
	Senders, MaxSenders          int // those in use, our own sessions apart
	CreatePublications, Managing bool
	// Foreign are tables that are to be published and aren't the role's.
	Foreign []replication.TableName
	// Unidentified are tables that couldn't be updated or deleted from while they are published: from PostgreSQL 18 on a replica identity must
	// have no generated column, and they have no key without one.
	Unidentified []replication.TableName
}

// readGrants: the membership is how RDS grants replication. What is ours already, $1 and $2, doesn't take anybody's place.
const readGrants = `
SELECT r.rolname::text, current_setting('wal_level'),
       r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(current_user, g.oid, 'USAGE')),
       (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1)::int, current_setting('max_replication_slots')::int,
       (SELECT count(*) FROM pg_stat_get_wal_senders() w LEFT JOIN pg_stat_activity a ON a.pid = w.pid WHERE NOT starts_with(coalesce(a.application_name, ''), $2))::int,
       current_setting('max_wal_senders')::int,
       has_database_privilege(current_database(), 'CREATE'),
       EXISTS (SELECT FROM pg_roles WHERE rolname = 'rds_replication'),
       current_setting('server_version_num')::int >= 180000
FROM pg_roles r WHERE r.rolname = current_user`

const readForeign = `
SELECT n.nspname, c.relname FROM unnest($1::oid[]) o JOIN pg_class c ON c.oid = o JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1, 2`

// Querier is what a pgx connection or pool offers.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// ReadGrants looks at what a server grants the role for a slot of the given name and a publication of the tables.
func ReadGrants(ctx context.Context, q Querier, id postgres.Identity, slot string, tables []replication.Table) (Grants, error) {
	var g Grants
	var strict bool
	err := q.QueryRow(ctx, readGrants, slot, id.PairPrefix()).Scan(&g.User, &g.WALLevel, &g.Replication, &g.Slots, &g.MaxSlots, &g.Senders, &g.MaxSenders, &g.CreatePublications, &g.Managing, &strict)
	if err != nil {
		return g, fmt.Errorf("look for the right to replicate: %w", err)
	}
	oids := make([]uint32, len(tables))
	for i, t := range tables {
		oids[i] = t.OID
		if strict && len(t.Stored()) < len(t.Columns) && len(t.Key) == 0 && t.ReplicaIdentity != replication.IdentityIndex {
			g.Unidentified = append(g.Unidentified, t.Name)
		}
	}
	rows, err := q.Query(ctx, readForeign, oids)
	if err != nil {
		return g, fmt.Errorf("look for the tables' owners: %w", err)
	}
	if g.Foreign, err = pgx.CollectRows(rows, pgx.RowToStructByPos[replication.TableName]); err != nil {
		return g, fmt.Errorf("look for the tables' owners: %w", err)
	}
	return g, nil
}

// Obstacles are why the side can't be captured logically, each with what would mend it; none if it can.
func (g Grants) Obstacles() []preflight.Finding {
	var out []preflight.Finding
	add := func(code, hint, format string, args ...any) {
		out = append(out, preflight.Finding{Code: code, Severity: preflight.Error, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	me := quote(g.User)
	if !g.Replication {
		hint := "a superuser can: ALTER ROLE " + me + " REPLICATION (RDS: GRANT rds_replication TO …); Heroku doesn't allow it"
		if g.Managing {
			hint = "GRANT rds_replication TO " + me
		}
		add("replication-privilege", hint, "the role has no REPLICATION attribute")
	}
	if g.WALLevel != "logical" {
		add("wal-level", "set wal_level = logical and restart the server (RDS: rds.logical_replication = 1)", "wal_level is %s", g.WALLevel)
	}
	if g.MaxSlots-g.Slots < 1 {
		add("slot", "raise max_replication_slots and restart the server, or drop a slot that is no longer used", "all %d replication slots are taken", g.MaxSlots)
	}
	if g.MaxSenders-g.Senders < 1 {
		add("walsenders", "raise max_wal_senders and restart the server, or end a replica", "all %d walsenders are in use", g.MaxSenders)
	}
	switch {
	case !g.CreatePublications:
		add("publication-privilege", "GRANT CREATE ON DATABASE … TO "+me, "the role may not create publications in the database")
	case len(g.Foreign) > 0:
		add("publication-privilege", "as their owner: ALTER TABLE … OWNER TO "+me+"; or connect as a member of the owning role; or leave them out by tables.exclude",
			"the role may not publish tables that it doesn't own: %s", names(g.Foreign))
	}
	if len(g.Unidentified) > 0 {
		add("generated-identity", "give them a primary key, or a unique index over NOT NULL columns, that aren't generated; or leave them out by tables.exclude",
			"tables have generated columns and no key without them, and could neither be updated nor deleted from while they are published: %s", names(g.Unidentified))
	}
	return out
}

// Choose says which capture a side gets and why: the configured one, or, for auto, logical where nothing stands against it, else trigger. What
// may be short for a while only, a slot or a walsender, counts like the rest: a pair doesn't wait for what may never come, and whoever wants
// logical capture and nothing else configures it and gets an error. slot is an existing slot to adopt, which only logical capture can read.
func Choose(configured, slot, side string, obstacles []preflight.Finding) (capture, reason string) {
	switch {
	case configured != "" && configured != "auto":
		return configured, Configured
	case slot != "":
		return "logical", "the slot to adopt is to be read"
	case len(obstacles) == 0:
		return "logical", Reason(side, nil)
	default:
		return "trigger", Reason(side, obstacles)
	}
}

// Reason says in one line why logical capture was taken, or wasn't. `check`, status and log say it in the same words.
func Reason(side string, obstacles []preflight.Finding) string {
	if len(obstacles) == 0 {
		return "the " + side + " grants logical replication"
	}
	var list []string
	for _, o := range obstacles {
		list = append(list, o.Message)
	}
	return "no logical replication: " + strings.Join(list, "; ")
}

// Configured is the reason of a capture that wasn't chosen.
const Configured = "configured"
