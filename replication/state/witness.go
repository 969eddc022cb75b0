package state

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
)

// querier is what a pgx connection, transaction or pool offers.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// WitnessSQL are statements that commit a witness and return its id. Whatever the session has seen before lies before it in the write-ahead log:
// a server that has the row has all of that, and one that was restored or failed over without it doesn't have the row. They wait for the flush, not
// for standbys, which may be away.
func WitnessSQL(id postgres.Identity) string {
	return fmt.Sprintf("BEGIN; SET LOCAL synchronous_commit = local; INSERT INTO replicator.witness (migration, pair) VALUES (%s, %s) RETURNING id::text; COMMIT",
		replication.QuoteLiteral(id.Migration), replication.QuoteLiteral(id.Pair))
}

// Missing returns those of the witnesses that the server doesn't have.
func Missing(ctx context.Context, q querier, witnesses []string) (map[string]bool, error) {
	rows, err := q.Query(ctx, `SELECT w FROM unnest($1::text[]) w WHERE NOT EXISTS (SELECT FROM replicator.witness x WHERE x.id = w::uuid)`, witnesses)
	if err != nil {
		return nil, fmt.Errorf("look for the copies' witnesses: %w", err)
	}
	out := map[string]bool{}
	var w string
	if _, err := pgx.ForEachRow(rows, []any{&w}, func() error { out[w] = true; return nil }); err != nil {
		return nil, fmt.Errorf("look for the copies' witnesses: %w", err)
	}
	return out, nil
}

// Witnessed forgets the witnesses of copies whose seams the stream has passed: from then on the position speaks for them.
func (p *Pairs) Witnessed(ctx context.Context) error {
	_, err := p.fenced(ctx, "forget the copies' witnesses", `UPDATE replicator.copy SET witness = '' WHERE migration = $1 AND pair = $2 AND state = 'copied' AND witness <> ''`, p.id.Migration, p.id.Pair)
	return err
}

// ForgetWitnesses removes the copies' witnesses from their server, once nobody asks for them. Those of sessions that stream are counted up and stay.
func ForgetWitnesses(ctx context.Context, pool querier, id postgres.Identity) error {
	rows, err := pool.Query(ctx, `DELETE FROM replicator.witness WHERE migration = $1 AND pair = $2 AND beat = 0`, id.Migration, id.Pair)
	if err == nil {
		rows.Close()
		err = rows.Err()
	}
	if err != nil {
		return fmt.Errorf("forget the copies' witnesses: %w", err)
	}
	return nil
}
