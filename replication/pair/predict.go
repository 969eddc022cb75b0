package pair

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/schema"
)

// longestWriter bounds how long a prediction waits for the transactions that write now: a freeze would wait for them too.
const longestWriter = 15 * time.Second

// PredictFreeze tells how long a freeze that began now would last, by doing what takes time in one, while the application writes:
// what PredictUncompared does, and the comparison of the tables that a freeze would have to compare. Without a comparison of late, all
// tables are compared first, as Prepare does; a rollback has no such comparison before it.
func (p *Pair) PredictFreeze(ctx context.Context, reverse bool) (time.Duration, error) {
	if err := p.predictable(ctx, reverse); err != nil {
		return 0, err
	}
	known, err := p.knownEqual(ctx, reverse)
	if err != nil {
		return 0, err
	}
	if !reverse && len(known) == 0 {
		if report, err := p.VerifyNow(ctx, nil); err != nil {
			return 0, err
		} else if report.Mismatches > 0 {
			return 0, fmt.Errorf("both sides differ in %d rows", report.Mismatches)
		}
	}
	took, err := p.PredictUncompared(ctx, reverse)
	if err != nil {
		return 0, err
	}
	comparison, err := p.timeComparison(ctx, reverse)
	if err != nil {
		return 0, err
	}
	return took + comparison, nil
}

// PredictUncompared is PredictFreeze for a freeze in which nothing is compared: it waits for the transactions that write at the moment
// and for the stream to carry everything committed. The round trip that proves the way back is taken to last as long as the one that
// it measures.
func (p *Pair) PredictUncompared(ctx context.Context, reverse bool) (time.Duration, error) {
	if err := p.predictable(ctx, reverse); err != nil {
		return 0, err
	}
	writers, err := p.awaitWriters(ctx, reverse)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := p.CaughtUp(ctx); err != nil {
		return 0, err
	}
	return writers + 2*time.Since(began), nil
}

func (p *Pair) predictable(ctx context.Context, reverse bool) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	if p.isActive() != reverse {
		return errors.New("the pair runs in the other direction")
	}
	return nil
}

// writersSQL lists the ids of the transactions, prepared ones included, that have written to this database and not ended: each holds a
// lock on its own id (PostgreSQL documentation, "pg_locks").
const writersSQL = `SELECT l.transactionid::text FROM pg_locks l
	LEFT JOIN pg_stat_activity a ON a.pid = l.pid
	LEFT JOIN pg_prepared_xacts x ON x.transaction = l.transactionid
	WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
		AND coalesce(a.datname, x.database) = current_database()
		AND coalesce(a.application_name, '') NOT LIKE 'replicator/%'`

// awaitWriters returns how long it took until every transaction that had written on the origin when it was called had ended.
func (p *Pair) awaitWriters(ctx context.Context, reverse bool) (time.Duration, error) {
	origin, _ := p.ends(reverse)
	began := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var awaited []string
	for first := true; ; first = false {
		rows, err := origin.pool.Query(ctx, writersSQL)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", origin.name, err)
		}
		open, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return 0, fmt.Errorf("%s: %w", origin.name, err)
		}
		if first {
			awaited = open
		}
		awaited = slices.DeleteFunc(awaited, func(id string) bool { return !slices.Contains(open, id) })
		if len(awaited) == 0 {
			return time.Since(began), nil
		}
		if time.Since(began) > longestWriter {
			return 0, &preflight.Hinted{Code: "long-transactions", Err: fmt.Errorf("a transaction on the %s has been writing for more than %v, and a freeze would wait for it", origin.name, longestWriter),
				Hint: "see pg_stat_activity and pg_prepared_xacts for it, and begin when it has ended"}
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// timeComparison compares what a freeze would have to compare now, and returns how long that took.
func (p *Pair) timeComparison(ctx context.Context, reverse bool) (time.Duration, error) {
	origin, _ := p.ends(reverse)
	tables, err := schema.Tables(ctx, origin.pool, p.o.Filter)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", origin.name, err)
	}
	known, err := p.knownEqual(ctx, reverse)
	if err != nil {
		return 0, err
	}
	var left []replication.TableName
	for _, t := range tables {
		if !known[t.Name] {
			left = append(left, t.Name)
		}
	}
	if len(left) == 0 {
		return 0, nil
	}
	began := time.Now()
	if _, err := p.VerifyNow(ctx, left); err != nil {
		return 0, err
	}
	return time.Since(began), nil
}
