package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/replication"
)

// place is a position of this kind of source: what a snapshot of one server saw. It is stored as a JSON document.
type place struct {
	// Snapshot is what the destination has: the effects of every transaction that it sees.
	Snapshot string `json:"snapshot"`
	// System and Timeline name the server's history; System is empty where it can't be read.
	System   string `json:"system,omitempty"`
	Timeline uint32 `json:"timeline"`
	// Witness names the row, of the one session that took the snapshot, whose Beat counts that session's commits, each flushed after its snapshot was
	// taken. A server without the row, or whose count is lower, has lost commits. Nobody else counts there, so no other's commits after a loss can
	// make up for it. Empty in positions of earlier versions, which counted all sessions' commits together.
	Witness string `json:"witness,omitempty"`
	Beat    int64  `json:"beat"`
	// At is the time of the snapshot by the server's clock.
	At time.Time `json:"at"`

	seen replication.Snapshot
}

func parsePlace(p replication.Position) (place, error) {
	var out place
	if err := json.Unmarshal([]byte(p), &out); err != nil {
		return out, fmt.Errorf("parse position %q of trigger capture: %w", p, err)
	}
	var err error
	out.seen, err = replication.ParseSnapshot(out.Snapshot)
	return out, err
}

func (p place) position() replication.Position {
	p.Snapshot = p.seen.String()
	b, _ := json.Marshal(p) // strings and numbers only
	return replication.Position(b)
}

// Sees tells whether what transaction xid did lies before p.
func Sees(p replication.Position, xid uint64) (bool, error) {
	at, err := parsePlace(p)
	return err == nil && at.seen.Sees(xid), err
}

// covers tells whether a sees everything that b sees. Snapshots of one server are ordered, so one of them always covers the other.
func covers(a, b replication.Snapshot) bool {
	if b.Xmax > a.Xmax {
		return false // the transaction before xmax has ended: b sees it
	}
	for _, x := range a.Xip {
		if b.Sees(x) {
			return false
		}
	}
	return true
}

const placeSQL = `
SELECT pg_current_snapshot()::text, ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint, clock_timestamp()`

// witnessSQL counts a session's first commit, unless the log was given up (Relieve). What a snapshot saw was written to the log before; so once this is flushed, that is too.
const witnessSQL = `INSERT INTO replicator.witness (migration, pair, beat) SELECT %s, %s, 1 FROM replicator.capture WHERE id = 1 AND beat > ` + givenUp + ` RETURNING beat, id::text, n`

// beatSQL counts another one, likewise.
const beatSQL = `UPDATE replicator.witness SET beat = beat + 1 WHERE id = '%s' AND EXISTS (SELECT FROM replicator.capture WHERE id = 1 AND beat > ` + givenUp + `) RETURNING beat`

func witness(id postgres.Identity) string {
	return fmt.Sprintf(witnessSQL, replication.QuoteLiteral(id.Migration), replication.QuoteLiteral(id.Pair))
}

// querier is what a pgx connection, transaction or pool offers.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Begin returns the position of now: a stream from there carries every transaction that hasn't committed yet. Install must have
// returned before.
func Begin(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity) (replication.Position, error) {
	// One session, so that both are of one server.
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return "", fmt.Errorf("begin the capture: %w", err)
	}
	defer conn.Release()
	p, err := now(ctx, conn)
	if err != nil {
		return "", err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
			return err
		}
		return tx.QueryRow(ctx, witness(id)).Scan(&p.Beat, &p.Witness, nil)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return "", lost()
	}
	if err != nil {
		return "", fmt.Errorf("begin the capture: %w", err)
	}
	return p.position(), nil
}

// Here returns the server's place now; everything that had committed before lies before it. For Reached only: no stream can begin there.
func Here(ctx context.Context, q querier) (replication.Position, error) {
	p, err := now(ctx, q)
	if err != nil {
		return "", err
	}
	return p.position(), nil
}

func now(ctx context.Context, q querier) (place, error) {
	var p place
	var timeline int64
	err := q.QueryRow(ctx, placeSQL).Scan(&p.Snapshot, &timeline, &p.At)
	if err != nil {
		return p, fmt.Errorf("read the server's place: %w", err)
	}
	p.Timeline = uint32(timeline)
	if p.seen, err = replication.ParseSnapshot(p.Snapshot); err != nil {
		return p, err
	}
	p.System = system(ctx, q)
	return p, nil
}

// system is the server's identifier, empty where the role may not read it.
func system(ctx context.Context, q querier) string {
	var s string
	if err := q.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&s); err != nil {
		return ""
	}
	return s
}

