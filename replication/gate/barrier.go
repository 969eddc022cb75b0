package gate

import (
	"context"
	"fmt"
	"strings"
	"time"

	"replicator/internal/retry"
)

// Holder is a transaction that had written to a gated table before the gate was armed and has not ended.
type Holder struct {
	PID         int32  // 0: a prepared transaction
	Prepared    string // its global identifier
	User        string
	Application string
	State       string // pg_stat_activity.state
	Age         time.Duration
	Tables      []string

	virtual string
}

// String describes the holder without showing its query, which may contain data.
func (h Holder) String() string {
	where := strings.Join(h.Tables, ", ")
	if h.PID == 0 {
		return fmt.Sprintf("prepared transaction %q of user %q, %v old, on %s", h.Prepared, h.User, h.Age.Round(time.Millisecond), where)
	}
	return fmt.Sprintf("pid %d, user %q, application %q, %s, transaction %v old, on %s",
		h.PID, h.User, h.Application, h.State, h.Age.Round(time.Millisecond), where)
}

// BlockedError says which transactions kept Barrier waiting until its context ended.
type BlockedError struct {
	Holders []Holder
	Cause   error
}

func (e *BlockedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d transaction(s) that wrote before the freeze have not ended: ", len(e.Holders))
	for i, h := range e.Holders {
		if i == 5 {
			fmt.Fprintf(&b, "; and %d more", len(e.Holders)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(h.String())
	}
	b.WriteString(": end them (SELECT pg_terminate_backend(pid); a prepared one: COMMIT PREPARED or ROLLBACK PREPARED), then try again")
	return b.String()
}

// Unwrap returns the context's error.
func (e *BlockedError) Unwrap() error { return e.Cause }

// holdersSQL lists who holds a lock under which a write may be going on. A lock's mode counts by itself, not by its strength: INSERT,
// UPDATE, DELETE and COPY always take ROW EXCLUSIVE (3rd), TRUNCATE ACCESS EXCLUSIVE. SHARE UPDATE EXCLUSIVE and SHARE are left out: they
// are VACUUM, ANALYZE and CREATE INDEX, which change no rows and can run for hours; a transaction that also writes is
// found by its other lock. pg_locks shows fast-path locks and those of prepared transactions (pid NULL; they also hold
// a lock on their own transaction id, which leads to the name). Sessions of our own pass the gate by token or replica role, so they are no reason to wait; the name alone isn't
// trusted, the role must be ours too.
const holdersSQL = `
WITH locks AS MATERIALIZED (
  SELECT locktype, database, relation, transactionid, virtualtransaction, pid, mode, granted FROM pg_catalog.pg_locks),
held AS MATERIALIZED (
  SELECT l.pid, l.virtualtransaction AS virtual, l.relation
  FROM locks l
  WHERE l.locktype = 'relation' AND l.granted
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
    AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
SELECT coalesce(h.pid, 0), h.virtual, coalesce(max(x.gid), ''),
       coalesce(max(a.usename::text), max(x.owner::text), ''), coalesce(max(a.application_name), ''), coalesce(max(a.state), 'state unknown'),
       coalesce(extract(epoch FROM pg_catalog.clock_timestamp() - coalesce(max(a.xact_start), max(x.prepared))), 0)::float8,
       array_agg(DISTINCT n.nspname || '.' || c.relname)
FROM held h
JOIN pg_catalog.pg_class c ON c.oid = h.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = h.pid
LEFT JOIN locks xl ON h.pid IS NULL AND xl.pid IS NULL AND xl.locktype = 'transactionid' AND xl.virtualtransaction = h.virtual
LEFT JOIN pg_catalog.pg_prepared_xacts x ON x.transaction = xl.transactionid
WHERE EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
              JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
              WHERE t.tgrelid = h.relation AND pn.nspname = 'replicator' AND p.proname = 'gate')
  AND h.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
  AND NOT coalesce(a.application_name LIKE 'replicator/%' AND a.usename = current_user, false)
GROUP BY h.pid, h.virtual
ORDER BY 7 DESC`

func (g *Gate) holders(ctx context.Context) ([]Holder, error) {
	rows, err := g.pool.Query(ctx, holdersSQL)
	if err != nil {
		return nil, fmt.Errorf("read pg_locks: %w", err)
	}
	defer rows.Close()
	var out []Holder
	for rows.Next() {
		var h Holder
		var age float64
		if err := rows.Scan(&h.PID, &h.virtual, &h.Prepared, &h.User, &h.Application, &h.State, &age, &h.Tables); err != nil {
			return nil, fmt.Errorf("read pg_locks: %w", err)
		}
		h.Age = time.Duration(age * float64(time.Second))
		out = append(out, h)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read pg_locks: %w", err)
	}
	return out, nil
}

// Barrier returns nil once no transaction is left that could still commit a write to a gated table: all that held a writing lock on one
// after Arm had returned have ended, prepared ones included. It takes no lock and delays nobody. Until the gate opens again, the
// tables' contents then stand still; a fence (the WAL insert position, pg_current_wal_insert_lsn) read afterwards covers every write.
//
// It waits until ctx ends and then returns a *BlockedError that names who held it up. ErrNotArmed, if the gate isn't armed, or no
// longer was when the last holder had ended.
func (g *Gate) Barrier(ctx context.Context) error {
	if err := g.mustBeArmed(ctx); err != nil {
		return err
	}
	var before map[string]bool
	var last []Holder
	started := time.Now()
	err := retry.Do(ctx, retry.Policy{First: 2 * time.Millisecond, Max: 50 * time.Millisecond}, func(ctx context.Context) error {
		all, err := g.holders(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			return retry.Stop(err)
		}
		if before == nil {
			before = make(map[string]bool, len(all))
			for _, h := range all {
				before[h.virtual] = true
			}
		}
		// Whoever came later meets the armed gate and ends by its own error; only those from before count. One of them
		// may turn into a prepared transaction meanwhile, under a new name: a prepared one always counts.
		var left []Holder
		for _, h := range all {
			if before[h.virtual] || h.PID == 0 {
				left = append(left, h)
			}
		}
		last = left
		if len(left) > 0 {
			return &BlockedError{Holders: left}
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil && len(last) > 0 {
			return &BlockedError{Holders: last, Cause: ctx.Err()}
		}
		return fmt.Errorf("wait for writers of before the freeze: %w", err)
	}
	g.log.Debug("writers of before the freeze have ended", "waited", time.Since(started), "transactions", len(before))
	return g.mustBeArmed(ctx)
}

func (g *Gate) mustBeArmed(ctx context.Context) error {
	b, err := readBody(ctx, g.pool)
	if err != nil {
		return err
	}
	if b.Armed && b.Permanent {
		return nil
	}
	var now time.Time
	if err := g.pool.QueryRow(ctx, clockSQL).Scan(&now); err != nil {
		return fmt.Errorf("read the server's clock: %w", err)
	}
	if !b.Armed || !now.Before(b.Deadline) {
		return ErrNotArmed
	}
	return nil
}
