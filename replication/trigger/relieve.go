package trigger

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// A log that outgrows what the origin can bear is given up: the count of the capture is set to givenUp, which ends every stream, and in the same
// transaction the functions are replaced by ones that do nothing. Neither locks a table. A window whose snapshot sees a change that wasn't logged
// began after that, and its end finds the count. The log tables stay, empty: a statement that is under way may still hold a function's former text, and
// must find them. They go, as the triggers do, with Install or Uninstall.

// givenUp stands in the count's place once the log is given up; whatever else may be wrong with a count, none comes near it.
const givenUp = "-4611686018427387904"

// voidBody is the source of a function that logs nothing. Without a description the table counts as one that isn't captured.
const voidBody = "BEGIN RETURN NULL; END"

const giveUpSQL = `
UPDATE replicator.capture SET beat = ` + givenUp + ` WHERE id = 1 AND beat > ` + givenUp + `;
DO $do$
DECLARE f record;
BEGIN
  FOR f IN SELECT proname FROM pg_catalog.pg_proc WHERE pronamespace = 'replicator'::pg_catalog.regnamespace AND proname ~ '^capture_[0-9]+$' AND pronargs = 0 AND prosrc <> '` + voidBody + `' LOOP
    EXECUTE pg_catalog.format('CREATE OR REPLACE FUNCTION replicator.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L', f.proname, '` + voidBody + `');
  END LOOP;
END $do$`

// Relieve gives the log up and frees what it can of the disk at once. left tells how many log tables are still in use: call Free later. No stream goes on
// behind it, in this process or another, before Renew and Install. It waits for no table and fails no write.
func Relieve(ctx context.Context, pool *pgxpool.Pool) (left int, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, giveUpSQL)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("give up the change log: %w", err)
	}
	return Free(ctx, pool)
}

// freeableSQL lists logs with something in them whose functions log nothing any more.
const freeableSQL = `
SELECT c.relname::text FROM pg_class c JOIN pg_proc p ON p.pronamespace = c.relnamespace AND p.pronargs = 0 AND p.proname = substring(c.relname FROM '^capture_[0-9]+') AND p.prosrc = '` + voidBody + `'
WHERE c.relnamespace = 'replicator'::regnamespace AND c.relkind = 'r' AND c.relname ~ '^capture_[0-9]+_[01]$'
  AND pg_relation_size(c.oid) + coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) > 0
ORDER BY pg_relation_size(c.oid) DESC`

// Free empties the log tables of a log that was given up, as far as nobody is writing to them; left are the others.
func Free(ctx context.Context, pool *pgxpool.Pool) (left int, err error) {
	rows, err := pool.Query(ctx, freeableSQL)
	if err != nil {
		return 0, fmt.Errorf("free the change log: %w", err)
	}
	logs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return 0, fmt.Errorf("free the change log: %w", err)
	}
	for _, log := range logs {
		name := pgx.Identifier{"replicator", log}.Sanitize()
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "LOCK TABLE "+name+" IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE "+name)
			return err
		})
		switch {
		case postgres.Code(err) == postgres.CodeLockNotAvailable:
			left++
		case err != nil:
			return left, fmt.Errorf("free the change log: empty %s: %w", name, err)
		}
	}
	return left, nil
}

// Renew lets a log that was given up be made anew, by Install. What was captured before is void.
func Renew(ctx context.Context, pool *pgxpool.Pool) error {
	if err := makeCommon(ctx, pool); err != nil {
		return fmt.Errorf("renew the change log: %w", err)
	}
	if _, err := pool.Exec(ctx, `UPDATE replicator.capture SET beat = 0 WHERE id = 1 AND beat <= `+givenUp); err != nil {
		return fmt.Errorf("renew the change log: %w", err)
	}
	return nil
}

// Standing fails with "capture-lost" where the log was given up, or is gone as a whole.
func Standing(ctx context.Context, q querier) error {
	_, err := count(ctx, q)
	return err
}

func count(ctx context.Context, q querier) (beat int64, err error) {
	err = q.QueryRow(ctx, `SELECT beat FROM replicator.capture WHERE id = 1 AND beat > `+givenUp).Scan(&beat)
	switch code := postgres.Code(err); {
	case errors.Is(err, pgx.ErrNoRows), code == postgres.CodeUndefinedTable, code == "3F000":
		return 0, lost()
	case err != nil:
		return 0, fmt.Errorf("read the capture's count: %w", err)
	}
	return beat, nil
}

func lost() error {
	return retry.Stop(&preflight.Hinted{Code: "capture-lost", Err: errors.New("the change log is gone: it was removed, or given up for the sake of the disk that it filled (postgres[].guard.drop_retained)"),
		Hint: "no change may be skipped, so this pair stays stopped: run `replicator resync` for the pair to copy its tables again"})
}

// stillCapturedSQL fails (22012) if the log was given up, and keeps that from happening before its transaction ends.
const stillCapturedSQL = `SELECT 1 / count(*) FROM (SELECT FROM replicator.capture WHERE id = 1 AND beat > ` + givenUp + ` FOR SHARE) c`

// redefine replaces a function, unless the log, or a table's capture (Silence), was given up meanwhile.
func (r *reader) redefine(ctx context.Context, sql string) error {
	_, err := r.conn.PgConn().Exec(ctx, stillCapturedSQL+"; "+r.unsilenced()+"; "+sql).ReadAll()
	if postgres.Code(err) == postgres.CodeDivisionByZero {
		return lost()
	}
	return err
}
