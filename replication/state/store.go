package state

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

func deposed(doing string) error {
	return retry.Stop(&preflight.Hinted{Code: "deposed", Err: fmt.Errorf("%s: %w", doing, replication.ErrDeposed),
		Hint: "this process stands down; look at the one that took over"})
}

// Claim writes the epoch of a new leader into one database, so that no predecessor can move a position there any more. It fails
// with replication.ErrDeposed where a higher epoch has been written already.
func Claim(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var epoch int64
		err := tx.QueryRow(ctx, `INSERT INTO replicator.migration AS m (name, epoch) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET epoch = greatest(m.epoch, excluded.epoch) RETURNING epoch`, id.Migration, id.Epoch).Scan(&epoch)
		if err != nil {
			return fmt.Errorf("claim the lead of %q: %w", id.Migration, err)
		}
		if epoch != id.Epoch {
			return deposed(fmt.Sprintf("claim the lead of %q with epoch %d, while epoch %d leads", id.Migration, id.Epoch, epoch))
		}
		if _, err := tx.Exec(ctx, `UPDATE replicator.position SET epoch = $2 WHERE migration = $1`, id.Migration, id.Epoch); err != nil {
			return fmt.Errorf("claim the positions of %q: %w", id.Migration, err)
		}
		return nil
	})
}

// Terminate ends the sessions that earlier epochs of this migration have left on the server. Sessions of other roles, which this one
// may not end, are left alone: the epoch fences them.
func Terminate(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity) error {
	_, err := pool.Exec(ctx, `
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE pid <> pg_backend_pid() AND usename = current_user
		  AND starts_with(application_name, $1)
		  AND coalesce(substring(application_name FROM '/e([0-9]+)$')::bigint, 0) BETWEEN 1 AND $2 - 1`,
		postgres.Identity{Migration: id.Migration}.ApplicationPrefix(), id.Epoch)
	if err != nil {
		return fmt.Errorf("end the sessions of the previous leader: %w", err)
	}
	return nil
}

// Position reads how far a direction of a pair has been applied to this database; ok is false if it was never started.
func Position(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity, direction string) (p replication.Position, ok bool, err error) {
	err = pool.QueryRow(ctx, `SELECT position FROM replicator.position WHERE migration = $1 AND pair = $2 AND direction = $3`, id.Migration, id.Pair, direction).Scan(&p)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read the %s position: %w", direction, err)
	}
	return p, true, nil
}

// StartPosition sets the place from which a direction is to be applied, durably, replacing any earlier one.
func StartPosition(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity, direction string, p replication.Position) error {
	tag, err := pool.Exec(ctx, `
		INSERT INTO replicator.position (migration, pair, direction, position, epoch)
		SELECT $1, $2, $3, $4, $5 WHERE EXISTS (SELECT FROM replicator.migration WHERE name = $1 AND epoch = $5)
		ON CONFLICT (migration, pair, direction) DO UPDATE SET position = excluded.position, epoch = excluded.epoch, updated_at = clock_timestamp()`,
		id.Migration, id.Pair, direction, string(p), id.Epoch)
	if err != nil {
		return fmt.Errorf("set the %s position: %w", direction, err)
	}
	if tag.RowsAffected() != 1 {
		return deposed("set the " + direction + " position")
	}
	return nil
}

// Beat writes the heartbeat row with a token and waits until its commit is flushed, so that the stream carries a transaction of ours. It
// returns the write-ahead log flush position after the commit: whatever had committed before Beat was called lies below it. It doesn't wait
// for standbys, which may be away ("synchronous_commit").
func Beat(ctx context.Context, pool *pgxpool.Pool, token string) (uint64, error) {
	var text string
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = local`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO replicator.heartbeat (id, token) VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET token = excluded.token, at = clock_timestamp()`, token)
		return err
	})
	if err == nil {
		err = pool.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&text)
	}
	if err != nil {
		return 0, fmt.Errorf("write a heartbeat: %w", err)
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return 0, fmt.Errorf("write a heartbeat: %w", err)
	}
	return uint64(lsn), nil
}

// Lead is the held lead of a migration.
type Lead struct {
	Epoch int64
	conn  *pgx.Conn
}

// TakeLead waits until no other process leads the migration, then increments the epoch on this database. waiting, if not nil, is called
// once when the lead is held by another.
func TakeLead(ctx context.Context, url, migration string, waiting func()) (*Lead, error) {
	conn, err := postgres.Connect(ctx, url, postgres.Identity{Migration: migration, Pair: "-"}, "lead")
	if err != nil {
		return nil, err
	}
	lead := &Lead{conn: conn}
	if err := lead.take(ctx, migration, waiting); err != nil {
		lead.Release(ctx)
		return nil, err
	}
	return lead, nil
}

func (l *Lead) take(ctx context.Context, migration string, waiting func()) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var got bool
		if err := l.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtextextended('replicator:lead:' || $1, 0))`, migration).Scan(&got); err != nil {
			return fmt.Errorf("take the lead of %q: %w", migration, err)
		}
		if got {
			break
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	err := l.conn.QueryRow(ctx, `INSERT INTO replicator.migration AS m (name, epoch) VALUES ($1, 1)
		ON CONFLICT (name) DO UPDATE SET epoch = m.epoch + 1 RETURNING epoch`, migration).Scan(&l.Epoch)
	if err != nil {
		return fmt.Errorf("take the lead of %q: %w", migration, err)
	}
	return nil
}

// Watch returns when the lead is lost: its session broke. It returns ctx's error when ctx ends first.
func (l *Lead) Watch(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		check, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := l.conn.Ping(check)
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("hold the lead: %w", err)
		}
	}
}

// Release gives the lead up at once.
func (l *Lead) Release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = l.conn.Close(ctx)
}

// Flushed is the write-ahead log position up to which the session's server has flushed. To learn from it that an earlier commit is durable,
// the session must be older than the commit: a server that has crashed since may have written something else up to that position.
func Flushed(ctx context.Context, conn *pgx.Conn) (uint64, error) {
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&text); err != nil {
		return 0, fmt.Errorf("read the flush position: %w", err)
	}
	lsn, err := pglogrepl.ParseLSN(text)
	return uint64(lsn), err
}

// Flush makes the server flush its write-ahead log up to now, by a synchronous commit of a row of ours, and returns the position.
func Flush(ctx context.Context, pool *pgxpool.Pool) (uint64, error) { return Beat(ctx, pool, "flush") }
