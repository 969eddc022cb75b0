package trigger

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/replication"
)

// silencedSQL counts how often Silence was called. A stream that began before the last time stops at the first window that sees it: the count
// moves in the transaction from which on nothing is logged.
const silencedSQL = `SELECT coalesce((SELECT beat FROM replicator.capture WHERE id = 2), 0)::text`

const silenceSQL = `INSERT INTO replicator.capture VALUES (2, 1) ON CONFLICT (id) DO UPDATE SET beat = capture.beat + 1`

// functionsSQL keeps those of the tables that have a function.
const functionsSQL = `SELECT x.oid FROM unnest($1::oid[]) x(oid) WHERE to_regprocedure('replicator.capture_' || x.oid || '()') IS NOT NULL`

// lostHint says what follows from a capture that was given up.
const lostHint = "the table's log is made anew and the table copied again, which a pair from source to target does by itself; if this stays: `replicator resync` for the pair"

// Silence gives up the capture of tables, named by their oids, so that nothing of it can make the application's writes fail: their functions are
// replaced by one that does nothing and has no description. That locks no table, waits for no writer and may be repeated; tables without a function are
// left alone. What commits from then on is not logged: every stream stops before it hands over a window that sees this (capture-lost), Uncaptured names
// the tables, and Install makes their logs anew.
func Silence(ctx context.Context, pool *pgxpool.Pool, oids ...uint32) error {
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(advisoryKey)); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, functionsSQL, oids)
		if err != nil {
			return err
		}
		there, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
		if err != nil || len(there) == 0 {
			return err
		}
		for _, oid := range there {
			if _, err := tx.Exec(ctx, "CREATE OR REPLACE FUNCTION "+functionName(oid)+"() RETURNS trigger LANGUAGE plpgsql AS '"+voidBody+"'"); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, silenceSQL)
		return err
	})
	if err != nil {
		return fmt.Errorf("give up the capture of tables: %w", err)
	}
	return nil
}

// unsilenced is a statement that fails if Silence was called since the stream began, and otherwise keeps it from being so until the transaction's end.
func (r *reader) unsilenced() string {
	return "DO " + replication.QuoteLiteral("BEGIN PERFORM pg_catalog.pg_advisory_xact_lock("+strconv.FormatInt(advisoryKey, 10)+"); IF ("+silencedSQL+") OPERATOR(pg_catalog.<>) '"+r.silenced+
		"' THEN RAISE EXCEPTION 'the capture of a table was given up meanwhile'; END IF; END")
}

const triggersSQL = `
SELECT c.oid, n.nspname, c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgname = 'replicator_capture' AND EXISTS (SELECT FROM pg_proc p WHERE p.oid = t.tgfoid AND p.pronamespace = to_regnamespace('replicator') AND p.proname = 'capture_' || c.oid)
ORDER BY 2, 3`

// Lost returns, of all tables with a capture's trigger, those of which changes are missing from the log or will be, as Uncaptured does, and among
// them those whose function makes the application's writes fail, by oid: these are for Silence. It waits for nobody's lock.
func Lost(ctx context.Context, q querier) (lost []replication.TableName, failing []uint32, err error) {
	rows, err := q.Query(ctx, triggersSQL)
	if err != nil {
		return nil, nil, fmt.Errorf("list the capture's triggers: %w", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (t replication.Table, err error) {
		err = row.Scan(&t.OID, &t.Name.Schema, &t.Name.Name)
		return t, err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list the capture's triggers: %w", err)
	}
	if len(tables) == 0 {
		return nil, nil, nil
	}
	found, err := look(ctx, q, tables)
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tables {
		f := found[t.OID]
		d, ok := parseDescription(f.src)
		if f.oid == 0 || (ok && f.has(d)) {
			continue
		}
		lost = append(lost, t.Name)
		if ok && f.fails(d) {
			failing = append(failing, t.OID)
		}
	}
	return lost, failing, nil
}
