package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"replicator/replication"
)

// State is what the server's catalog says about the gate.
type State struct {
	// Installed: the function exists.
	Installed bool
	// Armed: writes are refused now. Permanent: without a deadline.
	Armed, Permanent bool
	// Expired: it was armed with a deadline that has passed by the server's clock; writes pass.
	Expired bool
	// Deadline is when it opens by itself (server's clock), zero if permanent or disarmed; Remaining is the time until then.
	Deadline  time.Time
	Remaining time.Duration
	// Tables are the relations with an enabled trigger on all four events, sorted.
	Tables []replication.TableName

	token string
}

// HeldBy tells whether the gate was armed with this token, expired or not.
func (s State) HeldBy(token string) bool { return s.token != "" && s.token == hashToken(token) }

// Missing returns those of tables that carry no working gate.
func (s State) Missing(tables []replication.TableName) []replication.TableName {
	var out []replication.TableName
	for _, t := range tables {
		if _, found := slices.BinarySearchFunc(s.Tables, t, replication.TableName.Compare); !found {
			out = append(out, t)
		}
	}
	return out
}

// gatedTablesSQL: tgtype 62 is BEFORE (2) | INSERT (4) | DELETE (8) | UPDATE (16) | TRUNCATE (32), without ROW (1). tgenabled O fires
// unless session_replication_role is replica.
const gatedTablesSQL = `
SELECT n.nspname, c.relname
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
WHERE pn.nspname = 'replicator' AND p.proname = 'gate' AND t.tgname = 'replicator_gate' AND t.tgtype = 62 AND t.tgenabled = 'O'
  AND t.tgqual IS NULL`

// State reads the gate as it stands. A database without one is no error: Installed is false.
func (g *Gate) State(ctx context.Context) (State, error) {
	var now time.Time
	b, err := readBody(ctx, g.pool)
	if errors.Is(err, ErrNotInstalled) {
		return State{}, nil
	} else if err != nil {
		return State{}, err
	}
	if err := g.pool.QueryRow(ctx, clockSQL).Scan(&now); err != nil {
		return State{}, fmt.Errorf("read the server's clock: %w", err)
	}
	s := State{Installed: true, Permanent: b.Permanent, Deadline: b.Deadline, token: b.Token}
	s.Armed = b.Armed && (b.Permanent || now.Before(b.Deadline))
	s.Expired = b.Armed && !s.Armed
	if s.Armed && !s.Permanent {
		s.Remaining = b.Deadline.Sub(now)
	}
	rows, err := g.pool.Query(ctx, gatedTablesSQL)
	if err != nil {
		return State{}, fmt.Errorf("list the gated tables: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var t replication.TableName
		if err := rows.Scan(&t.Schema, &t.Name); err != nil {
			return State{}, fmt.Errorf("list the gated tables: %w", err)
		}
		s.Tables = append(s.Tables, t)
	}
	if err := rows.Err(); err != nil {
		return State{}, fmt.Errorf("list the gated tables: %w", err)
	}
	slices.SortFunc(s.Tables, replication.TableName.Compare)
	return s, nil
}
