package logical

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// querier is what a pgx connection, transaction or pool offers.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Slot is what the server says of a replication slot (pg_replication_slots).
type Slot struct {
	Name      string
	Active    bool
	ActivePID int32
	// Confirmed is the LSN up to which the server may have forgotten changes.
	Confirmed uint64
	// Status is wal_status: reserved, extended, unreserved or lost.
	Status string
	// Retained is the write-ahead log held back for the slot, in bytes.
	Retained int64
}

const slotSQL = `
SELECT slot_name::text, active, coalesce(active_pid, 0),
       coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(wal_status, ''),
       coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint
FROM pg_replication_slots WHERE slot_name = $1`

// ReadSlot returns the slot of that name, nil if there is none.
func ReadSlot(ctx context.Context, q querier, name string) (*Slot, error) {
	var s Slot
	var lsn string
	err := q.QueryRow(ctx, slotSQL, name).Scan(&s.Name, &s.Active, &s.ActivePID, &lsn, &s.Status, &s.Retained)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read slot %q: %w", name, err)
	}
	l, err := pglogrepl.ParseLSN(lsn)
	if err != nil {
		return nil, fmt.Errorf("read slot %q: %w", name, err)
	}
	s.Confirmed = uint64(l)
	return &s, nil
}

// CheckSlot tells whether streaming from a stored position loses nothing: the slot exists, is not invalidated, and has not been moved
// beyond the position by anybody else.
func CheckSlot(ctx context.Context, q querier, name string, stored uint64) error {
	s, err := ReadSlot(ctx, q, name)
	if err != nil {
		return err
	}
	resync := "no change may be skipped, so this pair stays stopped: run `replicator resync` for the pair to copy its tables again under a new slot"
	switch {
	case s == nil:
		return retry.Stop(&preflight.Hinted{Code: "slot-missing", Err: fmt.Errorf("replication slot %q is gone", name), Hint: resync})
	case s.Status == "lost":
		return retry.Stop(&preflight.Hinted{Code: "slot-lost", Err: fmt.Errorf("replication slot %q was invalidated (max_slot_wal_keep_size was exceeded, or the server dropped the write-ahead log)", name),
			Hint: "raise max_slot_wal_keep_size on the source; " + resync})
	case s.Confirmed > stored:
		return retry.Stop(&preflight.Hinted{Code: "slot-ahead", Err: fmt.Errorf("replication slot %q stands at %s, beyond %s, up to which the destination has everything: something else has read from it", name, pglogrepl.LSN(s.Confirmed), pglogrepl.LSN(stored)),
			Hint: resync})
	}
	return nil
}

// CreateSlot makes the slot and returns its consistent point. Every transaction that commits after it is streamed whole. The server
// waits until all transactions that are open now have ended; waiting hears of who they are every two seconds, and ctx bounds the wait.
func CreateSlot(ctx context.Context, url string, id postgres.Identity, q querier, name string, waiting func(string)) (uint64, error) {
	conn, err := postgres.ConnectReplication(ctx, url, id, "slot")
	if err != nil {
		return 0, err
	}
	defer closeQuietly(ctx, conn)
	stop := watchHolders(ctx, q, conn.PID(), waiting)
	defer stop()
	r, err := pglogrepl.CreateReplicationSlot(ctx, conn, name, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication, SnapshotAction: "NOEXPORT_SNAPSHOT"})
	if err != nil {
		return 0, fmt.Errorf("create replication slot %q: %w", name, err)
	}
	lsn, err := pglogrepl.ParseLSN(r.ConsistentPoint)
	if err != nil {
		return 0, fmt.Errorf("create replication slot %q: %w", name, err)
	}
	return uint64(lsn), nil
}

// Exported is a snapshot that sees exactly the transactions that commit before LSN, until Close.
type Exported struct {
	Snapshot string
	LSN      uint64
	conn     *pgconn.PgConn
}

