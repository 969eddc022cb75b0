package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/metrics"
	"replicator/replication"
)

// Options say where and under which fence changes are applied.
type Options struct {
	URL string
	ID  postgres.Identity
	// Direction is replication.Forward or Reverse: which stored position moves.
	Direction string
	// TypeNames gives the origin's names of types (format_type), for the check against drift.
	TypeNames func(ctx context.Context, oids []uint32, mods []int32) ([]string, error)
	Metrics   *metrics.Postgres
}

// Applier applies batches over one session. It isn't safe for concurrent use.
type Applier struct {
	o        Options
	conn     *pgx.Conn
	position replication.Position
	plans    map[*replication.Relation]*plan
	prepared map[string]string
	serial   int
	open     bool // a transaction of pieces is under way
	pending  counts
}

type counts map[string]int

// Open connects and reads the stored position, from which the stream must go on.
func Open(ctx context.Context, o Options) (*Applier, error) {
	conn, err := postgres.Connect(ctx, o.URL, o.ID, "apply")
	if err != nil {
		return nil, err
	}
	a := &Applier{o: o, conn: conn, plans: map[*replication.Relation]*plan{}, prepared: map[string]string{}, pending: counts{}}
	if err := a.prepareSession(ctx); err != nil {
		a.Close(ctx)
		return nil, err
	}
	return a, nil
}

func (a *Applier) prepareSession(ctx context.Context) error {
	if _, err := a.conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
		return fmt.Errorf("prepare the apply session: %w", err)
	}
	if _, err := a.conn.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		return retry.Stop(&preflight.Hinted{Code: "no-replica-role", Err: fmt.Errorf("set session_replication_role: %w", err),
			Hint: "let the role do so: GRANT SET ON PARAMETER session_replication_role TO the role (PostgreSQL 15 and later), or use a role that may"})
	}
	// The arrays' lengths are unknown to the planner; an index scan for each row is what keys call for.
	if _, err := a.conn.Exec(ctx, `SET plan_cache_mode = force_generic_plan`); err != nil {
		return fmt.Errorf("prepare the apply session: %w", err)
	}
	err := a.conn.QueryRow(ctx, `SELECT position FROM replicator.position WHERE migration = $1 AND pair = $2 AND direction = $3`,
		a.o.ID.Migration, a.o.ID.Pair, a.o.Direction).Scan(&a.position)
	if errors.Is(err, pgx.ErrNoRows) {
		return retry.Stop(fmt.Errorf("no %s position is stored for pair %q", a.o.Direction, a.o.ID.Pair))
	}
	if err != nil {
		return fmt.Errorf("read the %s position: %w", a.o.Direction, err)
	}
	return nil
}

// Position is what the destination has, as far as this session knows.
func (a *Applier) Position() replication.Position { return a.position }

// Close ends the session; an open transaction is rolled back by the server.
func (a *Applier) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = a.conn.Close(ctx)
}

// Apply carries out a batch. For a batch with Last set it commits and returns the destination's write-ahead log insert position after
// the commit: the batch is durable once the destination has flushed up to it. After an error the Applier must be closed; the
// stored position tells what was committed.
//
// Errors: replication.ErrDeposed when another process leads; a preflight.Hinted that says what drifted or which row was missing.
func (a *Applier) Apply(ctx context.Context, b *replication.Batch) (uint64, error) {
	if b.First {
		if _, err := a.conn.PgConn().Exec(ctx, "BEGIN").ReadAll(); err != nil {
			return 0, fmt.Errorf("begin: %w", err)
		}
		a.open = true
	}
	if err := a.changes(ctx, b); err != nil {
		return 0, err
	}
	for i := range b.Changes {
		a.pending[b.Changes[i].Op.String()]++
	}
	if !b.Last {
		return 0, nil
	}
	return a.commit(ctx, b)
}

