package trigger

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/postgres"
	"replicator/replication"
)

// orphansSQL lists what is left of tables without our triggers: of those that were dropped, most of all.
const orphansSQL = `
WITH ours AS (
  SELECT 'DROP FUNCTION IF EXISTS replicator.' || quote_ident(proname) || '()' AS statement, substring(proname FROM '^capture_([0-9]+)$') AS oid FROM pg_proc
  WHERE pronamespace = 'replicator'::regnamespace AND pronargs = 0 AND proname ~ '^capture_[0-9]+$'
  UNION ALL
  SELECT 'DROP TABLE IF EXISTS replicator.' || quote_ident(relname), substring(relname FROM '^capture_([0-9]+)_[01]$') FROM pg_class
  WHERE relnamespace = 'replicator'::regnamespace AND relkind = 'r' AND relname ~ '^capture_[0-9]+_[01]$')
SELECT statement FROM ours WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = ours.oid::oid)`

// Retire removes the triggers, functions and logs of tables that are not among keep, as calmly as Uninstall, and what tables have left that were dropped. It
// waits until ctx ends for tables that are busy; a stream of the tables of keep may run beside it, but no Install.
func Retire(ctx context.Context, pool *pgxpool.Pool, log *slog.Logger, keep []replication.TableName) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	rows, err := pool.Query(ctx, orphansSQL)
	if err != nil {
		return fmt.Errorf("look for what dropped tables have left in the change log: %w", err)
	}
	drops, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for what dropped tables have left in the change log: %w", err)
	}
	for _, sql := range drops {
		if _, err := pool.Exec(ctx, sql); err != nil {
			return fmt.Errorf("remove the change log of a dropped table: %s: %w", sql, err)
		}
	}
	steps, err := installed(ctx, pool, func(t replication.TableName) bool { return !slices.Contains(keep, t) })
	if err != nil {
		return fmt.Errorf("retire change logs: %w", err)
	}
	for i, s := range steps {
		statements := append(s.Statements, "DROP FUNCTION IF EXISTS "+functionName(s.OID)+"()")
		for slot := range slots {
			statements = append(statements, "DROP TABLE IF EXISTS "+logTable(s.OID, slot))
		}
		steps[i].Statements = statements
	}
	if len(steps) == 0 {
		return nil
	}
	log.Info("change log: tables are no longer replicated; what was made on them is removed", "tables", len(steps))
	run := postgres.Calm{Pool: pool, Log: log, What: "retired change log"}
	if err := run.Run(ctx, steps, postgres.AccessExclusive, func(s postgres.LockedStep, err error) error {
		return fmt.Errorf("remove the capture of %s: %w", s.Name, err)
	}); err != nil {
		return fmt.Errorf("retire change logs: %w", err)
	}
	return nil
}

// installed are the steps that drop the triggers of those captured tables that wanted picks.
func installed(ctx context.Context, pool *pgxpool.Pool, wanted func(replication.TableName) bool) ([]postgres.LockedStep, error) {
	rows, err := pool.Query(ctx, installedSQL)
	if err != nil {
		return nil, fmt.Errorf("list its triggers: %w", err)
	}
	var steps []postgres.LockedStep
	var oid uint32
	var name replication.TableName
	var triggers []string
	_, err = pgx.ForEachRow(rows, []any{&oid, &name.Schema, &name.Name, &triggers}, func() error {
		if !wanted(name) {
			return nil
		}
		s := postgres.LockedStep{OID: oid, Name: name.String()}
		for _, t := range triggers {
			s.Statements = append(s.Statements, "DROP TRIGGER IF EXISTS "+replication.QuoteIdent(t)+" ON "+name.Quoted())
		}
		steps = append(steps, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list its triggers: %w", err)
	}
	return steps, nil
}
