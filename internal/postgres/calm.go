package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/retry"
)

// LockMode is a table lock as pg_locks spells it.
type LockMode string

// The locks that our statements take on the application's tables: VALIDATE CONSTRAINT the first; CREATE TRIGGER, ENABLE TRIGGER and the adding of a
// foreign key the second; DROP TRIGGER, the dropping of a foreign key, ENABLE RULE and REPLICA IDENTITY the third.
const (
	ShareUpdateExclusive LockMode = "ShareUpdateExclusiveLock"
	ShareRowExclusive    LockMode = "ShareRowExclusiveLock"
	AccessExclusive      LockMode = "AccessExclusiveLock"
)

// conflicting are the modes that conflict with these ("Explicit Locking", Conflicting Lock Modes).
var conflicting = map[LockMode][]string{
	ShareUpdateExclusive: {"ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"},
	ShareRowExclusive:    {"RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock"},
	AccessExclusive: {"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock", "ShareRowExclusiveLock",
		"ExclusiveLock", "AccessExclusiveLock"},
}

// LockedStep is a change of one table, carried out in a transaction of its own.
type LockedStep struct {
	OID  uint32
	Name string // for people
	// Also are other tables that the statements lock likewise: the one that a foreign key points to.
	Also []uint32
	// Statements take the lock and make the change. A table that is gone meanwhile needs none: the step counts as done.
	Statements []string
}

// Calm changes busy tables without hurting who works with them: one table at a time, looking before it queues for a lock, never queueing for
// longer than a moment, trying the busy ones again after the others, and never standing between a vacuum against wraparound and its table.
type Calm struct {
	Pool *pgxpool.Pool
	Log  *slog.Logger
	// What is being changed, for the log: "change log".
	What string
	// Waiting, if set, hears after each round what is waited for and who holds it, and the empty text when nothing is any more.
	Waiting func(what string)
}

// ErrBusy: a table's lock is held by somebody who won't let go of it soon.
var ErrBusy = errors.New("locked")

// shortWait bounds a wait in the queue, in which everybody else waits behind us. A plain autovacuum is cancelled once somebody has waited for
// deadlock_timeout; longWait allows for that from the fourth round on. A holder's transaction of oldEnough won't end in shortWait. Where there
// is always such a one, because transactions of seconds overlap, waits grow from patience rounds on up to maxWait, unless one is stuck.
const (
	shortWait = 100 * time.Millisecond
	longWait  = 3 * time.Second
	maxWait   = time.Second
	patience  = 5
	oldEnough = time.Second
	stuck     = time.Minute
)

// Run carries the steps out until all are done, or ctx ends. Steps that fail for another reason than a lock don't stop the others
// and aren't tried again; explain turns their errors into ones that say what to do. What is done stays done.
func (c Calm) Run(ctx context.Context, steps []LockedStep, mode LockMode, explain func(LockedStep, error) error) error {
	var refused []error
	round := 0
	waiting := c.Waiting
	if waiting == nil {
		waiting = func(string) {}
	}
	defer waiting("")
	err := retry.Do(ctx, retry.Policy{First: 200 * time.Millisecond, Max: 5 * time.Second}, func(ctx context.Context) error {
		round++
		var busy []LockedStep
		var why error
		var look look
		for i, s := range steps {
			err := look.refresh(ctx, c.Pool, steps[i:], mode)
			if err == nil {
				err = c.step(ctx, s, look.of(s), round)
			}
			switch {
			case err == nil:
				c.Log.Debug(c.What+": done", "table", s.Name)
			case ctx.Err() != nil:
				return retry.Stop(errors.Join(err, why))
			case IsTransient(err) || errors.Is(err, ErrBusy):
				busy = append(busy, s)
				if why == nil || errors.Is(err, ErrBusy) {
					why = fmt.Errorf("%s: %w", s.Name, err)
				}
			default:
				refused = append(refused, explain(s, err))
			}
		}
		steps = busy
		if len(busy) > 0 {
			c.Log.Info(c.What+": waiting for a lock on busy tables", "tables", len(busy), "round", round, "waits_for", why.Error())
			waiting(fmt.Sprintf("%s: a lock on %v", c.What, why))
			return fmt.Errorf("%d table(s) are still busy, for example %w: let those transactions end and try again; what is done stays done", len(busy), why)
		}
		return nil
	})
	return errors.Join(append(refused, err)...)
}

// inTheWaySQL lists sessions that hold a conflicting lock. What may not be seen of other roles' sessions is NULL: age 0. A vacuum whose
// command can't be seen counts as one against wraparound.
const inTheWaySQL = `
SELECT l.relation, coalesce(l.pid, 0),
       'pid ' || coalesce(l.pid::text, '? (a prepared transaction)') || ', user "' || coalesce(a.usename::text, '?') || '", application "' || coalesce(a.application_name, '') ||
       '", ' || coalesce(a.state, a.backend_type, 'state unknown') || ', ' || l.mode,
       l.mode = 'ShareUpdateExclusiveLock',
       coalesce(a.backend_type = 'autovacuum worker' AND coalesce(a.query, '') !~ '^autovacuum: ' OR a.query ~ '^autovacuum: .*to prevent wraparound', false),
       coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY($1)
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.mode = ANY($2) AND l.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY 6 DESC`

