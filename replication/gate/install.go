package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
)

// Install makes schema replicator, the function (disarmed, unless it exists: an armed gate stays armed) and the triggers on the given
// tables and on everything through which their rows can be written: partitioned ancestors and inheritance parents. CREATE TRIGGER
// locks SHARE ROW EXCLUSIVE, which readers don't mind and writers do; so each table is its own short transaction, tried
// again with back-off until ctx ends, the busy ones after the others. What is already right is left alone: calling it
// again after a crash, or with more tables, does only what is missing. A trigger that somebody disabled is enabled again.
//
// The error names every table that couldn't be gated, with what to do.
func (g *Gate) Install(ctx context.Context, tables []replication.TableName) error {
	if err := g.installFunction(ctx); err != nil {
		return fmt.Errorf("install the write gate: %w", err)
	}
	todo, err := g.wanted(ctx, tables)
	if err != nil {
		return fmt.Errorf("install the write gate: %w", err)
	}
	if err := g.inRounds(ctx, todo, "install", postgres.ShareRowExclusive, func(r relation) []string {
		var out []string
		if r.present {
			out = append(out, "DROP TRIGGER IF EXISTS replicator_gate ON "+r.name.Quoted())
		}
		return append(out, "CREATE TRIGGER replicator_gate BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON "+r.name.Quoted()+
			" FOR EACH STATEMENT EXECUTE FUNCTION replicator.gate()")
	}); err != nil {
		return fmt.Errorf("install the write gate: %w", err)
	}
	// A table renamed or rebuilt meanwhile looks dropped to the step that locked it.
	if todo, err = g.wanted(ctx, tables); err != nil {
		return fmt.Errorf("install the write gate: %w", err)
	}
	if len(todo) > 0 {
		return fmt.Errorf("install the write gate: %s changed meanwhile: install again", todo[0].name)
	}
	return nil
}

