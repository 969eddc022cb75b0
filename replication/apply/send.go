package apply

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"replicator/replication"
)

// depth is how many batches are under way at once: while one executes, the next is decoded, compiled and sent.
const depth = 2

// flight is a run that was sent.
type flight struct {
	batch      *replication.Batch
	statements []statement
	commits    bool // the run ends in the commit

	began time.Time     // when it had been sent
	ended chan struct{} // closed when the answer is complete; what follows may be read then
	rows  []int64       // hit by the statements so far
	value string        // the first column of the last row that was returned
	err   error
}

// Done is a batch that was carried out. LSN is the destination's write-ahead log insert position after the commit: what the batch did is
// durable once the destination has flushed up to it. It is 0 for a piece that isn't the last.
type Done struct {
	Batch *replication.Batch
	LSN   uint64
}

// Apply carries out a batch and waits for it. For a batch with Last set it returns the position that Done describes.
func (a *Applier) Apply(ctx context.Context, b *replication.Batch) (uint64, error) {
	if err := a.Send(ctx, b); err != nil {
		return 0, err
	}
	if err := a.Settle(ctx); err != nil {
		return 0, err
	}
	done := a.Collect()
	return done[len(done)-1].LSN, nil
}

// Send has a batch carried out and doesn't wait for it, as long as there is room for another one under way. A batch of whole transactions
// goes in one round trip: its statements fail by themselves where they hit another number of rows than they must. Where the set form doesn't
// go through, what was sent is undone and carried out in order, a batch at a time.
//
// The batch must be left alone until it is collected. After an error the Applier must be closed; the stored position tells what was committed.
//
// Errors, which may be those of an earlier batch: replication.ErrDeposed when another process leads; a preflight.Hinted that says what
// drifted or which row was missing.
func (a *Applier) Send(ctx context.Context, b *replication.Batch) error {
	for len(a.sent) >= depth {
		if err := a.wait(ctx); err != nil {
			return err
		}
	}
	if err := a.boundPrepared(ctx); err != nil {
		return err
	}
	if !a.planned(b) {
		if err := a.Settle(ctx); err != nil {
			return err
		}
		if at, err := a.fits(ctx, b); err != nil {
			// What comes before the transaction that doesn't fit is carried out, so that the stored position names the place.
			head, _ := b.Cut(func(m replication.Mark) bool { return m.End > at })
			if !b.Whole() || head == nil || head == b {
				return err
			}
			return errors.Join(a.Send(ctx, head), a.Settle(ctx), err)
		}
	}
	r, fast, err := a.asSets(ctx, b)
	if errors.Is(err, errBusy) || (err == nil && (!fast || r.unsure)) && len(a.sent) > 0 {
		// This one can't be sent blindly. What is under way may also have to be undone, with what it prepared.
		a.drop(r)
		if err := a.Settle(ctx); err != nil {
			return err
		}
		r, fast, err = a.asSets(ctx, b)
	}
	switch {
	case err != nil:
		return err
	case !fast:
		a.drop(r)
		return a.inOrder(ctx, b, false)
	case r.unsure:
		if err := a.attempt(ctx, a.end(r, b, false), b); err != nil {
			return a.again(ctx, b, err)
		}
		return a.commit(ctx, b)
	}
	f, err := a.post(ctx, a.end(r, b, true), b)
	if err != nil {
		return err
	}
	f.commits = b.Last
	a.sent = append(a.sent, f)
	return nil
}

// asSets makes the run of a batch in the set form.
func (a *Applier) asSets(ctx context.Context, b *replication.Batch) (r *run, fast bool, err error) {
	r = a.begin(b, false)
	fast, err = a.compile(ctx, r, b, false)
	return r, fast, err
}

// errBusy is the answer of what needs the session while something is under way.
var errBusy = errors.New("the session is busy")

// soon is how long a batch may be under way that is about to end: a small one, on a destination that is near.
const soon = 3 * time.Millisecond

// Gather is for how long what comes next had better grow than be sent: one that is sent behind another one takes in nothing any more, and
// the first may be about to end.
func (a *Applier) Gather() time.Duration {
	if len(a.sent) != 1 {
		return 0
	}
	return soon - time.Since(a.sent[0].began)
}

// Ended returns a channel that is closed when the oldest batch under way has ended, nil if there is none. Then call Wait.
func (a *Applier) Ended() <-chan struct{} {
	if len(a.sent) == 0 {
		return nil
	}
	return a.sent[0].ended
}

