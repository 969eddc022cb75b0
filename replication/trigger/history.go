package trigger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

const resyncPair = "no change may be skipped, so this pair stays stopped: run `replicator resync` for the pair to copy its tables again"

const (
	// countSQL has a row as long as the change log stands and wasn't given up: a witness that is gone is lost as other commits are.
	countSQL = `SELECT coalesce((SELECT beat FROM replicator.witness WHERE id = $1::text::uuid), 0) FROM replicator.capture WHERE id = 1 AND beat > ` + givenUp
	// formerCountSQL reads what positions of earlier versions are compared with.
	formerCountSQL = `SELECT beat FROM replicator.capture WHERE id = 1 AND beat > ` + givenUp
)

// SameHistory makes sure that the server gave the position and has lost no commit since, as Stream does when it begins.
func SameHistory(ctx context.Context, pool *pgxpool.Pool, p replication.Position) error {
	at, err := parsePlace(p)
	if err != nil {
		return retry.Stop(err)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("look at the server: %w", err)
	}
	defer conn.Release()
	_, err = at.sameHistory(ctx, conn)
	return err
}

// sameHistory makes sure that this is the server which gave the position, and that it has lost no commit since. After a failover that did, it
// gives transaction ids a second time, and snapshots from before mean nothing. It returns the server's present place.
func (p place) sameHistory(ctx context.Context, q querier) (place, error) {
	var standby bool
	if err := q.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
		return place{}, fmt.Errorf("look at the server: %w", err)
	}
	if standby {
		return place{}, &preflight.Hinted{Code: "standby", Err: errors.New("the server is a standby: snapshots there don't name running transactions"), Hint: "connect to the primary"}
	}
	here, err := now(ctx, q)
	if err != nil {
		return place{}, err
	}
	if here.System != "" && p.System != "" && here.System != p.System {
		return here, retry.Stop(&preflight.Hinted{Code: "other-server", Err: fmt.Errorf("the server's system identifier is %s; the position was taken on %s", here.System, p.System), Hint: resyncPair})
	}
	var beat int64
	if p.Witness == "" {
		err = q.QueryRow(ctx, formerCountSQL).Scan(&beat)
	} else {
		err = q.QueryRow(ctx, countSQL, p.Witness).Scan(&beat)
	}
	if err != nil {
		switch code := postgres.Code(err); {
		case errors.Is(err, pgx.ErrNoRows), code == postgres.CodeUndefinedTable, code == "3F000":
			return here, lost()
		}
		return here, fmt.Errorf("read the capture's count: %w", err)
	}
	if beat < p.Beat || !covers(here.seen, p.seen) {
		return here, retry.Stop(&preflight.Hinted{Code: "commits-lost", Err: fmt.Errorf("the server has lost commits that the destination already has (it counts %d of the capture's %d; timeline %d, before %d): it failed over to a standby that lagged behind, or was restored", beat, p.Beat, here.Timeline, p.Timeline),
			Hint: resyncPair})
	}
	return here, nil
}

func (r *reader) sameHistory(ctx context.Context) error {
	here, err := r.at.sameHistory(ctx, r.conn)
	if err != nil {
		return err
	}
	if here.Timeline != r.at.Timeline {
		r.s.o.Log.Info("the source failed over without losing a commit", "timeline", here.Timeline, "before", r.at.Timeline)
	}
	r.at.System, r.at.Timeline = here.System, here.Timeline
	return nil
}

const missingSQL = `SELECT w FROM unnest($1::text[]) w WHERE NOT EXISTS (SELECT FROM replicator.witness x WHERE x.id = w::uuid)`

// sameCopies makes sure that the server has lost nothing that a copy has seen whose seam is still ahead: what has its transaction ids by now would
// be taken for what the copy has. The pair looks too, and copies again; this look is in the stream's own session, so that no failover comes between.
func (r *reader) sameCopies(ctx context.Context) error {
	tables, witnesses := map[string]string{}, []string(nil)
	for name, seam := range r.s.o.Seams {
		if seam.Witness != "" && !covers(r.at.seen, seam.Snapshot) {
			tables[seam.Witness] = name.String()
			witnesses = append(witnesses, seam.Witness)
		}
	}
	if len(witnesses) == 0 {
		return nil
	}
	rows, err := r.conn.Query(ctx, missingSQL, witnesses)
	if err != nil {
		return fmt.Errorf("look for the copies' witnesses: %w", err)
	}
	lost, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for the copies' witnesses: %w", err)
	}
	if len(lost) == 0 {
		return nil
	}
	for i, w := range lost {
		lost[i] = tables[w]
	}
	slices.Sort(lost)
	return retry.Stop(&preflight.Hinted{Code: "commits-lost", Err: fmt.Errorf("the server has lost commits that the copies of %s have seen: it failed over to a standby that lagged behind, or was restored", strings.Join(lost, ", ")),
		Hint: "a running pair copies them again by itself; if this stays, run `replicator resync` for them"})
}