// Observation is what a look at a capture from outside shows.
type Observation struct {
	// Position is the server's place now; everything that had committed before lies before it. For Reached only: no stream can begin there.
	Position replication.Position
	// At is the server's clock.
	At time.Time
	// Bytes is the size of the change log with its indexes.
	Bytes int64
	// Oldest is who holds the log back longest, nil if nobody does.
	Oldest *Holder
}

// Holder is a session or a prepared transaction that keeps the log from being emptied: it has written to it, or may, or has a log table locked.
type Holder struct {
	// ID is its pid or its name as a prepared transaction; Who describes it.
	ID, Who string
	// Age is how long its transaction has been open.
	Age time.Duration
	// Query is its current or last statement as it was sent, literals and all; empty for a prepared transaction, or where the role may not see it.
	Query string
	// Prepared is a prepared transaction's name, empty for a session.
	Prepared string
}

const sizeSQL = `
SELECT coalesce(sum(pg_table_size(c.oid) + pg_indexes_size(c.oid)), 0)::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'replicator' AND c.relkind = 'r' AND c.relname ~ '^capture_[0-9]+_[01]$'`

// oldestSQL finds the oldest that may have written to the log. Our own sessions and vacuums don't. $1 are those that
// hold the log by a lock alone.
const oldestSQL = `
SELECT id, who, extract(epoch FROM age)::float8, query, prepared FROM (
  SELECT ` + sessionSQL + `, '' AS prepared
  FROM pg_stat_activity a WHERE datname = current_database() AND pid <> pg_backend_pid() AND (backend_xid IS NOT NULL OR pid = ANY ($1::int[]))
  UNION ALL
  SELECT 'prepared ' || gid, 'prepared transaction ' || quote_literal(gid) || ' of ' || owner, clock_timestamp() - prepared, '', gid FROM pg_prepared_xacts WHERE database = current_database()
) x WHERE age IS NOT NULL ORDER BY age DESC LIMIT 1`

const sessionSQL = `'pid ' || pid AS id, 'pid ' || pid || ' (' || coalesce(nullif(application_name, ''), 'no name') || ', user ' || coalesce(usename::text, '?') || ', ' || coalesce(state, '?') || ')' AS who,
         clock_timestamp() - xact_start AS age, coalesce(nullif(query, '<insufficient privilege>'), '') AS query`

// lockersSQL finds sessions that have log tables locked and have written nothing, as pg_dump has: the tables can't be emptied beside them either. Our
// own windows read them, and end by themselves.
const lockersSQL = `
SELECT DISTINCT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND n.nspname = 'replicator' AND c.relname ~ '^capture_[0-9]+_[01]$' AND a.backend_xid IS NULL AND NOT starts_with(a.application_name, 'replicator/')`

// readersSQL tells whether to look at the locks, which isn't for nothing where there are many: only if somebody has read for a while.
const readersSQL = `
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' AND backend_xid IS NULL AND xact_start < clock_timestamp() - interval '2 seconds'
  AND NOT starts_with(application_name, 'replicator/'))`

// Observe looks at the capture of the pool's database: how large its log is, and what holds it back.
func Observe(ctx context.Context, pool *pgxpool.Pool) (Observation, error) {
	var o Observation
	p, err := now(ctx, pool)
	if err != nil {
		return o, err
	}
	o.Position, o.At = p.position(), p.At
	if err := pool.QueryRow(ctx, sizeSQL).Scan(&o.Bytes); err != nil {
		return o, fmt.Errorf("measure the change log: %w", err)
	}
	o.Oldest, err = oldest(ctx, pool)
	return o, err
}

func oldest(ctx context.Context, q querier) (*Holder, error) {
	var readers bool
	if err := q.QueryRow(ctx, readersSQL).Scan(&readers); err != nil {
		return nil, fmt.Errorf("look for old transactions: %w", err)
	}
	pids := []int32{}
	if readers {
		rows, err := q.Query(ctx, lockersSQL)
		if err != nil {
			return nil, fmt.Errorf("look for locks on the change log: %w", err)
		}
		if pids, err = pgx.CollectRows(rows, pgx.RowTo[int32]); err != nil {
			return nil, fmt.Errorf("look for locks on the change log: %w", err)
		}
	}
	var h Holder
	var age float64
	err := q.QueryRow(ctx, oldestSQL, pids).Scan(&h.ID, &h.Who, &age, &h.Query, &h.Prepared)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for old transactions: %w", err)
	}
	h.Age = time.Duration(age * float64(time.Second))
	return &h, nil
}