// Wait waits for the oldest batch under way, if there is one. Its errors are those of Send.
func (a *Applier) Wait(ctx context.Context) error {
	if len(a.sent) == 0 {
		return nil
	}
	return a.wait(ctx)
}

// Settle waits for all that is under way.
func (a *Applier) Settle(ctx context.Context) error {
	for len(a.sent) > 0 {
		if err := a.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Collect returns the batches that were carried out since it was last called, in order.
func (a *Applier) Collect() []Done {
	done := a.done
	a.done = nil
	return done
}

// wait waits for the oldest batch under way, and carries it and what was sent after it out another way where it was refused.
func (a *Applier) wait(ctx context.Context) error {
	f := a.sent[0]
	if err := f.wait(ctx); err != nil {
		return err
	}
	err := f.check()
	if err == nil {
		a.sent = a.sent[1:]
		return a.applied(f)
	}
	// What follows a failure in the same transaction, or begins at a position that wasn't reached, has failed too.
	rest := a.sent
	for _, f := range rest {
		if err := f.wait(ctx); err != nil {
			return err
		}
	}
	a.sent, a.ahead = nil, a.position
	if err := a.again(ctx, f.batch, err); err != nil {
		return err
	}
	for _, f := range rest[1:] {
		if err := a.Send(ctx, f.batch); err != nil {
			return err
		}
	}
	return nil
}

// again carries a batch out whose set form was refused with err. Nothing is under way; the transaction is open or failed.
func (a *Applier) again(ctx context.Context, b *replication.Batch, err error) error {
	var st *statementError
	var count *countError
	switch {
	case errors.As(err, &st) && st.st.moves, !refused(err):
		return a.explain(err, b.Position)
	case errors.As(err, &count) && count.committed:
		return a.explain(err, b.Position)
	}
	if err := a.undo(ctx, b); err != nil {
		return err
	}
	if b.Net {
		// Net effects have no original order to go back to, and a unique value may have passed from one row to another.
		r := a.begin(b, true)
		fast, err := a.compile(ctx, r, b, true)
		if err != nil {
			return err
		}
		if fast {
			if err = a.attempt(ctx, a.end(r, b, false), b); err == nil {
				return a.commit(ctx, b)
			}
			if !refused(err) {
				return a.explain(err, b.Position)
			}
			if err := a.undo(ctx, b); err != nil {
				return err
			}
		} else {
			a.drop(r)
		}
	}
	return a.inOrder(ctx, b, true)
}

// undo takes everything back to where the batch began: the transaction, or, for a piece, what came since its savepoint.
func (a *Applier) undo(ctx context.Context, b *replication.Batch) error {
	sql := "ROLLBACK"
	if !b.Whole() {
		sql = "ROLLBACK TO SAVEPOINT replicator"
	}
	if _, err := a.conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
		return fmt.Errorf("%s: %w", strings.ToLower(sql), err)
	}
	// What a failed run was to prepare is there in part.
	return a.forgetPrepared(ctx)
}

// begin begins a batch's run; undone says that it was begun before and undone.
func (a *Applier) begin(b *replication.Batch, undone bool) *run {
	r := &run{wire: wire{b: a.out[:0]}}
	switch {
	case b.Whole():
		a.command(r, "BEGIN")
	case undone:
		// The transaction is open, and its savepoint stands.
	case b.First:
		a.command(r, "BEGIN")
		a.command(r, "SAVEPOINT replicator")
	default:
		a.command(r, "RELEASE SAVEPOINT replicator")
		a.command(r, "SAVEPOINT replicator")
	}
	return r
}

// end ends a batch's run, with the commit where the batch ends a transaction and commit is set.
func (a *Applier) end(r *run, b *replication.Batch, commit bool) *run {
	if b.Last {
		a.move(r, b.Position)
		if commit {
			a.committing(r)
		}
	}
	r.sync()
	return r
}

func (a *Applier) committing(r *run) {
	a.command(r, "COMMIT")
	a.command(r, "SELECT pg_current_wal_insert_lsn()")
}

// keepMemory is how much of the memory for runs is kept from one to the next.
const keepMemory = 16 << 20

// post sends a run.
func (a *Applier) post(ctx context.Context, r *run, b *replication.Batch) (*flight, error) {
	f := &flight{batch: b, statements: r.statements, ended: make(chan struct{})}
	if a.out = r.b; cap(a.out) > keepMemory {
		a.out = nil
	}
	select {
	case a.queue <- f:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	conn := a.conn.PgConn().Conn()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now()) }) // a broken connection needs no deadline
	_, err := conn.Write(r.b)
	if !stop() {
		return nil, ctx.Err()
	}
	if err != nil {
		// The server may have said why it closed the session.
		if e := f.wait(ctx); e == nil && f.err != nil {
			err = f.err
		}
		return nil, fmt.Errorf("send %d statements: %w", len(r.statements), err)
	}
	if b.Last {
		a.ahead = b.Position
	}
	f.began = time.Now()
	return f, nil
}

