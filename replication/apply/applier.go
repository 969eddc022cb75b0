package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
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
	// Columns gives the types, by name, of the columns that a table has on the origin now, none if it is gone. A stream describes tables as
	// they were when a change was made; the destination may have followed a later one already. Nil: they must be alike.
	Columns func(ctx context.Context, table replication.TableName) (map[string]string, error)
	// Token, where set, passes the destination's write gate: the role may not set session_replication_role, and the caller has put aside
	// what would act on the changes.
	Token   string
	Metrics *metrics.Postgres
}

// Applier applies batches over one session. It isn't safe for concurrent use.
type Applier struct {
	o        Options
	conn     *pgx.Conn
	position replication.Position
	plans    map[*replication.Relation]*plan
	prepared map[string]string
	serial   int
	segment  uint64 // size of the destination's write-ahead log segments
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
	if err := a.readPosition(ctx); err != nil {
		return err
	}
	if _, err := a.conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
		return fmt.Errorf("prepare the apply session: %w", err)
	}
	if a.o.Token != "" {
		if _, err := a.conn.Exec(ctx, `SELECT set_config('replicator.token', $1, false)`, a.o.Token); err != nil {
			return fmt.Errorf("pass the write gate: %w", err)
		}
	} else if _, err := a.conn.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		return retry.Stop(&preflight.Hinted{Code: "no-replica-role", Err: fmt.Errorf("set session_replication_role: %w", err),
			Hint: "let the role do so: GRANT SET ON PARAMETER session_replication_role TO the role (PostgreSQL 15 and later), or use a role that may"})
	}
	// The arrays' lengths are unknown to the planner; an index scan for each row is what keys call for.
	if _, err := a.conn.Exec(ctx, `SET plan_cache_mode = force_generic_plan`); err != nil {
		return fmt.Errorf("prepare the apply session: %w", err)
	}
	if err := a.conn.QueryRow(ctx, `SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'`).Scan(&a.segment); err != nil {
		return fmt.Errorf("read the size of the write-ahead log's segments: %w", err)
	}
	return nil
}

const holdSQL = `UPDATE replicator.position SET updated_at = clock_timestamp()
WHERE migration = $1 AND pair = $2 AND direction = $3 AND epoch = $4 RETURNING position`

// readPosition reads the stored position by a synchronous commit: an earlier session may have moved it without waiting for the flush, and
// whoever starts a stream at it lets the origin forget what lies before.
func (a *Applier) readPosition(ctx context.Context) error {
	if _, err := a.conn.Exec(ctx, `SET synchronous_commit = on`); err != nil {
		return fmt.Errorf("prepare the apply session: %w", err)
	}
	err := a.conn.QueryRow(ctx, holdSQL, a.o.ID.Migration, a.o.ID.Pair, a.o.Direction, a.o.ID.Epoch).Scan(&a.position)
	if !errors.Is(err, pgx.ErrNoRows) {
		if err != nil {
			return fmt.Errorf("read the %s position: %w", a.o.Direction, err)
		}
		return nil
	}
	var epoch int64
	err = a.conn.QueryRow(ctx, `SELECT epoch FROM replicator.position WHERE migration = $1 AND pair = $2 AND direction = $3`,
		a.o.ID.Migration, a.o.ID.Pair, a.o.Direction).Scan(&epoch)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return retry.Stop(fmt.Errorf("no %s position is stored for pair %q", a.o.Direction, a.o.ID.Pair))
	case err != nil:
		return fmt.Errorf("read the %s position: %w", a.o.Direction, err)
	}
	return a.deposed(fmt.Sprintf("read the %s position, which belongs to epoch %d,", a.o.Direction, epoch))
}

