package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/internal/retry"
)

// Journal keeps the coordinator's records on the target, append-only and committed synchronously.
type Journal struct {
	pool *pgxpool.Pool
	id   postgres.Identity
}

// NewJournal returns the journal of the migration that id names, for the leader with id's epoch.
func NewJournal(pool *pgxpool.Pool, id postgres.Identity) *Journal {
	return &Journal{pool: pool, id: id}
}

// Load returns the newest record, nil if there is none.
func (j *Journal) Load(ctx context.Context) ([]byte, error) {
	var record string
	err := j.pool.QueryRow(ctx, `SELECT record FROM replicator.journal WHERE migration = $1 ORDER BY id DESC LIMIT 1`, j.id.Migration).Scan(&record)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	return []byte(record), nil
}

// Save appends a record, a JSON object with a growing "revision". It is durable when Save returns nil; replication.ErrDeposed means that it
// was not written and another process leads.
func (j *Journal) Save(ctx context.Context, record []byte) error {
	return pgx.BeginFunc(ctx, j.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
		// The row lock keeps a successor from counting the epoch up before this has committed.
		if err := Fence(ctx, tx, j.id); err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
		// A save whose session died may arrive late; it must not overtake a newer one, nor run beside it unseen.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('replicator:journal:' || $1, 0))`, j.id.Migration); err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
		tag, err := tx.Exec(ctx, `INSERT INTO replicator.journal (migration, epoch, record) SELECT $1, $2, $3::text
			WHERE NOT EXISTS (SELECT FROM replicator.journal WHERE migration = $1 AND (record::jsonb ->> 'revision')::bigint >= ($3::text::jsonb ->> 'revision')::bigint)`,
			j.id.Migration, j.id.Epoch, string(record))
		if err != nil {
			return fmt.Errorf("write the journal: %w", err)
		}
		if tag.RowsAffected() != 1 {
			return retry.Stop(errors.New("write the journal: a newer record is there already"))
		}
		return nil
	})
}
