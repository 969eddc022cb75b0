package trigger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

// emitter collects changes and hands them over in pieces where they are too many for one batch.
type emitter struct {
	batch  *replication.Batch
	limits Limits
	out    chan<- *replication.Batch
	// whole refuses to go on in pieces: errTooLarge.
	whole bool
	sent  bool
}

// errTooLarge: a window that should have been one batch isn't.
var errTooLarge = errors.New("the window is larger than a batch")

func (e *emitter) fresh() {
	e.batch = replication.NewBatch()
	e.batch.Net = true
	e.batch.Received = time.Now()
}

func (e *emitter) full() bool {
	most := e.limits.Piece
	if e.whole {
		most = e.limits.Changes
	}
	return len(e.batch.Changes) >= most || e.batch.Bytes >= e.limits.Bytes
}

// add takes a change; build makes it in the current batch's memory.
func (e *emitter) add(ctx context.Context, build func(*replication.Batch) replication.Change) error {
	switch n := len(e.batch.Changes); {
	case e.full():
		if e.whole {
			return errTooLarge
		}
		if err := e.send(ctx, e.piece()); err != nil {
			return err
		}
		e.sent = true
		e.fresh()
	case n > 0 && n%e.limits.Early == 0 && !e.whole:
		e.early()
	}
	e.batch.Changes = append(e.batch.Changes, build(e.batch))
	return nil
}

// announce tells which tables the window touches. Whoever waits can look them up while their changes are read.
func (e *emitter) announce(tables []*captured) {
	for _, t := range tables {
		e.batch.Tables = append(e.batch.Tables, t.shape.relation)
	}
	e.early()
}

// early hands the current batch over as a piece if its receiver waits for one.
func (e *emitter) early() {
	select {
	case e.out <- e.piece():
		e.sent = true
		e.fresh()
	default: // it is busy, and gets more at once
	}
}

// piece is the current batch as one that isn't the last.
func (e *emitter) piece() *replication.Batch {
	e.batch.First, e.batch.Last = !e.sent, false
	return e.batch
}

func (e *emitter) send(ctx context.Context, b *replication.Batch) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case e.out <- b:
		return nil
	}
}

// values copies a row into the batch.
func values(b *replication.Batch, row [][]byte) []replication.Value {
	out := b.Values(len(row))
	for i, v := range row {
		if v == nil {
			out[i] = replication.Value{Kind: replication.Null}
		} else {
			out[i] = replication.Value{Kind: replication.Text, Data: b.Keep(v)}
		}
	}
	return out
}

// changes reads the tables' windows. A small window is carried out as one set a table. A larger one comes in pieces, the first of
// them early, so that the destination works while the source is read. Where a table has other unique constraints a window stays one batch if it can;
// in pieces, such a table gives up all its changed rows before it takes the new ones, since a value may pass from one row to another.
func (w *window) changes(ctx context.Context, out chan<- *replication.Batch) error {
	w.emit = emitter{limits: w.s.o.Limits, out: out}
	w.emit.fresh()
	defer func() { w.sent = w.emit.sent }()
	others := false
	for _, t := range w.dirty {
		others = others || (t.shape.otherKeys && !w.truncated[t.oid])
	}
	if w.reshaped {
		w.emit.announce(w.dirty)
	}
	if others {
		w.emit.whole = true
		err := w.pass(ctx, false)
		if !errors.Is(err, errTooLarge) {
			return err
		}
		w.emit.whole = false
		w.emit.fresh()
		return w.pass(ctx, true)
	}
	return w.pass(ctx, false)
}