func (g *Gate) installFunction(ctx context.Context) error {
	// Looked for first: on a database where everything is in place nothing is written, and no CREATE right is needed.
	if _, err := readBody(ctx, g.pool); err == nil {
		return g.mayReplace(ctx)
	} else if !errors.Is(err, ErrNotInstalled) {
		return err
	}
	return pgx.BeginTxFunc(ctx, g.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if err := lockFunction(ctx, tx); err != nil {
			return err
		}
		if _, err := readBody(ctx, tx); !errors.Is(err, ErrNotInstalled) {
			return err
		}
		if _, err := tx.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS replicator`); err != nil {
			return fmt.Errorf("create schema replicator: %w: grant this role CREATE on the database", err)
		}
		if err := (body{}).store(ctx, tx); err != nil {
			return fmt.Errorf("create replicator.gate(): %w", err)
		}
		return nil
	})
}

const mayReplaceSQL = `
SELECT pg_has_role(p.proowner, 'USAGE') FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = 'replicator' AND p.proname = 'gate' AND p.pronargs = 0`

// mayReplace tells now, and not at the freeze, that another role owns the function.
func (g *Gate) mayReplace(ctx context.Context) error {
	var may bool
	if err := g.pool.QueryRow(ctx, mayReplaceSQL).Scan(&may); err != nil {
		return fmt.Errorf("read the owner of replicator.gate(): %w", err)
	}
	if !may {
		return errors.New("replicator.gate() belongs to another role: connect with the role that installed the gate, or give this one the function (ALTER FUNCTION replicator.gate() OWNER TO …)")
	}
	return nil
}

type relation struct {
	oid     uint32
	name    replication.TableName
	present bool // carries a trigger of our name that isn't right (disabled, or for fewer events)
}

// gatedKinds: ordinary tables and partitioned ones. A statement fires the statement triggers only of the relation that it names; views end at
// their base tables, foreign tables hold rows of another server. Temporary children belong to one session.
const wantedSQL = `
WITH RECURSIVE gatedKinds(kind) AS (VALUES ('r'::"char"), ('p')),
named AS (
  SELECT x.nspname, x.relname, c.oid
  FROM unnest($1::text[], $2::text[]) AS x(nspname, relname)
  LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = x.nspname
  LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = x.relname AND c.relkind IN (SELECT kind FROM gatedKinds)),
family(oid) AS (
  SELECT oid FROM named WHERE oid IS NOT NULL
  UNION
  SELECT i.inhparent FROM family f JOIN pg_catalog.pg_inherits i ON i.inhrelid = f.oid)
SELECT nspname, relname, 0::oid, false, false FROM named WHERE oid IS NULL
UNION ALL
SELECT n.nspname, c.relname, c.oid, t.oid IS NOT NULL,
       coalesce(t.tgtype = 62 AND t.tgenabled = 'O' AND t.tgqual IS NULL AND p.proname = 'gate' AND pn.nspname = 'replicator', false)
FROM family f
JOIN pg_catalog.pg_class c ON c.oid = f.oid AND c.relkind IN (SELECT kind FROM gatedKinds)
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid AND t.tgname = 'replicator_gate' AND NOT t.tgisinternal
LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
LEFT JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
ORDER BY 1, 2`

// wanted returns the relations that still need a trigger.
func (g *Gate) wanted(ctx context.Context, tables []replication.TableName) ([]relation, error) {
	var schemas, names []string
	for _, t := range tables {
		schemas, names = append(schemas, t.Schema), append(names, t.Name)
	}
	rows, err := g.pool.Query(ctx, wantedSQL, schemas, names)
	if err != nil {
		return nil, fmt.Errorf("look for missing triggers: %w", err)
	}
	defer rows.Close()
	var out []relation
	var absent []string
	for rows.Next() {
		var r relation
		var right bool
		if err := rows.Scan(&r.name.Schema, &r.name.Name, &r.oid, &r.present, &right); err != nil {
			return nil, fmt.Errorf("look for missing triggers: %w", err)
		}
		switch {
		case r.oid == 0:
			absent = append(absent, r.name.String())
		case !right:
			out = append(out, r)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look for missing triggers: %w", err)
	}
	if len(absent) > 0 {
		return nil, fmt.Errorf("no such table: %s: read the list of tables again", strings.Join(absent, ", "))
	}
	return out, nil
}

const installedSQL = `
SELECT c.oid, n.nspname, c.relname
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
WHERE pn.nspname = 'replicator' AND p.proname = 'gate' AND t.tgname = 'replicator_gate'
ORDER BY 2, 3`

// Uninstall removes the triggers, then the function, then schema replicator if nothing else is in it. DROP TRIGGER locks ACCESS
// EXCLUSIVE, which also waits for readers; so as with Install each table is its own short transaction, tried again until ctx ends. A
// second call goes on where the first one ended. Whatever the gate's state was, the database accepts writes afterwards.
func (g *Gate) Uninstall(ctx context.Context) error {
	rows, err := g.pool.Query(ctx, installedSQL)
	if err != nil {
		return fmt.Errorf("uninstall the write gate: list its triggers: %w", err)
	}
	todo, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (relation, error) {
		var r relation
		err := row.Scan(&r.oid, &r.name.Schema, &r.name.Name)
		return r, err
	})
	if err != nil {
		return fmt.Errorf("uninstall the write gate: list its triggers: %w", err)
	}
	if err := g.inRounds(ctx, todo, "uninstall", postgres.AccessExclusive, func(r relation) []string {
		return []string{"DROP TRIGGER IF EXISTS replicator_gate ON " + r.name.Quoted()}
	}); err != nil {
		return fmt.Errorf("uninstall the write gate: %w", err)
	}
	if err := pgx.BeginTxFunc(ctx, g.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if err := lockFunction(ctx, tx); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DROP FUNCTION IF EXISTS replicator.gate()`)
		return err
	}); err != nil && postgres.Code(err) != "3F000" {
		return fmt.Errorf("uninstall the write gate: drop replicator.gate(): %w", err)
	}
	return g.dropSchema(ctx)
}

// dropSchema leaves the schema alone where it holds anything else (SQLSTATE 2BP01) or belongs to somebody else (42501).
func (g *Gate) dropSchema(ctx context.Context) error {
	_, err := g.pool.Exec(ctx, `DROP SCHEMA IF EXISTS replicator RESTRICT`)
	if code := postgres.Code(err); code == "2BP01" || code == postgres.CodeInsufficientPriv {
		return nil
	}
	if err != nil {
		return fmt.Errorf("uninstall the write gate: drop schema replicator: %w", err)
	}
	return nil
}

// inRounds runs each relation's statements in a transaction of its own, the busy ones again after the others.
func (g *Gate) inRounds(ctx context.Context, todo []relation, verb string, mode postgres.LockMode, statements func(relation) []string) error {
	steps := make([]postgres.LockedStep, len(todo))
	for i, r := range todo {
		steps[i] = postgres.LockedStep{OID: r.oid, Name: r.name.String(), Statements: statements(r)}
	}
	run := postgres.Calm{Pool: g.pool, Log: g.log, What: "write gate: " + verb}
	return run.Run(ctx, steps, mode, func(s postgres.LockedStep, err error) error {
		i := slices.IndexFunc(todo, func(r relation) bool { return r.oid == s.OID })
		return explain(todo[i], verb, err)
	})
}

func explain(r relation, verb string, err error) error {
	if postgres.Code(err) == postgres.CodeInsufficientPriv {
		return fmt.Errorf("%s the trigger on %s: %w: give this role the table (ALTER TABLE %s OWNER TO …) or membership in its owner", verb, r.name, err, r.name.Quoted())
	}
	return fmt.Errorf("%s the trigger on %s: %w", verb, r.name, err)
}