func (a *Applier) changes(ctx context.Context, b *replication.Batch) error {
	if len(b.Changes) == 0 {
		return nil
	}
	statements, fast, err := a.compile(ctx, b)
	if err != nil {
		return err
	}
	if fast {
		if !a.fast(b) {
			fast = false
		}
	}
	if fast {
		if _, err := a.conn.PgConn().Exec(ctx, "SAVEPOINT replicator").ReadAll(); err != nil {
			return fmt.Errorf("set a savepoint: %w", err)
		}
		err := a.run(ctx, statements)
		if err == nil {
			_, err := a.conn.PgConn().Exec(ctx, "RELEASE SAVEPOINT replicator").ReadAll()
			if err != nil {
				return fmt.Errorf("release the savepoint: %w", err)
			}
			return nil
		}
		if !refused(err) {
			return err
		}
		if _, err := a.conn.PgConn().Exec(ctx, "ROLLBACK TO SAVEPOINT replicator").ReadAll(); err != nil {
			return fmt.Errorf("return to the savepoint: %w", err)
		}
	}
	return a.inOrder(ctx, b)
}

// fast tells whether the batch is worth the set form: one change is its own row statement.
func (a *Applier) fast(b *replication.Batch) bool { return len(b.Changes) > 1 }

// refused tells whether the set form failed in a way that the original order may not: a constraint, or a count.
func refused(err error) bool {
	var count *countError
	return errors.As(err, &count) || strings.HasPrefix(postgres.Code(err), "23")
}

// compile turns the batch into set statements; fast is false where only the original order will do.
func (a *Applier) compile(ctx context.Context, b *replication.Batch) (out []statement, fast bool, err error) {
	c := newCompactor()
	fast = true
	for i := range b.Changes {
		p, err := a.plan(ctx, b.Changes[i].Relation)
		if err != nil {
			return nil, false, err
		}
		if b.Changes[i].Op == replication.Truncate {
			for _, r := range b.Changes[i].Truncated {
				if _, err := a.plan(ctx, r); err != nil {
					return nil, false, err
				}
			}
		}
		if fast && !c.add(p, b.Changes[i]) {
			fast = false
		}
	}
	if !fast || !a.fast(b) {
		return nil, fast, nil
	}
	for _, s := range c.segments {
		if s.ordered == nil {
			sets, err := a.sets(ctx, s)
			if err != nil {
				return nil, false, a.preparing(err)
			}
			out = append(out, sets...)
			continue
		}
		for i := range s.ordered {
			st, err := a.one(ctx, s.plan, &s.ordered[i])
			if err != nil {
				return nil, false, a.preparing(err)
			}
			out = append(out, st)
		}
	}
	return out, true, nil
}

// preparing adds a remedy to the error of a statement that the destination can't even plan: the table was changed meanwhile.
func (a *Applier) preparing(err error) error {
	switch postgres.Code(err) {
	case postgres.CodeUndefinedTable, postgres.CodeUndefinedColumn, postgres.CodeUndefinedObject:
		return retry.Stop(&preflight.Hinted{Code: "schema-drift", Err: err, Hint: "nothing is lost and the pair waits: make the destination's table like the origin's"})
	case postgres.CodeInsufficientPriv:
		return retry.Stop(&preflight.Hinted{Code: "privilege", Err: err, Hint: "grant the destination's role what it lacks; the pair then goes on"})
	}
	return err
}

// inOrder carries the batch out change by change.
func (a *Applier) inOrder(ctx context.Context, b *replication.Batch) error {
	statements := make([]statement, 0, len(b.Changes))
	for i := range b.Changes {
		p, err := a.plan(ctx, b.Changes[i].Relation)
		if err != nil {
			return err
		}
		st, err := a.one(ctx, p, &b.Changes[i])
		if err != nil {
			return a.preparing(err)
		}
		statements = append(statements, st)
	}
	err := a.run(ctx, statements)
	if err == nil {
		return nil
	}
	var count *countError
	var st *statementError
	switch {
	case errors.As(err, &count):
		return retry.Stop(&preflight.Hinted{Code: "row-mismatch",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, hit %d rows on the destination instead of %d", count.st.op, count.st.table, a.describe(count.st.change), a.position, count.rows, count.st.expect),
			Hint: fmt.Sprintf("somebody changed the destination: nothing more is applied. Run `replicator resync --pair %s --table %s` to copy the table again", a.o.ID.Pair, count.st.table)})
	case errors.As(err, &st) && strings.HasPrefix(postgres.Code(err), "23"):
		return retry.Stop(&preflight.Hinted{Code: "constraint",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, is refused by the destination: %w", st.st.op, st.st.table, a.describe(st.st.change), a.position, withoutDetail(err)),
			Hint: fmt.Sprintf("the destination holds rows or constraints that the origin doesn't. Mend it, or run `replicator resync --pair %s --table %s`", a.o.ID.Pair, st.st.table)})
	}
	return a.preparing(err)
}

