package state

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
)

// Publish writes the leader's status document for the standbys.
func Publish(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity, document string) error {
	_, err := pool.Exec(ctx, `INSERT INTO replicator.published AS p (migration, epoch, status) VALUES ($1, $2, $3)
		ON CONFLICT (migration) DO UPDATE SET epoch = excluded.epoch, status = excluded.status, at = clock_timestamp() WHERE p.epoch <= excluded.epoch`, id.Migration, id.Epoch, document)
	if err != nil {
		return fmt.Errorf("publish the status: %w", err)
	}
	return nil
}

// Published reads the leader's status document, empty if there is none.
func Published(ctx context.Context, pool *pgxpool.Pool, migration string) (string, error) {
	var text string
	err := pool.QueryRow(ctx, `SELECT status FROM replicator.published WHERE migration = $1`, migration).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the leader's status: %w", err)
	}
	return text, nil
}

// Request is an action that a standby hands to the leader.
type Request struct {
	ID           int64
	Action, Body string
}

// Requests lists what no leader has answered yet, for a minute: whoever asked has given up by then.
func Requests(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity) ([]Request, error) {
	rows, err := pool.Query(ctx, `SELECT id, action, body FROM replicator.request WHERE migration = $1 AND answer IS NULL AND at > clock_timestamp() - interval '1 minute' ORDER BY id`, id.Migration)
	if err != nil {
		return nil, fmt.Errorf("read requests: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Request])
}

// Answer writes the answer to a request.
func Answer(ctx context.Context, pool *pgxpool.Pool, id int64, answer string) error {
	_, err := pool.Exec(ctx, `UPDATE replicator.request SET answer = $2, answered_at = clock_timestamp() WHERE id = $1`, id, answer)
	if err != nil {
		return fmt.Errorf("answer a request: %w", err)
	}
	return nil
}

// Ask hands an action to the leader and waits until it has answered or ctx ends. A request that isn't answered is withdrawn.
func Ask(ctx context.Context, pool *pgxpool.Pool, migration, action, body string) (string, error) {
	var id int64
	if err := pool.QueryRow(ctx, `INSERT INTO replicator.request (migration, action, body) VALUES ($1, $2, $3) RETURNING id`, migration, action, body).Scan(&id); err != nil {
		return "", fmt.Errorf("hand %q to the leader: %w", action, err)
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		var answer *string
		if err := pool.QueryRow(ctx, `SELECT answer FROM replicator.request WHERE id = $1`, id).Scan(&answer); err != nil {
			return "", fmt.Errorf("wait for the leader's answer to %q: %w", action, err)
		}
		if answer != nil {
			return *answer, nil
		}
		select {
		case <-ctx.Done():
			withdrawing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			_, err := pool.Exec(withdrawing, `DELETE FROM replicator.request WHERE id = $1 AND answer IS NULL`, id)
			cancel()
			return "", errors.Join(fmt.Errorf("wait for the leader's answer to %q: %w", action, ctx.Err()), err)
		case <-tick.C:
		}
	}
}
