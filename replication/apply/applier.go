package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

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
	session  int64 // its number among those that have applied here
	plans    map[*replication.Relation]*plan
	prepared map[string]string
	serial   int
	segment  uint64 // size of the destination's write-ahead log segments
	pending  counts

	// What is under way, the oldest first; the answers are read by a goroutine of its own, which has ended when ended is closed. Only while
	// nothing is under way may conn be used otherwise.
	sent  []*flight
	queue chan *flight
	ended chan struct{}
	// ahead is the position once all that has been sent is applied.
	ahead replication.Position
	// done is what was applied and nobody has collected.
	done []Done
	// out is the memory of the last run.
	out []byte
}

type counts map[string]int

// Open connects and reads the stored position, from which the stream must go on.
func Open(ctx context.Context, o Options) (*Applier, error) {
	conn, err := postgres.Connect(ctx, o.URL, o.ID, "apply")
	if err != nil {
		return nil, err
	}
	a := &Applier{o: o, conn: conn, plans: map[*replication.Relation]*plan{}, prepared: map[string]string{}, pending: counts{},
		queue: make(chan *flight, 2*depth), ended: make(chan struct{})}
	go a.answers(a.queue)
	if err := a.prepareSession(ctx); err != nil {
		a.Close(ctx)
		return nil, err
	}
	a.ahead = a.position
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

const holdSQL = `UPDATE replicator.position SET session = session + 1, updated_at = clock_timestamp()
WHERE migration = $1 AND pair = $2 AND direction = $3 AND epoch = $4 RETURNING position, session`

// readPosition reads the stored position by a synchronous commit: an earlier session may have moved it without waiting for the flush, and
// whoever starts a stream at it lets the origin forget what lies before. From then on nothing that an earlier session has sent, commits
// included, moves it any more.
func (a *Applier) readPosition(ctx context.Context) error {
	if _, err := a.conn.Exec(ctx, `SET synchronous_commit = on`); err != nil {
		return fmt.Errorf("prepare the apply session: %w", err)
	}
	err := a.conn.QueryRow(ctx, holdSQL, a.o.ID.Migration, a.o.ID.Pair, a.o.Direction, a.o.ID.Epoch).Scan(&a.position, &a.session)
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
	if len(a.sent) > 0 {
		_ = a.conn.PgConn().CancelRequest(ctx) // spares the destination work; whatever is committed nevertheless is whole
	}
	if a.queue != nil {
		close(a.queue)
		a.queue = nil
	}
	_ = a.conn.Close(ctx)
	<-a.ended
}

// describedAtOnce is how many tables are looked up in one round trip.
const describedAtOnce = 100

// fits makes the plans of all tables that the batch touches. The error is that of the change with the index at.
func (a *Applier) fits(ctx context.Context, b *replication.Batch) (at int, err error) {
	first := map[*replication.Relation]int{}
	var unknown []*replication.Relation
	look := func(r *replication.Relation, at int) {
		if _, seen := first[r]; !seen && a.plans[r] == nil {
			first[r] = at
			unknown = append(unknown, r)
		}
	}
	for i := range b.Changes {
		look(b.Changes[i].Relation, i)
		for _, r := range b.Changes[i].Truncated {
			look(r, i)
		}
	}
	for _, r := range b.Tables {
		look(r, len(b.Changes))
	}
	for some := range slices.Chunk(unknown, describedAtOnce) {
		if failed, err := a.plan(ctx, some); err != nil {
			return first[failed], err
		}
	}
	return 0, nil
}

// planned tells whether fits has nothing to do.
func (a *Applier) planned(b *replication.Batch) bool {
	for _, r := range b.Tables {
		if a.plans[r] == nil {
			return false
		}
	}
	var last *replication.Relation
	for i := range b.Changes {
		if r := b.Changes[i].Relation; r != last {
			if a.plans[r] == nil {
				return false
			}
			last = r
		}
		for _, r := range b.Changes[i].Truncated {
			if a.plans[r] == nil {
				return false
			}
		}
	}
	return true
}

// refused tells whether the set form failed in a way that the original order may not, or of which it can name the row: a constraint, a
// count, a value.
func refused(err error) bool {
	var count *countError
	return errors.As(err, &count) || strings.HasPrefix(postgres.Code(err), "23") || strings.HasPrefix(postgres.Code(err), "22")
}

// compile appends the batch as set statements; it returns false where only the original order will do. With replace set, updated rows are
// deleted and inserted, but for those of which the batch doesn't hold every value.
func (a *Applier) compile(ctx context.Context, r *run, b *replication.Batch, replace bool) (fast bool, err error) {
	c := newCompactor()
	defer c.done()
	for i := range b.Changes {
		if !c.add(a.plans[b.Changes[i].Relation], &b.Changes[i]) {
			return false, nil
		}
	}
	for _, s := range c.segments {
		if s.ordered == nil {
			if replace {
				s.replaceUpdates()
			}
			if err := a.sets(r, s); err != nil {
				return false, err
			}
			continue
		}
		for i := range s.ordered {
			if err := a.one(ctx, r, s.plan, &s.ordered[i]); err != nil {
				return false, err
			}
		}
	}
	return true, nil
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

// explain turns the failure of a statement into what an operator can act on.
func (a *Applier) explain(err error, to replication.Position) error {
	if err == nil {
		return nil
	}
	var count *countError
	var st *statementError
	switch {
	case errors.As(err, &st) && st.st.moves && postgres.Code(err) == postgres.CodeDivisionByZero:
		return retry.Stop(&preflight.Hinted{Code: "deposed", Err: fmt.Errorf("move the position from %s to %s: %w", a.position, to, replication.ErrDeposed),
			Hint: "this process stands down; look at the one that took over"})
	case errors.As(err, &count):
		return retry.Stop(&preflight.Hinted{Code: "row-mismatch",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, hit %d rows on the destination instead of %d", count.st.op, count.st.table, a.describe(count.st.change), a.position, count.rows, count.st.expect),
			Hint: fmt.Sprintf("somebody changed the destination: nothing more is applied. Run `replicator resync --pair %s --table %s` to copy the table again", a.o.ID.Pair, count.st.table)})
	case errors.As(err, &st) && strings.HasPrefix(postgres.Code(err), "23"):
		return retry.Stop(&preflight.Hinted{Code: "constraint",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, is refused by the destination: %w", st.st.op, st.st.table, a.describe(st.st.change), a.position, postgres.WithoutValues(err)),
			Hint: fmt.Sprintf("the destination holds rows or constraints that the origin doesn't. Mend it, or run `replicator resync --pair %s --table %s`", a.o.ID.Pair, st.st.table)})
	case errors.As(err, &st) && strings.HasPrefix(postgres.Code(err), "22"):
		return retry.Stop(&preflight.Hinted{Code: "schema-drift",
			Err:  fmt.Errorf("%s of %s where %s, after position %s, holds a value that the destination's type refuses: %w", st.st.op, st.st.table, a.describe(st.st.change), a.position, postgres.WithoutValues(err)),
			Hint: "nothing is lost and the pair waits: make the types on the destination like the origin's (a label that was added to an enum, a domain's constraint)"})
	}
	return a.preparing(err)
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

// plan makes the plans of tables, of which it returns the first that has none where it fails.
func (a *Applier) plan(ctx context.Context, tables []*replication.Relation) (failed *replication.Relation, err error) {
	var names []replication.TableName
	var oids []uint32
	var mods []int32
	for _, r := range tables {
		names = append(names, r.Name)
		for _, c := range r.Columns {
			oids, mods = append(oids, c.TypeOID), append(mods, c.TypeMod)
		}
	}
	targets, err := readTargets(ctx, a.conn, names)
	if err != nil {
		return tables[0], err
	}
	types, err := a.o.TypeNames(ctx, oids, mods)
	if err != nil {
		return tables[0], err
	}
	for i, r := range tables {
		if err := a.check(ctx, r, targets[i], types[:len(r.Columns)]); err != nil {
			return r, err
		}
		types = types[len(r.Columns):]
		a.plans[r] = newPlan(r, targets[i])
	}
	return nil, nil
}

// check tells whether the stream's rows of a table fit the destination's.
func (a *Applier) check(ctx context.Context, r *replication.Relation, t *target, types []string) error {
	err := checkDrift(r, t, types, nil)
	if err == nil || a.o.Columns == nil || len(t.columns) == 0 {
		return err
	}
	now, err := a.o.Columns(ctx, r.Name)
	if err != nil {
		return err
	}
	return checkDrift(r, t, types, now)
}

const moveSQL = `UPDATE replicator.position SET position = $1, updated_at = clock_timestamp()
WHERE migration = $2 AND pair = $3 AND direction = $4 AND epoch = $5 AND position = $6 AND session = $7`

// move appends the statement that moves the stored position, if it is still where this process left it and this process still leads.
func (a *Applier) move(r *run, to replication.Position) {
	values := []string{string(to), a.o.ID.Migration, a.o.ID.Pair, a.o.Direction, strconv.FormatInt(a.o.ID.Epoch, 10), string(a.ahead), strconv.FormatInt(a.session, 10)}
	at := r.bind(a.prepare(r, counted(moveSQL, "1"), nil), len(values), textFormat)
	for _, v := range values {
		r.text([]byte(v))
	}
	r.bound(at)
	r.statements = append(r.statements, statement{expect: -1, moves: true})
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