// withoutDetail keeps a server error's message without its detail, which shows values.
func withoutDetail(err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s (SQLSTATE %s, constraint %q)", pe.Message, pe.Code, pe.ConstraintName)
	}
	return err
}

// describe names the row of a change by its key.
func (a *Applier) describe(c *replication.Change) string {
	if c == nil {
		return "?"
	}
	p := a.plans[c.Relation]
	values := c.Old
	if values == nil {
		values = c.New
	}
	if p == nil || values == nil || len(p.key) == 0 {
		return "the whole row matches (the table has no key)"
	}
	var parts []string
	for _, i := range p.key {
		parts = append(parts, fmt.Sprintf("%s = %s", p.columns[i].name, replication.QuoteLiteral(string(values[i].Data))))
	}
	return strings.Join(parts, " and ")
}

func (a *Applier) plan(ctx context.Context, r *replication.Relation) (*plan, error) {
	if p := a.plans[r]; p != nil {
		return p, nil
	}
	t, err := readTarget(ctx, a.conn, r.Name)
	if err != nil {
		return nil, err
	}
	oids, mods := make([]uint32, len(r.Columns)), make([]int32, len(r.Columns))
	for i, c := range r.Columns {
		oids[i], mods[i] = c.TypeOID, c.TypeMod
	}
	types, err := a.o.TypeNames(ctx, oids, mods)
	if err != nil {
		return nil, err
	}
	if err := checkDrift(r, t, types); err != nil {
		return nil, err
	}
	p := newPlan(r, t)
	a.plans[r] = p
	return p, nil
}

const moveSQL = `UPDATE replicator.position SET position = $1, updated_at = clock_timestamp()
WHERE migration = $2 AND pair = $3 AND direction = $4 AND epoch = $5 AND position = $6`

// commit moves the position, checks that it was ours to move, and commits.
func (a *Applier) commit(ctx context.Context, b *replication.Batch) (uint64, error) {
	tag, err := a.conn.Exec(ctx, moveSQL, string(b.Position), a.o.ID.Migration, a.o.ID.Pair, a.o.Direction, a.o.ID.Epoch, string(a.position))
	if err != nil {
		return 0, fmt.Errorf("move the position to %s: %w", b.Position, err)
	}
	if tag.RowsAffected() != 1 {
		return 0, retry.Stop(&preflight.Hinted{Code: "deposed", Err: fmt.Errorf("move the position from %s to %s: %w", a.position, b.Position, replication.ErrDeposed),
			Hint: "this process stands down; look at the one that took over"})
	}
	results, err := a.conn.PgConn().Exec(ctx, "COMMIT; SELECT pg_current_wal_insert_lsn()").ReadAll()
	if err != nil {
		return 0, fmt.Errorf("commit up to %s: %w", b.Position, err)
	}
	a.open = false
	if len(results) != 2 || results[0].CommandTag.String() != "COMMIT" || len(results[1].Rows) != 1 {
		return 0, fmt.Errorf("commit up to %s: the server answered %q", b.Position, results[0].CommandTag)
	}
	a.position = b.Position
	for op, n := range a.pending {
		a.o.Metrics.Applied(op, n)
	}
	clear(a.pending)
	a.o.Metrics.AppliedTransactions(len(b.Marks))
	lsn, err := pglogrepl.ParseLSN(string(results[1].Rows[0][0]))
	if err != nil {
		return 0, fmt.Errorf("commit up to %s: %w", b.Position, err)
	}
	return endOfRecord(uint64(lsn)), nil
}

// endOfRecord turns an insert position into the end of the record before it. At the start of a page the insert position already counts
// the page's header (40 bytes at most), which nobody flushes before there is a record in the page.
func endOfRecord(lsn uint64) uint64 {
	const page, header = 8192, 40
	if off := lsn % page; off <= header {
		return lsn - off
	}
	return lsn
}
