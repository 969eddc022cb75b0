package trigger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
)

// slotSizesSQL measures the log tables, with what is kept apart of long values (TOAST) but not its index, which is never empty. It touches no table of
// the application.
const slotSizesSQL = `
SELECT x.oid, pg_relation_size(a.oid) + coalesce(pg_relation_size(nullif(a.reltoastrelid, 0)), 0), pg_relation_size(b.oid) + coalesce(pg_relation_size(nullif(b.reltoastrelid, 0)), 0),
       coalesce(pg_stat_get_tuples_updated(x.oid), 0)
FROM unnest($1::oid[]) x(oid)
LEFT JOIN pg_class a ON a.oid = to_regclass('replicator.capture_' || x.oid || '_0') LEFT JOIN pg_class b ON b.oid = to_regclass('replicator.capture_' || x.oid || '_1')`

// tableSizesSQL measures the application's tables. That waits for whoever holds one ACCESS EXCLUSIVE, so it is asked for few of them, and given up
// at once.
const (
	measureWaitSQL = "SET LOCAL lock_timeout = '20ms'"
	tableSizesSQL  = `SELECT x.oid, coalesce(pg_relation_size(x.oid), 0) FROM unnest($1::oid[]) x(oid)`
)

// upkeep keeps the log small, between two windows: a log table that has grown is left to itself while writing goes on in the other one, and is
// emptied as soon as the destination has all of it.
func (r *reader) upkeep(ctx context.Context) error {
	if time.Since(r.upkeepAt) < r.s.o.UpkeepEvery {
		return nil
	}
	r.upkeepAt = time.Now()
	acked := r.s.acked.Load()
	if acked == nil {
		return nil
	}
	rows, err := r.conn.Query(ctx, slotSizesSQL, r.oids)
	if err != nil {
		return fmt.Errorf("measure the change log: %w", err)
	}
	for rows.Next() {
		var oid uint32
		var sizes [slots]*int64
		var updates int64
		if err := rows.Scan(&oid, &sizes[0], &sizes[1], &updates); err != nil {
			rows.Close()
			return fmt.Errorf("measure the change log: %w", err)
		}
		r.tables[oid].heat(updates, r.s.o.Scanning)
		for i, n := range sizes {
			r.tables[oid].slotBytes[i] = 0
			if n != nil {
				r.tables[oid].slotBytes[i] = *n
			}
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("measure the change log: %w", err)
	}
	if err := r.measure(ctx); err != nil {
		return err
	}
	for _, t := range r.order {
		if t.seam != nil {
			continue
		}
		other := (t.log.Slot + 1) % slots
		if t.slotBytes[other] > 0 {
			if err := r.empty(ctx, t, other, acked.seen); err != nil {
				return err
			}
		}
		if t.slotBytes[other] == 0 && t.slotBytes[t.log.Slot] >= r.s.o.RotateBytes {
			if err := r.turn(ctx, t, other); err != nil {
				return err
			}
		}
	}
	if err := r.rescan(ctx); err != nil {
		return err
	}
	if err := r.forget(ctx, acked); err != nil {
		return err
	}
	return r.prune(ctx, acked.seen)
}

// measure looks at the sizes of tables that are scanned or may be from now on. One that can't be measured at once isn't hot: somebody has it to himself.
func (r *reader) measure(ctx context.Context) error {
	var oids []uint32
	for _, t := range r.order {
		if t.scan.hot || t.log.Scanned {
			oids = append(oids, t.oid)
		}
	}
	if len(oids) == 0 {
		return nil
	}
	err := pgx.BeginTxFunc(ctx, r.conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, measureWaitSQL); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, tableSizesSQL, oids)
		if err != nil {
			return err
		}
		var oid uint32
		var bytes int64
		_, err = pgx.ForEachRow(rows, []any{&oid, &bytes}, func() error {
			t := r.tables[oid]
			t.bytes = bytes
			t.scan.hot = t.scan.hot && bytes <= r.s.o.Scanning.Bytes
			return nil
		})
		return err
	})
	if postgres.Code(err) == postgres.CodeLockNotAvailable {
		for _, t := range r.order {
			t.scan.hot = false
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("measure the tables that are scanned: %w", err)
	}
	return nil
}