// Close lets go of the snapshot and of the temporary slot that made it.
func (e *Exported) Close(ctx context.Context) { closeQuietly(ctx, e.conn) }

// ExportSnapshot makes a temporary slot for the snapshot that it exports ("CREATE_REPLICATION_SLOT … EXPORT_SNAPSHOT"): the one kind
// of snapshot whose place in the stream is known exactly. It waits as CreateSlot does. The slot's name is made of the prefix and the
// session's number, since the slot of an earlier session goes a moment after that session has ended.
func ExportSnapshot(ctx context.Context, url string, id postgres.Identity, q querier, prefix string, waiting func(string)) (*Exported, error) {
	conn, err := postgres.ConnectReplication(ctx, url, id, "snapshot")
	if err != nil {
		return nil, err
	}
	suffix := fmt.Sprintf("_%d", conn.PID())
	name := prefix[:min(len(prefix), 63-len(suffix))] + suffix
	stop := watchHolders(ctx, q, conn.PID(), waiting)
	defer stop()
	r, err := pglogrepl.CreateReplicationSlot(ctx, conn, name, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Temporary: true, Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT"})
	if err != nil {
		closeQuietly(ctx, conn)
		return nil, fmt.Errorf("export a snapshot by temporary slot %q: %w", name, err)
	}
	lsn, err := pglogrepl.ParseLSN(r.ConsistentPoint)
	if err != nil {
		closeQuietly(ctx, conn)
		return nil, fmt.Errorf("export a snapshot by temporary slot %q: %w", name, err)
	}
	return &Exported{Snapshot: r.SnapshotName, LSN: uint64(lsn), conn: conn}, nil
}

// closeQuietly ends a session whose work is done; there is nobody to tell if that fails.
func closeQuietly(ctx context.Context, conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

const holdersSQL = `
SELECT 'pid ' || a.pid || ' (' || coalesce(nullif(a.application_name, ''), 'no name') || ', ' || coalesce(a.usename, '?') || ', ' || coalesce(a.state, '?') ||
       ', open for ' || coalesce(date_trunc('second', clock_timestamp() - a.xact_start)::text, '?') || ')'
FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids($1)) AND a.pid <> 0
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid) || ' of ' || owner || ', since ' || date_trunc('second', prepared)
FROM pg_prepared_xacts WHERE 0 = ANY (pg_blocking_pids($1)) AND database = current_database()
LIMIT 5`

// watchHolders says every two seconds which transactions the session pid waits for, until stop is called.
func watchHolders(ctx context.Context, q querier, pid uint32, waiting func(string)) (stop func()) {
	if waiting == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			rows, err := q.Query(ctx, holdersSQL, int32(pid))
			if err != nil {
				continue
			}
			if holders, err := pgx.CollectRows(rows, pgx.RowTo[string]); err == nil && len(holders) > 0 {
				waiting(fmt.Sprintf("a replication slot waits for %d transaction(s) to end: %s", len(holders), joined(holders)))
			}
		}
	}()
	return func() { cancel(); <-done; waiting("") }
}

func joined(s []string) string {
	out := ""
	for i, x := range s {
		if i > 0 {
			out += "; "
		}
		out += x
	}
	return out
}

// DropSlot removes the slot; one that does not exist is fine. A slot in use by a session of ours that is just ending is waited for.
func DropSlot(ctx context.Context, q querier, name string) error {
	return retry.Do(ctx, retry.Policy{Attempts: 20}, func(ctx context.Context) error {
		_, err := q.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, name)
		switch postgres.Code(err) {
		case "", postgres.CodeUndefinedObject:
			if err == nil || postgres.Code(err) == postgres.CodeUndefinedObject {
				return nil
			}
		case postgres.CodeObjectInUse:
			_, _ = q.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid
				WHERE slot_name = $1 AND a.application_name LIKE 'replicator/%'`, name)
			return fmt.Errorf("drop replication slot %q: %w", name, err)
		}
		return retry.Stop(fmt.Errorf("drop replication slot %q: %w", name, err))
	})
}
