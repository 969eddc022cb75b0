package probe

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
)

// Supported major versions.
const (
	oldest = 13
	newest = 18
)

// facts are what one query tells about a server, a database and our role.
type facts struct {
	pid                       int32
	searchPath, floatDigits   string
	number                    int // server_version_num
	version                   string
	recovery                  bool
	user, database            string
	superuser, bypassRLS      bool
	encoding, collate, ctype  string
	system                    int64
	databaseOID               uint32
	started                   time.Time
	maxKeep                   int64 // max_slot_wal_keep_size, MB; -1: no bound
	create                    bool
	free, roleLimit, roleUsed int // connections; a limit of -1 is none
	replicaRole               bool
}

func (f facts) major() int { return f.number / 10000 }

const readFacts = `
SELECT pg_backend_pid(), current_setting('search_path'), current_setting('extra_float_digits'), current_setting('server_version_num')::int,
       current_setting('server_version'), pg_is_in_recovery(), current_user::text, d.datname::text, r.rolsuper, r.rolbypassrls,
       pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text, (SELECT system_identifier FROM pg_control_system()), d.oid,
       pg_postmaster_start_time(), (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), has_database_privilege(d.oid, 'CREATE'),
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
         - (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database)::int,
       CASE WHEN r.rolconnlimit < 0 THEN d.datconnlimit WHEN d.datconnlimit < 0 THEN r.rolconnlimit ELSE least(r.rolconnlimit, d.datconnlimit) END,
       (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user)::int
FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()`

func (s *side) read(ctx context.Context) error {
	if _, err := s.conn.Exec(ctx, "SET statement_timeout = '"+patience+"'"); err != nil {
		return err
	}
	f := &s.facts
	err := s.conn.QueryRow(ctx, readFacts).Scan(&f.pid, &f.searchPath, &f.floatDigits, &f.number, &f.version, &f.recovery, &f.user, &f.database,
		&f.superuser, &f.bypassRLS, &f.encoding, &f.collate, &f.ctype, &f.system, &f.databaseOID, &f.started,
		&f.maxKeep, &f.create, &f.free, &f.roleLimit, &f.roleUsed)
	if err != nil {
		return fmt.Errorf("read the server's facts: %w", err)
	}
	f.bypassRLS = f.bypassRLS || f.superuser
	f.replicaRole, err = replicaRole(ctx, s.conn)
	return err
}

// replicaRole tries whether the role may set session_replication_role; the transaction is rolled back.
func replicaRole(ctx context.Context, conn *pgx.Conn) (bool, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("try session_replication_role: %w", err)
	}
	_, err = tx.Exec(ctx, "SET LOCAL session_replication_role = replica")
	if rerr := tx.Rollback(ctx); rerr != nil {
		return false, fmt.Errorf("try session_replication_role: %w", rerr)
	}
	if err != nil && postgres.Code(err) != postgres.CodeInsufficientPriv {
		return false, fmt.Errorf("try session_replication_role: %w", err)
	}
	return err == nil, nil
}

// server looks at what matters on either side.
func (r *run) server(ctx context.Context, s *side) {
	if m := s.major(); m < oldest || m > newest {
		r.fail(s.name, "version", fmt.Sprintf("use a server of version %d to %d: upgrade it, or take a newer release of replicator", oldest, newest), "PostgreSQL %s isn't supported", s.version)
	} else {
		r.ok(s.name, "version", "PostgreSQL %d is supported", m)
	}
	if s.recovery {
		r.fail(s.name, "in-recovery", "use the primary's URL, or promote this server", "the server is a standby: it takes no writes")
	} else {
		r.ok(s.name, "in-recovery", "the server is a primary")
	}
	if s.create {
		r.ok(s.name, "create-privilege", "role %s may create schemas in database %s", s.user, s.database)
	} else {
		r.fail(s.name, "create-privilege", fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", quote(s.database), quote(s.user)), "role %s may not create a schema in database %s", s.user, s.database)
	}
	need := r.Connections
	if need == 0 {
		need = 10
	}
	free := s.free
	if s.roleLimit >= 0 {
		free = min(free, s.roleLimit-s.roleUsed)
	}
	switch {
	case free < 4:
		r.fail(s.name, "connections", "raise max_connections or the role's CONNECTION LIMIT, take a larger plan, or stop clients", "only %d connections are free; %d are needed at times", free, need)
	case free < need:
		r.warn(s.name, "connections", "raise max_connections or the role's CONNECTION LIMIT, or lower the number of copy workers", "only %d connections are free; %d are needed at times", free, need)
	default:
		r.ok(s.name, "connections", "%d connections are free, %d are needed at times", free, need)
	}
}
