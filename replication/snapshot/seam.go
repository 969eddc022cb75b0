package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"

	"replicator/internal/postgres"
	"replicator/internal/retry"
	"replicator/replication"
)

// snapshot locks the table, then takes the snapshot: a REPEATABLE READ transaction takes it with its first query, and LOCK is none
// ("LOCK", notes on isolation levels).
func (w *worker) snapshot(ctx context.Context, t replication.Table) (replication.Seam, error) {
	var seam replication.Seam
	err := retry.Do(ctx, retry.Policy{Max: 5 * time.Second, Notify: func(err error, _ int, _ time.Duration) {
		if w.o.Waiting != nil {
			w.o.Waiting(fmt.Sprintf("the copy of %s waits for a lock on it: %v", t.Name, err))
		}
	}}, func(ctx context.Context) error {
		err := w.trySnapshot(ctx, t, &seam)
		if err == nil {
			return nil
		}
		if _, e := w.source.Exec(ctx, "ROLLBACK"); e != nil {
			return retry.Stop(errors.Join(err, e))
		}
		if postgres.Code(err) == postgres.CodeLockNotAvailable || errors.Is(err, errTooEarly) {
			return err
		}
		if postgres.Code(err) == postgres.CodeUndefinedTable {
			err = fmt.Errorf("%w: %w", errGone, err)
		}
		return retry.Stop(err)
	})
	if err == nil && w.o.Waiting != nil {
		w.o.Waiting("")
	}
	return seam, err
}

// errGone: nothing of the table was copied.
var errGone = errors.New("the table was dropped or renamed")

var errTooEarly = errors.New("the snapshot is older than the capture")

// seamSQL reads the log's position after the statement's snapshot was taken, which is that of the transaction.
const seamSQL = `SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text`

func (w *worker) trySnapshot(ctx context.Context, t replication.Table, seam *replication.Seam) error {
	answers, err := w.source.PgConn().Exec(ctx, strings.Join([]string{
		"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
		"SET LOCAL lock_timeout = '2s'",
		"LOCK TABLE ONLY " + t.Name.Quoted() + " IN ACCESS SHARE MODE",
		"SET LOCAL lock_timeout = 0",
		seamSQL,
	}, "; ")).ReadAll()
	if err != nil {
		return fmt.Errorf("lock the table and take a snapshot: %w", err)
	}
	row := answers[len(answers)-1].Rows[0]
	s, err := replication.ParseSnapshot(string(row[0]))
	if err != nil {
		return err
	}
	if s.Xmin < w.horizon {
		return errTooEarly // not after Horizon has returned; a standby would lie
	}
	l, err := pglogrepl.ParseLSN(string(row[1]))
	*seam = replication.Seam{Snapshot: s, LSN: uint64(l)}
	return err
}