func (a *Applier) deposed(doing string) error {
	return retry.Stop(&preflight.Hinted{Code: "deposed", Err: fmt.Errorf("%s with epoch %d: %w", doing, a.o.ID.Epoch, replication.ErrDeposed),
		Hint: "this process stands down; look at the one that took over"})
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
// It takes two round trips where the set form goes through: the changes with the position's move, then the commit once all counts
// are right.
//
// Errors: replication.ErrDeposed when another process leads; a preflight.Hinted that says what drifted or which row was missing.
func (a *Applier) Apply(ctx context.Context, b *replication.Batch) (uint64, error) {
	if err := a.boundPrepared(ctx); err != nil {
		return 0, err
	}
	if at, err := a.fits(ctx, b); err != nil {
		// What comes before the transaction that doesn't fit is carried out, so that the stored position names the place.
		head, _ := b.Cut(func(m replication.Mark) bool { return m.End > at })
		if !b.Whole() || head == nil || head == b {
			return 0, err
		}
		if _, e := a.Apply(ctx, head); e != nil {
			return 0, e
		}
		return 0, err
	}
	statements, fast, err := a.compile(ctx, b, false)
	if err != nil {
		return 0, err
	}
	var head, tail []statement
	if b.First {
		head = append(head, command("BEGIN"))
	}
	if b.Last {
		move, err := a.move(ctx, b.Position)
		if err != nil {
			return 0, err
		}
		tail = append(tail, move)
	}
	for replace := false; fast; replace = true {
		done, err := a.asSets(ctx, b, head, statements, tail)
		if err != nil {
			return 0, err
		}
		if done {
			return a.finish(ctx, b)
		}
		if !b.Whole() {
			head = nil
		}
		if replace || !b.Net {
			break
		}
		// Net effects have no original order to go back to, and a unique value may have passed from one row to another.
		if statements, fast, err = a.compile(ctx, b, true); err != nil {
			return 0, err
		}
	}
	if err := a.inOrder(ctx, b, head, tail); err != nil {
		return 0, err
	}
	return a.finish(ctx, b)
}

// fits makes the plans of all tables that the batch touches. The error is that of the change with the index at.
func (a *Applier) fits(ctx context.Context, b *replication.Batch) (at int, err error) {
	for i := range b.Changes {
		if _, err := a.plan(ctx, b.Changes[i].Relation); err != nil {
			return i, err
		}
		for _, r := range b.Changes[i].Truncated {
			if _, err := a.plan(ctx, r); err != nil {
				return i, err
			}
		}
	}
	return 0, nil
}

// asSets carries the set form out. Where a constraint or a count refuses it, everything is as before: the transaction is undone, or, for a
// piece, taken back to where it began.
func (a *Applier) asSets(ctx context.Context, b *replication.Batch, head, statements, tail []statement) (done bool, err error) {
	first := head
	if !b.Whole() {
		first = append(slices.Clone(head), command("SAVEPOINT replicator"))
	}
	err = a.run(ctx, slices.Concat(first, statements, tail))
	switch {
	case err == nil:
		return true, nil
	case !refused(err):
		return false, a.explain(err, b.Position)
	case b.Whole():
		return false, a.command(ctx, "ROLLBACK")
	}
	return false, a.command(ctx, "ROLLBACK TO SAVEPOINT replicator")
}

// command is a statement without parameters that isn't worth preparing.
func command(sql string) statement { return statement{sql: sql, expect: -1} }

func (a *Applier) command(ctx context.Context, sql string) error {
	if _, err := a.conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return fmt.Errorf("%s: %w", strings.ToLower(sql), err)
	}
	return nil
}

// finish counts what was applied and commits where the batch ends a transaction.
func (a *Applier) finish(ctx context.Context, b *replication.Batch) (uint64, error) {
	var n [256]int
	for i := range b.Changes {
		n[b.Changes[i].Op]++
	}
	for op, k := range n {
		if k > 0 {
			a.pending[replication.Op(op).String()] += k
		}
	}
	if !b.Last {
		return 0, nil
	}
	return a.commit(ctx, b)
}

// worthwhile tells whether the batch is worth the set form: one change is its own row statement, and none is nothing.
func worthwhile(b *replication.Batch) bool { return len(b.Changes) > 1 }

// refused tells whether the set form failed in a way that the original order may not, or of which it can name the row: a constraint, a
// count, a value.
func refused(err error) bool {
	var count *countError
	return errors.As(err, &count) || strings.HasPrefix(postgres.Code(err), "23") || strings.HasPrefix(postgres.Code(err), "22")
}

