package trigger

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

// ownerMark begins the comment on the table that all tables' logs share; behind it stands whose they are.
const ownerMark = "replicator: change log of "

const ownerSQL = `SELECT coalesce(substring(obj_description(to_regclass('replicator.capture'), 'pg_class') FROM '^' || $1 || '(.*)$'), '')`

// Owned refuses a change log that belongs to another than owner, a pair of a migration: each would empty it of what the other hasn't read. A
// database without a log, or with one of a version that left no mark, is anybody's.
func Owned(ctx context.Context, q querier, owner string) error {
	var other string
	if err := q.QueryRow(ctx, ownerSQL, ownerMark).Scan(&other); err != nil {
		return fmt.Errorf("read whose the change log is: %w", err)
	}
	if other == "" || other == owner {
		return nil
	}
	return retry.Stop(&preflight.Hinted{Code: "capture-owned", Err: fmt.Errorf("the database's change log belongs to another migration's pair, %s, and %s can't share it", other, owner),
		Hint: "`replicator finish` that migration, or, if its daemon is gone, `replicator uninstall` with its configuration (--source-only if its target is gone); then start this one again"})
}

// Own makes the change log owner's, or refuses as Owned does. It goes before Install, and may be repeated.
func Own(ctx context.Context, pool *pgxpool.Pool, owner string) error {
	if err := makeCommon(ctx, pool); err != nil {
		return fmt.Errorf("install the change log: %w", err)
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Of two that find no mark, one waits here and then reads the other's.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(advisoryKey)); err != nil {
			return fmt.Errorf("mark the change log: %w", err)
		}
		if err := Owned(ctx, tx, owner); err != nil {
			return err
		}
		var there string
		err := tx.QueryRow(ctx, ownerSQL, ownerMark).Scan(&there)
		if err == nil && there == "" {
			_, err = tx.Exec(ctx, "COMMENT ON TABLE replicator.capture IS "+replication.QuoteLiteral(ownerMark+owner))
		}
		if err != nil {
			return fmt.Errorf("mark the change log: %w", err)
		}
		return nil
	})
}

// OwnerFinding is what Owned says, for `check`; nil if the log may be taken.
func OwnerFinding(ctx context.Context, q querier, owner string) (*preflight.Finding, error) {
	err := Owned(ctx, q, owner)
	var h *preflight.Hinted
	if errors.As(err, &h) {
		return &preflight.Finding{Code: h.Code, Severity: preflight.Error, Message: h.Err.Error(), Hint: h.Hint}, nil
	}
	return nil, err
}
