package state

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/preflight"
	"replicator/internal/retry"
)

// upgrades are the steps from an empty schema to today's. The n-th makes version n+1.
var upgrades = []string{
	`
CREATE TABLE replicator.migration (
	name text PRIMARY KEY,
	epoch bigint NOT NULL DEFAULT 0,
	created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE replicator.migration IS 'One row a migration that touches this database; epoch counts who has taken the lead.';
CREATE TABLE replicator.pair (
	migration text NOT NULL,
	pair text NOT NULL,
	step text NOT NULL DEFAULT 'new',
	capture text NOT NULL DEFAULT '',
	source_system text NOT NULL DEFAULT '',
	fingerprint text NOT NULL DEFAULT '',
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (migration, pair)
);
CREATE TABLE replicator.position (
	migration text NOT NULL,
	pair text NOT NULL,
	direction text NOT NULL,
	position text NOT NULL,
	epoch bigint NOT NULL,
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (migration, pair, direction)
) WITH (fillfactor = 10);
COMMENT ON TABLE replicator.position IS 'How far this database has applied the other side''s changes; moved in the same transaction as the rows.';
CREATE TABLE replicator.copy (
	migration text NOT NULL,
	pair text NOT NULL,
	schema_name text NOT NULL,
	table_name text NOT NULL,
	state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'copying', 'copied')),
	snapshot text NOT NULL DEFAULT '',
	lsn text NOT NULL DEFAULT '0/0',
	rows bigint NOT NULL DEFAULT 0,
	bytes bigint NOT NULL DEFAULT 0,
	started_at timestamptz,
	finished_at timestamptz,
	PRIMARY KEY (migration, pair, schema_name, table_name)
);
CREATE TABLE replicator.ddl (
	migration text NOT NULL,
	pair text NOT NULL,
	stage text NOT NULL,
	seq integer NOT NULL,
	section text NOT NULL,
	type text NOT NULL,
	schema_name text NOT NULL,
	name text NOT NULL,
	statement text NOT NULL,
	done_at timestamptz,
	PRIMARY KEY (migration, pair, stage, seq)
);
CREATE TABLE replicator.undo (
	migration text NOT NULL,
	pair text NOT NULL,
	side text NOT NULL,
	what text NOT NULL,
	schema_name text NOT NULL,
	name text NOT NULL,
	previous text NOT NULL,
	PRIMARY KEY (migration, pair, side, what, schema_name, name)
);
COMMENT ON TABLE replicator.undo IS 'What finish puts back: settings of the application''s own objects that were changed, as they were before.';
CREATE TABLE replicator.journal (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	migration text NOT NULL,
	epoch bigint NOT NULL,
	record text NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX journal_migration ON replicator.journal (migration, id);
CREATE TABLE replicator.audit (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	migration text NOT NULL,
	who text NOT NULL,
	action text NOT NULL,
	detail text NOT NULL DEFAULT '',
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE replicator.published (
	migration text PRIMARY KEY,
	epoch bigint NOT NULL,
	status text NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE replicator.published IS 'The leader''s status document, for the standbys.';
CREATE TABLE replicator.request (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	migration text NOT NULL,
	action text NOT NULL,
	body text NOT NULL,
	answer text,
	at timestamptz NOT NULL DEFAULT clock_timestamp(),
	answered_at timestamptz
);
COMMENT ON TABLE replicator.request IS 'Actions that standbys hand to the leader.';
CREATE TABLE replicator.heartbeat (
	id integer PRIMARY KEY,
	token text NOT NULL,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE replicator.heartbeat IS 'Rows that the stream carries for itself: heartbeats and fences.';
`,
	`
CREATE TABLE replicator.setting (
	migration text NOT NULL,
	pair text NOT NULL,
	key text NOT NULL,
	value text NOT NULL,
	PRIMARY KEY (migration, pair, key)
);
COMMENT ON TABLE replicator.setting IS 'What a pair has chosen and must remember: each direction''s capture, each side''s gate token.';
`,
	`
ALTER TABLE replicator.position ADD COLUMN session bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN replicator.position.session IS 'Counts the sessions that have applied here. Only the last may move the position: what an earlier one has sent may still be on its way.';
`,
	`
ALTER TABLE replicator.copy ADD COLUMN storage text NOT NULL DEFAULT '';
COMMENT ON COLUMN replicator.copy.storage IS 'Where the source stored the table''s rows when they were last known to be the target''s too; by it an ALTER TABLE that rewrote them is noticed.';
`,
	`
ALTER TABLE replicator.version REPLICA IDENTITY FULL; -- it has no key, and can't be updated otherwise where somebody publishes all tables
CREATE TABLE replicator.witness (
	n bigint GENERATED ALWAYS AS IDENTITY,
	id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
	migration text NOT NULL,
	pair text NOT NULL,
	beat bigint NOT NULL DEFAULT 0,
	at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE replicator.witness IS 'Commits of ours, each behind what the other side has taken over. A row is counted up by the one session that made it; a server that lacks one, or counts less, has lost commits.';
ALTER TABLE replicator.copy ADD COLUMN witness text NOT NULL DEFAULT '';
COMMENT ON COLUMN replicator.copy.witness IS 'The source''s witness of what the copy has seen, until the stream has passed its seam; empty: none.';
`,
}

// Ensure creates or upgrades schema `replicator`. It is idempotent and safe against another process doing the same.
func Ensure(ctx context.Context, pool *pgxpool.Pool) error {
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		// Statements without parameters may share a round trip.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('replicator:schema', 0));
			CREATE SCHEMA IF NOT EXISTS replicator;
			CREATE TABLE IF NOT EXISTS replicator.version (version integer NOT NULL);
			INSERT INTO replicator.version SELECT 0 WHERE NOT EXISTS (SELECT FROM replicator.version)`); err != nil {
			return err
		}
		var version int
		if err := tx.QueryRow(ctx, `SELECT version FROM replicator.version`, pgx.QueryExecModeSimpleProtocol).Scan(&version); err != nil {
			return err
		}
		if version > len(upgrades) {
			return retry.Stop(&preflight.Hinted{Code: "state-newer", Err: fmt.Errorf("schema replicator has version %d, this program knows up to %d", version, len(upgrades)),
				Hint: "run the program version that made it, or a newer one"})
		}
		if version == len(upgrades) {
			return nil
		}
		_, err := tx.Exec(ctx, strings.Join(upgrades[version:], "")+fmt.Sprintf(`UPDATE replicator.version SET version = %d`, len(upgrades)))
		return err
	})
	if err != nil {
		return fmt.Errorf("prepare schema replicator: %w", err)
	}
	return nil
}

// Exists tells whether schema `replicator` of this program stands in the database.
func Exists(ctx context.Context, pool *pgxpool.Pool) (bool, error) {
	var ok bool
	err := pool.QueryRow(ctx, `SELECT to_regclass('replicator.migration') IS NOT NULL`).Scan(&ok)
	if err != nil {
		return false, fmt.Errorf("look for schema replicator: %w", err)
	}
	return ok, nil
}

// Drop removes schema `replicator` with all that is in it. The gate's triggers must have been removed before.
func Drop(ctx context.Context, pool *pgxpool.Pool) error {
	if _, err := pool.Exec(ctx, `DROP SCHEMA IF EXISTS replicator CASCADE`); err != nil {
		return fmt.Errorf("drop schema replicator: %w", err)
	}
	return nil
}
