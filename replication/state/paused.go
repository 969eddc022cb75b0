package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Paused tells whether the operator has paused the migration; a pause outlives the process that was asked for it.
func (j *Journal) Paused(ctx context.Context) (bool, error) {
	var value string
	err := j.pool.QueryRow(ctx, `SELECT value FROM replicator.setting WHERE migration = $1 AND pair = '' AND key = 'paused'`, j.id.Migration).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read whether the migration is paused: %w", err)
	}
	return value == "true", nil
}

// SetPaused remembers a pause, or its end. It is durable when it returns nil.
func (j *Journal) SetPaused(ctx context.Context, paused bool) error {
	id := j.id
	id.Pair = ""
	return NewPairs(j.pool, id).Set(ctx, "paused", fmt.Sprint(paused))
}