type inTheWay struct {
	relation                uint32
	pid                     int32
	who                     string
	maintenance, wraparound bool
	age                     float64
}

// look is what was in the way of each table when it was taken. One that is younger than oldEnough misses only transactions that are
// younger too, behind which a short wait does no harm.
type look struct {
	at    time.Time
	found map[uint32][]inTheWay
}

// refresh looks at all of the steps' tables at once, unless that was just done.
func (l *look) refresh(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, steps []LockedStep, mode LockMode) error {
	if time.Since(l.at) < oldEnough/2 {
		return nil
	}
	oids := make([]uint32, 0, len(steps))
	for _, s := range steps {
		oids = append(append(oids, s.OID), s.Also...)
	}
	at := time.Now()
	rows, err := q.Query(ctx, inTheWaySQL, oids, conflicting[mode])
	if err != nil {
		return fmt.Errorf("read pg_locks: %w", err)
	}
	found := map[uint32][]inTheWay{}
	var w inTheWay
	if _, err := pgx.ForEachRow(rows, []any{&w.relation, &w.pid, &w.who, &w.maintenance, &w.wraparound, &w.age}, func() error {
		found[w.relation] = append(found[w.relation], w)
		return nil
	}); err != nil {
		return fmt.Errorf("read pg_locks: %w", err)
	}
	l.at, l.found = at, found
	return nil
}

// of returns what is in the way of a step, the oldest transaction first.
func (l *look) of(s LockedStep) []inTheWay {
	out := l.found[s.OID]
	for _, oid := range s.Also {
		if oid != s.OID {
			out = slices.Concat(out, l.found[oid])
		}
	}
	if len(s.Also) > 0 {
		out = slices.Clone(out)
		slices.SortStableFunc(out, func(a, b inTheWay) int { return cmp.Compare(b.age, a.age) })
	}
	return out
}

// Once tries a step a single time over conn, as calmly as Run does in that round, from 1 on. The error is ErrBusy, or transient, if the table is busy.
func Once(ctx context.Context, conn *pgx.Conn, s LockedStep, mode LockMode, round int) error {
	var look look
	if err := look.refresh(ctx, conn, []LockedStep{s}, mode); err != nil {
		return err
	}
	wait, err := waitFor(look.of(s), round)
	if err != nil {
		return err
	}
	return s.run(ctx, conn, wait)
}

func (c Calm) step(ctx context.Context, s LockedStep, found []inTheWay, round int) error {
	wait, err := waitFor(found, round)
	if err != nil {
		return err
	}
	err = c.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return s.run(ctx, conn.Conn(), wait) })
	switch {
	case Code(err) == CodeUndefinedTable:
		return nil
	case Code(err) == CodeLockNotAvailable && len(found) > 0:
		return fmt.Errorf("%w by %s, perhaps: %w", ErrBusy, found[0].who, err)
	}
	return err
}

// waitFor looks before anybody queues: behind a transaction that has been open for long, even a short wait, repeated, would only hurt.
func waitFor(found []inTheWay, round int) (time.Duration, error) {
	if i := slices.IndexFunc(found, func(w inTheWay) bool { return w.wraparound }); i >= 0 {
		return 0, fmt.Errorf("%w by a vacuum that must not be disturbed (%s)", ErrBusy, found[i].who)
	}
	maintenance := len(found) > 0 && !slices.ContainsFunc(found, func(w inTheWay) bool { return !w.maintenance })
	switch {
	case maintenance && round > 3:
		return longWait, nil
	case round > patience && (len(found) == 0 || found[0].age < stuck.Seconds()):
		return min(shortWait<<min(round-patience, 8), maxWait), nil
	case len(found) > 0 && found[0].age > oldEnough.Seconds():
		return 0, fmt.Errorf("%w by %s, open for %v", ErrBusy, found[0].who, time.Duration(found[0].age*float64(time.Second)).Round(time.Millisecond))
	}
	return shortWait, nil
}

// run carries the step out in one round trip.
func (s LockedStep) run(ctx context.Context, conn *pgx.Conn, wait time.Duration) error {
	statements := append([]string{"BEGIN ISOLATION LEVEL READ COMMITTED", fmt.Sprintf(boundWaitSQL, wait.Milliseconds())}, s.Statements...)
	return Several(ctx, conn, append(statements, "COMMIT")...)
}

// boundWaitSQL: of a long wait no more than deadlock_timeout and a little is used, the moment at which autovacuum is cancelled.
const boundWaitSQL = `
SELECT set_config('lock_timeout', least(%d::bigint, greatest(100,
  (SELECT setting::bigint + 200 FROM pg_settings WHERE name = 'deadlock_timeout')))::text || 'ms', true)`
