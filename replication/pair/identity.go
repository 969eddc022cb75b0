package pair

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
	"replicator/replication/state"
)

// identify gives tables without a usable identity REPLICA IDENTITY FULL, since publishing them as they are would make the application's
// own UPDATE and DELETE fail. What was set before is noted for finish.
func (p *Pair) identify(ctx context.Context, s *side, tables []replication.Table) error {
	strict, err := strictIdentities(ctx, s)
	if err != nil {
		return err
	}
	var steps []postgres.LockedStep
	for _, t := range tables {
		strict := strict && generates(t)
		if (t.ReplicaIdentity == replication.IdentityFull && !strict) || t.ReplicaIdentity == replication.IdentityIndex ||
			(t.ReplicaIdentity == replication.IdentityDefault && t.HasPrimaryKey) {
			continue
		}
		form, set := "FULL", replication.IdentityFull
		if strict {
			if form, err = identityIndex(ctx, s, t); err != nil {
				return err
			}
			set = replication.IdentityIndex
		}
		previous := fmt.Sprintf("%c %d %c", t.ReplicaIdentity, t.OID, set)
		if err := p.stored.SaveUndo(ctx, state.Undo{Side: s.name, What: undoIdentity, Schema: t.Name.Schema, Name: t.Name.Name, Previous: previous}); err != nil {
			return err
		}
		steps = append(steps, identityStep(t.OID, t.Name, form))
	}
	return p.calmly(ctx, s, "replica identity", steps, postgres.AccessExclusive, nil)
}

// strictIdentities tells whether the server refuses an UPDATE or DELETE of a published table whose replica identity has generated columns.
func strictIdentities(ctx context.Context, s *side) (bool, error) {
	var version int
	if err := s.pool.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return false, fmt.Errorf("%s: read its version: %w", s.name, err)
	}
	return version >= 180000, nil
}

func generates(t replication.Table) bool { return len(t.Stored()) < len(t.Columns) }

// identitySQL finds what REPLICA IDENTITY USING INDEX takes, without a generated column.
const identitySQL = `
SELECT n.relname FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid
WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) k JOIN pg_attribute x ON x.attrelid = i.indrelid AND x.attnum = k
                  WHERE NOT x.attnotnull OR x.attgenerated <> '')
ORDER BY i.indexrelid LIMIT 1`

// identityIndex names the index that identifies a table's rows where FULL would make the application's UPDATE and DELETE fail: from PostgreSQL 18 on a
// replica identity must have no generated column that isn't published, and FULL has them all.
func identityIndex(ctx context.Context, s *side, t replication.Table) (string, error) {
	var name string
	err := s.pool.QueryRow(ctx, identitySQL, t.OID).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", retry.Stop(&preflight.Hinted{Code: "generated-identity",
			Err:  fmt.Errorf("%s: table %s has generated columns and no key without them: from PostgreSQL 18 on the application could neither update nor delete its rows while it is published", s.name, t.Name),
			Hint: "give it a primary key, or a unique index over NOT NULL columns, that aren't generated; or set capture: trigger; or leave the table out by tables.exclude"})
	}
	if err != nil {
		return "", fmt.Errorf("%s: look for an identity of %s: %w", s.name, t.Name, err)
	}
	return "USING INDEX " + replication.QuoteIdent(name), nil
}

func identityStep(oid uint32, table replication.TableName, form string) postgres.LockedStep {
	return postgres.LockedStep{OID: oid, Name: table.String(), Statements: []string{"ALTER TABLE ONLY " + table.Quoted() + " REPLICA IDENTITY " + form}}
}

const identityNowSQL = `
SELECT n.nspname, c.relname, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = coalesce((SELECT oid FROM pg_class WHERE oid = $1::oid), to_regclass($2)::oid) AND c.relreplident::text = $3`

// restoreIdentities puts replica identities back that identify has changed, unless the application has set another one since.
func (p *Pair) restoreIdentities(ctx context.Context, s *side, undos []state.Undo) error {
	var steps []postgres.LockedStep
	for _, u := range undos {
		if u.What != undoIdentity {
			continue
		}
		note := strings.Fields(u.Previous + " 0 f") // what a note of an earlier version lacks: it is found by name, and had set FULL
		if len(note) > 3 {
			note = note[:3]
		}
		noted, err := strconv.ParseUint(note[1], 10, 32)
		if err != nil {
			return fmt.Errorf("%s: read the note on %s.%s: %w", s.name, u.Schema, u.Name, err)
		}
		name := replication.TableName{Schema: u.Schema, Name: u.Name}
		var oid uint32
		err = s.pool.QueryRow(ctx, identityNowSQL, uint32(noted), name.Quoted(), note[2]).Scan(&name.Schema, &name.Name, &oid)
		if errors.Is(err, pgx.ErrNoRows) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: look for %s: %w", s.name, name, err)
		}
		form := "DEFAULT"
		switch replication.ReplicaIdentity(note[0][0]) {
		case replication.IdentityNothing:
			form = "NOTHING"
		case replication.IdentityFull:
			form = "FULL"
		}
		steps = append(steps, identityStep(oid, name, form))
	}
	return p.calmly(ctx, s, "replica identity", steps, postgres.AccessExclusive, nil)
}