// pass reads all tables' changes; with apart set, tables with other unique constraints are read twice: what goes first, then what comes.
func (w *window) pass(ctx context.Context, apart bool) error {
	if err := w.truncate(ctx); err != nil {
		return err
	}
	limit := ""
	if w.emit.whole {
		limit = " LIMIT " + strconv.Itoa(w.emit.limits.Changes+1)
	}
	var queries []query
	for _, t := range w.dirty {
		if apart && t.shape.otherKeys && !w.truncated[t.oid] && len(t.log.Key) > 0 {
			queries = append(queries, query{t.shape.statements.gone, w.args(t), func(row [][]byte) error { return w.keyed(ctx, t, row, goes) }})
		}
	}
	for _, t := range w.dirty {
		switch {
		case w.truncated[t.oid]:
			// Each of its present rows has come since; the index conditions that the other statements need don't help here.
			queries = append(queries, query{sql: "SET LOCAL enable_seqscan = on"}, query{t.shape.statements.all + limit, nil, func(row [][]byte) error {
				return w.emit.add(ctx, func(b *replication.Batch) replication.Change {
					return replication.Change{Op: replication.Insert, Relation: t.shape.relation, New: values(b, row)}
				})
			}}, query{sql: "SET LOCAL enable_seqscan = off"})
		case len(t.log.Key) == 0:
			queries = append(queries, query{t.shape.statements.net + limit, w.args(t), func(row [][]byte) error { return w.keyless(ctx, t, row) }})
		default:
			part := both
			if apart && t.shape.otherKeys {
				part = comes
			}
			queries = append(queries, query{t.shape.statements.net + limit, w.args(t), func(row [][]byte) error { return w.keyed(ctx, t, row, part) }})
		}
	}
	if w.emit.whole {
		for i := range queries {
			if queries[i].take != nil {
				queries[i].take = w.bounded(queries[i].take)
			}
		}
	}
	return w.ask(ctx, queries)
}

// bounded refuses more rows than the LIMIT lets through; rows whose net effect is none count too.
func (w *window) bounded(take func([][]byte) error) func([][]byte) error {
	n := 0
	return func(row [][]byte) error {
		if n++; n > w.emit.limits.Changes {
			return errTooLarge
		}
		return take(row)
	}
}

// truncate empties tables before anything else: all of them at once, as foreign keys among them demand.
func (w *window) truncate(ctx context.Context) error {
	if len(w.truncated) == 0 {
		return nil
	}
	c := replication.Change{Op: replication.Truncate}
	for _, t := range w.dirty {
		if w.truncated[t.oid] {
			c.Truncated = append(c.Truncated, t.shape.relation)
		}
	}
	c.Relation = c.Truncated[0]
	return w.emit.add(ctx, func(*replication.Batch) replication.Change { return c })
}

// part says which half of a row's net change is wanted.
type part int

const (
	both  part = iota
	goes       // only that the row of before goes
	comes      // only that the row of now comes
)

// keyed turns a row of statements.net or gone into changes. Whether the key existed before follows from whether it does now and how often it
// was inserted and deleted meanwhile, in whatever order.
func (w *window) keyed(ctx context.Context, t *captured, row [][]byte, p part) error {
	n, err := strconv.Atoi(string(row[0]))
	if err != nil {
		return fmt.Errorf("read the change log of %s: %w", t.name, err)
	}
	deleted, there := string(row[1]) == "t", string(row[2]) == "t"
	before := -n
	if there {
		before++
	}
	if before != 0 && before != 1 {
		return retry.Stop(&preflight.Hinted{Code: "capture-contradiction", Err: fmt.Errorf("the change log of %s contradicts the table (a key would have existed %d times): changes were made while its triggers were off, or the log was touched", t.name, before),
			Hint: fmt.Sprintf("run `replicator resync` with --table %s", t.name)})
	}
	keys := len(t.log.Key)
	if slices.ContainsFunc(row[3:3+keys], func(v []byte) bool { return v == nil }) {
		return altered(t.name, "a row without a value in its key was written")
	}
	relation := t.shape.relation
	gone := func(b *replication.Batch) replication.Change {
		old := b.Values(len(relation.Columns))
		clear(old)
		for i, v := range row[3 : 3+keys] {
			old[t.shape.keyAt[i]] = replication.Value{Kind: replication.Text, Data: b.Keep(v)}
		}
		return replication.Change{Op: replication.Delete, Relation: relation, Old: old}
	}
	insert := func(b *replication.Batch) replication.Change {
		return replication.Change{Op: replication.Insert, Relation: relation, New: values(b, row[3+keys:])}
	}
	// A key that went and came back may be another spelling of the same (1.0 and 1.00): it is replaced, not updated.
	replace := before == 1 && there && (deleted || p != both)
	switch {
	case before == 1 && (!there || replace) && p != comes:
		if err := w.emit.add(ctx, gone); err != nil {
			return err
		}
	case before == 1 && there && !replace:
		return w.emit.add(ctx, func(b *replication.Batch) replication.Change {
			return replication.Change{Op: replication.Update, Relation: relation, New: values(b, row[3+keys:])}
		})
	}
	if there && (before == 0 || replace) && p != goes {
		return w.emit.add(ctx, insert)
	}
	return nil
}