// attempt sends a run that doesn't commit and waits for it.
func (a *Applier) attempt(ctx context.Context, r *run, b *replication.Batch) error {
	f, err := a.post(ctx, r, b)
	if err != nil {
		return err
	}
	a.ahead = a.position
	if err := f.wait(ctx); err != nil {
		return err
	}
	return f.check()
}

// inOrder carries the batch out change by change.
func (a *Applier) inOrder(ctx context.Context, b *replication.Batch, undone bool) error {
	r := a.begin(b, undone)
	for i := range b.Changes {
		if err := a.one(ctx, r, a.plans[b.Changes[i].Relation], &b.Changes[i]); err != nil {
			return err
		}
	}
	if err := a.attempt(ctx, a.end(r, b, false), b); err != nil {
		return a.explain(err, b.Position)
	}
	return a.commit(ctx, b)
}

// commit commits what was attempted, where the batch ends a transaction.
func (a *Applier) commit(ctx context.Context, b *replication.Batch) error {
	f := &flight{batch: b}
	if b.Last {
		r := &run{}
		a.committing(r)
		r.sync()
		var err error
		if f, err = a.post(ctx, r, b); err != nil {
			return err
		}
		if err := f.wait(ctx); err != nil {
			return err
		}
		if f.err != nil {
			return fmt.Errorf("commit up to %s: %w", b.Position, f.err)
		}
	}
	return a.applied(f)
}

// applied notes a batch that was carried out.
func (a *Applier) applied(f *flight) error {
	b := f.batch
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
		a.done = append(a.done, Done{Batch: b})
		return nil
	}
	a.position = b.Position
	for op, n := range a.pending {
		a.o.Metrics.Applied(op, n)
	}
	clear(a.pending)
	a.o.Metrics.AppliedTransactions(len(b.Marks))
	lsn, err := pglogrepl.ParseLSN(f.value)
	if err != nil {
		return fmt.Errorf("commit up to %s: %w", b.Position, err)
	}
	a.done = append(a.done, Done{Batch: b, LSN: endOfRecord(uint64(lsn), a.segment)})
	return nil
}

// wait waits for the answer.
func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// check tells whether the statements did what they must.
func (f *flight) check() error {
	if f.err != nil {
		return f.err
	}
	if len(f.rows) != len(f.statements) {
		return fmt.Errorf("%d statements were answered instead of %d", len(f.rows), len(f.statements))
	}
	for i, st := range f.statements {
		if st.expect >= 0 && f.rows[i] != st.expect {
			return &countError{st: st, rows: f.rows[i], committed: f.commits}
		}
	}
	return nil
}

// answers reads the answers to what was sent.
func (a *Applier) answers(queue <-chan *flight) {
	defer close(a.ended)
	for f := range queue {
		a.answer(f)
		close(f.ended)
	}
}

// answer reads one answer, to its end.
func (a *Applier) answer(f *flight) {
	front := a.conn.PgConn().Frontend()
	for {
		msg, err := front.Receive()
		if err != nil {
			if f.err == nil {
				f.err = fmt.Errorf("read the answer to %d statements: %w", len(f.statements), err)
			}
			return
		}
		switch msg := msg.(type) {
		case *pgproto3.CommandComplete:
			f.rows = append(f.rows, pgconn.NewCommandTag(string(msg.CommandTag)).RowsAffected())
		case *pgproto3.DataRow:
			if len(msg.Values) > 0 {
				f.value = string(msg.Values[0])
			}
		case *pgproto3.ErrorResponse:
			if f.err == nil {
				var st statement
				if len(f.rows) < len(f.statements) {
					st = f.statements[len(f.rows)]
				}
				f.err = &statementError{st: st, err: pgconn.ErrorResponseToPgError(msg)}
			}
		case *pgproto3.ReadyForQuery:
			return
		default:
			// The other messages of the extended protocol say that things go as they should.
		}
	}
}