// compile turns the batch into set statements; fast is false where only the original order will do. With replace set, updated rows are
// deleted and inserted, but for those of which the batch doesn't hold every value.
func (a *Applier) compile(ctx context.Context, b *replication.Batch, replace bool) (out []statement, fast bool, err error) {
	c := newCompactor()
	fast = true
	for i := range b.Changes {
		p, err := a.plan(ctx, b.Changes[i].Relation)
		if err != nil {
			return nil, false, err
		}
		if fast && !c.add(p, b.Changes[i]) {
			fast = false
		}
	}
	if !fast || !worthwhile(b) {
		return nil, false, nil
	}
	for _, s := range c.segments {
		if s.ordered == nil {
			if replace {
				s.replaceUpdates()
			}
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

// inOrder carries the batch out change by change, between head and tail.
func (a *Applier) inOrder(ctx context.Context, b *replication.Batch, head, tail []statement) error {
	statements := make([]statement, 0, len(head)+len(b.Changes)+len(tail))
	statements = append(statements, head...)
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
	return a.explain(a.run(ctx, append(statements, tail...)), b.Position)
}

// explain turns the failure of a statement into what an operator can act on.
func (a *Applier) explain(err error, to replication.Position) error {
	if err == nil {
		return nil
	}
	var count *countError
	var st *statementError
	switch {
	case errors.As(err, &count) && count.st.moves:
		return retry.Stop(&preflight.Hinted{Code: "deposed", Err: fmt.Errorf("move the position from %s to %s: %w", a.position, to, replication.ErrDeposed),
			Hint: "this process stands down; look at the one that took over"})
	case errors.As(err, &count):
		return retry.Stop(&preflight.Hinted{Code: "row-mismatch",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, hit %d rows on the destination instead of %d", count.st.op, count.st.table, a.describe(count.st.change), a.position, count.rows, count.st.expect),
			Hint: fmt.Sprintf("somebody changed the destination: nothing more is applied. Run `replicator resync --pair %s --table %s` to copy the table again", a.o.ID.Pair, count.st.table)})
	case errors.As(err, &st) && strings.HasPrefix(postgres.Code(err), "23"):
		return retry.Stop(&preflight.Hinted{Code: "constraint",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, is refused by the destination: %w", st.st.op, st.st.table, a.describe(st.st.change), a.position, withoutValues(err)),
			Hint: fmt.Sprintf("the destination holds rows or constraints that the origin doesn't. Mend it, or run `replicator resync --pair %s --table %s`", a.o.ID.Pair, st.st.table)})
	case errors.As(err, &st) && strings.HasPrefix(postgres.Code(err), "22"):
		return retry.Stop(&preflight.Hinted{Code: "schema-drift",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, holds a value that the destination's type refuses: %w", st.st.op, st.st.table, a.describe(st.st.change), a.position, withoutValues(err)),
			Hint: "nothing is lost and the pair waits: make the types on the destination like the origin's (a label that was added to an enum, a domain's constraint)"})
	}
	return a.preparing(err)
}

// withoutValues keeps of a server's error what shows no row's values: never the detail, and of class 22 ("Data Exception") not even the
// message, which quotes the value.
func withoutValues(err error) error {
	var pe *pgconn.PgError
	switch {
	case !errors.As(err, &pe):
		return err
	case strings.HasPrefix(pe.Code, "22"):
		return fmt.Errorf("SQLSTATE %s", pe.Code)
	case pe.ConstraintName != "":
		return fmt.Errorf("%s (SQLSTATE %s, constraint %q)", pe.Message, pe.Code, pe.ConstraintName)
	}
	return fmt.Errorf("%s (SQLSTATE %s)", pe.Message, pe.Code)
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
	if err := checkDrift(r, t, types, nil); err != nil {
		if a.o.Columns == nil {
			return nil, err
		}
		now, e := a.o.Columns(ctx, r.Name)
		if e != nil {
			return nil, e
		}
		if err := checkDrift(r, t, types, now); err != nil {
			return nil, err
		}
	}
	p := newPlan(r, t)
	a.plans[r] = p
	return p, nil
}

const moveSQL = `UPDATE replicator.position SET position = $1, updated_at = clock_timestamp()
WHERE migration = $2 AND pair = $3 AND direction = $4 AND epoch = $5 AND position = $6`

// move is the statement that moves the stored position, if it is still where this process left it and this process still leads.
func (a *Applier) move(ctx context.Context, to replication.Position) (statement, error) {
	name, err := a.prepare(ctx, moveSQL, nil)
	if err != nil {
		return statement{}, fmt.Errorf("prepare the move of the position: %w", err)
	}
	st := statement{name: name, expect: 1, moves: true}
	for _, v := range []string{string(to), a.o.ID.Migration, a.o.ID.Pair, a.o.Direction, strconv.FormatInt(a.o.ID.Epoch, 10), string(a.position)} {
		st.params, st.formats = append(st.params, []byte(v)), append(st.formats, 0)
	}
	return st, nil
}

// commit commits what Apply has carried out.
func (a *Applier) commit(ctx context.Context, b *replication.Batch) (uint64, error) {
	results, err := a.conn.PgConn().Exec(ctx, "COMMIT; SELECT pg_current_wal_insert_lsn()").ReadAll()
	if err != nil {
		return 0, fmt.Errorf("commit up to %s: %w", b.Position, err)
	}
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
	return endOfRecord(uint64(lsn), a.segment), nil
}

// endOfRecord turns an insert position into the end of the record before it. Where that record ends with its page, the insert position
// lies behind the next page's header, which nobody flushes before there is a record in the page: 40 bytes on the first page of a
// segment, 24 on the others (access/xlog_internal.h in the PostgreSQL sources). A record that goes on for a few bytes in the new page must
// not be taken for a header: it may be cut in two by a flush.
func endOfRecord(lsn, segment uint64) uint64 {
	const page, first, other = 8192, 40, 24
	off := lsn % page
	if (off == first && lsn%segment == off) || (off == other && lsn%segment != off) {
		return lsn - off
	}
	return lsn
}