// keyless turns a row of statements.net into as many deletes or inserts.
func (w *window) keyless(ctx context.Context, t *captured, row [][]byte) error {
	n, err := strconv.Atoi(string(row[0]))
	if err != nil {
		return fmt.Errorf("read the change log of %s: %w", t.name, err)
	}
	for range max(n, -n) {
		if err := w.emit.add(ctx, func(b *replication.Batch) replication.Change {
			c := replication.Change{Op: replication.Insert, Relation: t.shape.relation}
			if n < 0 {
				c.Op, c.Old = replication.Delete, values(b, row[1:])
			} else {
				c.New = values(b, row[1:])
			}
			return c
		}); err != nil {
			return err
		}
	}
	return nil
}

// count is the statement that counts the session's commit behind a window. The row is made with the first, so that an attempt which comes to
// nothing leaves none.
func (r *reader) count() string {
	if r.witness == "" {
		return witness(r.s.o.ID)
	}
	return fmt.Sprintf(beatSQL, r.witness)
}

// end closes the window: our own commit is flushed behind it, then the last piece goes out with the new position.
func (w *window) end(ctx context.Context) error {
	if w.request != nil {
		if err := w.request.export(ctx, w.conn); err != nil {
			return err
		}
	}
	results, err := w.conn.PgConn().Exec(ctx, "COMMIT; "+w.count()).ReadAll()
	if err != nil {
		return retry.Stop(fmt.Errorf("end the window: %w", err))
	}
	next := w.at
	next.seen, next.At = w.state.snapshot, w.state.at
	if len(results) != 2 || len(results[1].Rows) != 1 {
		return lost()
	}
	row := results[1].Rows[0]
	if next.Beat, err = strconv.ParseInt(string(row[0]), 10, 64); err != nil {
		return retry.Stop(fmt.Errorf("end the window: %w", err))
	}
	if w.witness == "" {
		w.witness, w.witnessNumber = string(row[1]), string(row[2])
	}
	next.Witness = w.witness
	b := w.emit.batch
	b.First, b.Last, b.Position = !w.emit.sent, true, next.position()
	token := ""
	if w.state.beat != w.beat {
		token = w.state.token
	}
	if len(w.dirty) > 0 || token != "" {
		// The oldest commit of the window came after the last look; nothing more exact is known.
		commit := w.lookedAt
		if commit.IsZero() {
			commit = w.at.At
		}
		b.Marks = []replication.Mark{{End: len(b.Changes), Position: b.Position, Commit: commit, Token: token}}
	}
	if err := w.emit.send(ctx, b); err != nil {
		return retry.Stop(err)
	}
	w.at, w.since, w.beat, w.lookedAt, w.moved = next, next.seen, w.state.beat, w.state.at, true
	w.settle()
	if w.seams {
		for _, t := range w.order {
			t.seam = nil
		}
		w.seams = false
	}
	if w.request != nil {
		return w.request.hold(ctx, next.position()) // the batch is its receiver's now
	}
	return nil
}