// forgetSQL leaves alone what copies have left, which the pair removes, and whatever came after the session's own row.
const forgetSQL = `DELETE FROM replicator.witness WHERE migration = $1 AND pair = $2 AND beat > 0 AND n < $3::text::bigint`

// forget removes the witnesses of earlier sessions once the destination holds a position of this one.
func (r *reader) forget(ctx context.Context, acked *place) error {
	if r.former || r.witness == "" || acked.Witness != r.witness {
		return nil
	}
	if _, err := r.conn.Exec(ctx, forgetSQL, r.s.o.ID.Migration, r.s.o.ID.Pair, r.witnessNumber); err != nil {
		return fmt.Errorf("forget former sessions: %w", err)
	}
	r.former = true
	return nil
}

// empty truncates a log table that is no longer written to, if everything in it is durable on the destination. The lock, taken only if it is
// free at once, says that no running or prepared transaction has written to it; one that still holds the function's former text and
// comes later waits for this transaction, and finds an empty table, which the windows still read.
func (r *reader) empty(ctx context.Context, t *captured, slot int, acked replication.Snapshot) error {
	done := false
	err := pgx.BeginTxFunc(ctx, r.conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		log := logTable(t.oid, slot)
		if _, err := tx.Exec(ctx, "LOCK TABLE "+log+" IN ACCESS EXCLUSIVE MODE NOWAIT"); err != nil {
			return err
		}
		b := bounds(acked)
		var needed bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+log+" WHERE xid >= $1::text::xid8) OR EXISTS (SELECT FROM "+log+" WHERE xid = ANY ($2::text::xid8[]))",
			string(b[0]), string(b[1])).Scan(&needed); err != nil {
			return err
		}
		if needed {
			return nil
		}
		done = true
		_, err := tx.Exec(ctx, "TRUNCATE "+log)
		return err
	})
	switch {
	case postgres.Code(err) == postgres.CodeLockNotAvailable:
		return nil // a transaction that wrote to it is still open: next time
	case err != nil:
		return fmt.Errorf("empty the change log of %s: %w", t.name, err)
	}
	if done {
		t.slotBytes[slot] = 0
		r.s.o.Log.Debug("change log: emptied", "table", t.name.String(), "slot", slot)
	}
	return nil
}

// turn makes the table's function write to another log table. Replacing a function locks no table; running statements may go on with
// the former text for a while.
func (r *reader) turn(ctx context.Context, t *captured, slot int) error {
	next := t.log
	next.Slot = slot
	sql, err := next.create(t.oid)
	if err != nil {
		return err
	}
	if err := r.redefine(ctx, sql); err != nil {
		return fmt.Errorf("turn the change log of %s: %w", t.name, err)
	}
	t.log = next
	r.s.o.Log.Debug("change log: turned", "table", t.name.String(), "slot", slot)
	return nil
}

// prune forgets truncations that the destination has.
func (r *reader) prune(ctx context.Context, acked replication.Snapshot) error {
	b := bounds(acked)
	var old bool
	if err := r.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM replicator.capture_truncated WHERE xid < $1::text::xid8)`, strconv.FormatUint(acked.Xmin, 10)).Scan(&old); err != nil {
		return fmt.Errorf("look for old truncations: %w", err)
	}
	if !old {
		return nil
	}
	if _, err := r.conn.Exec(ctx, `DELETE FROM replicator.capture_truncated WHERE xid < $1::text::xid8 AND xid <> ALL ($2::text::xid8[])`, string(b[0]), string(b[1])); err != nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		return fmt.Errorf("forget old truncations: %w", err)
	}
	return nil
}
