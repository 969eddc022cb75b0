package snapshot

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/replication"
)

const holdersSQL = `
SELECT 'pid ' || pid || ' (' || coalesce(nullif(application_name, ''), 'no name') || ', ' || coalesce(usename, '?') || ', ' || coalesce(state, '?') ||
       ', open for ' || coalesce(date_trunc('second', clock_timestamp() - xact_start)::text, '?') || ')'
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND mod(($1::numeric - backend_xid::text::numeric + 8589934592), 4294967296) BETWEEN 1 AND 2147483647
UNION ALL
SELECT 'prepared transaction ' || quote_literal(gid) || ' of ' || owner || ', since ' || date_trunc('second', prepared) FROM pg_prepared_xacts
LIMIT 5`

// Horizon waits until every transaction that was open when it was called has ended: what those had changed before the capture was in
// place, no stream will ever carry. It returns the transaction id from which on snapshots are good: a snapshot whose xmin is
// at least that misses none of them. waiting hears of who holds it up.
func Horizon(ctx context.Context, conn *pgx.Conn, waiting func(string)) (uint64, error) {
	// A snapshot's own xmax would not do: it is the id after the latest that has ended, and transactions beyond it may be open. An id
	// that is given out now is above those of all that are.
	var now uint64
	if err := conn.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&now); err != nil {
		return 0, fmt.Errorf("read the current transaction id: %w", err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for {
		s, err := current(ctx, conn)
		if err != nil {
			return 0, err
		}
		if s.Xmin > now {
			if waiting != nil {
				waiting("")
			}
			return now + 1, nil
		}
		if waiting != nil && time.Since(began) > 2*time.Second {
			rows, err := conn.Query(ctx, holdersSQL, fmt.Sprint(now))
			if err != nil {
				return 0, fmt.Errorf("look for open transactions: %w", err)
			}
			holders, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return 0, fmt.Errorf("look for open transactions: %w", err)
			}
			waiting("the copy waits for transactions that began before the capture was in place: " + strings.Join(holders, "; "))
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

func current(ctx context.Context, conn *pgx.Conn) (replication.Snapshot, error) {
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
		return replication.Snapshot{}, fmt.Errorf("read the current snapshot: %w", err)
	}
	return replication.ParseSnapshot(text)
}
