package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/replication"
)

// Options say what is copied and who hears of it.
type Options struct {
	SourceURL, TargetURL string
	ID                   postgres.Identity
	// Workers is how many tables, parts of tables and jobs are worked on at once; each worker has a session on either side.
	Workers int
	// PartBytes is the size above which a table is copied in parts, and that of the parts; 0: in proportion to all that is to be copied.
	PartBytes int64
	// Started notes durably, before a row is copied, under which seam a table is copied.
	Started func(ctx context.Context, t replication.Table, s replication.Seam) error
	// Fence queues what makes a target transaction fail in a process that doesn't lead. Nil: nobody else can lead.
	Fence func(b *pgx.Batch)
	// Finished queues the note that the table is done, and a fence, for the transaction that holds the copy or, for a table in parts, for one after
	// the last part's.
	Finished func(b *pgx.Batch, t replication.Table, rows, bytes int64, witness string)
	// Witness are statements that return a word, run in a session that has held the table's snapshot, after its last row and before Finished, which gets the
	// word. Empty: none.
	Witness string
	// Refused says what the failure of Fence's or Finished's statements means. Nil: what it says itself.
	Refused func(error) error
	// Then returns what is to be done with a table once it is copied. Nil: nothing.
	Then func(t replication.Table) Chain
	// Jobs can be done at once.
	Jobs []Chain
	// Progress hears of bytes as they pass and of rows when a table is done; it is called concurrently.
	Progress func(t replication.Table, rows, bytes int64)
	// Waiting hears what the copy waits for, and "" when it goes on.
	Waiting func(string)
}

// Copy copies the tables and does their jobs, what takes longest first. It returns when all is done or something has failed; finished tables
// stay finished. A table that was dropped or renamed meanwhile doesn't keep the others from being copied first.
func Copy(ctx context.Context, o Options, tables []replication.Table) error {
	if len(tables) == 0 && len(o.Jobs) == 0 {
		return nil
	}
	var after uint64
	var version int
	if len(tables) > 0 {
		var err error
		if after, version, err = horizon(ctx, o); err != nil {
			return err
		}
	}
	o.Workers = max(o.Workers, 1)
	b := newBounds(o, version, tables)
	q := newQueue(o.Workers, tables, b)
	for _, c := range o.Jobs {
		q.addChain(c, 0)
	}
	var gone atomic.Pointer[error]
	g, ctx := errgroup.WithContext(ctx)
	for range o.Workers {
		g.Go(func() error {
			w := &worker{o: o, q: q, horizon: after, bounds: b}
			defer w.close(ctx)
			for {
				do, ok, err := q.next(ctx)
				if err != nil || !ok {
					return err
				}
				if err := w.do(ctx, do); errors.Is(err, errGone) {
					gone.Store(&err)
				} else if err != nil {
					return err
				}
				q.done(do)
			}
		})
	}
	err := g.Wait()
	if lost := gone.Load(); lost != nil && err == nil {
		err = *lost
	}
	return err
}

func horizon(ctx context.Context, o Options) (after uint64, version int, err error) {
	conn, err := postgres.Connect(ctx, o.SourceURL, o.ID, "horizon")
	if err != nil {
		return 0, 0, err
	}
	defer closeConn(ctx, conn)
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return 0, 0, fmt.Errorf("read the source's version: %w", err)
	}
	after, err = Horizon(ctx, conn, o.Waiting)
	return after, version, err
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// worker does one thing at a time over a session on either side, opened when there is something to do.
type worker struct {
	o              Options
	q              *queue
	horizon        uint64
	bounds         bounds
	source, target *pgx.Conn
}

func (w *worker) do(ctx context.Context, do work) error {
	if err := w.openTarget(ctx); err != nil {
		return err
	}
	if do.job != nil {
		return do.job(ctx, w.target)
	}
	if err := w.openSource(ctx); err != nil {
		return err
	}
	if do.part != nil {
		if err := w.help(ctx, do.part); err != nil {
			return fmt.Errorf("copy %s: %w", do.part.of.table.Name, err)
		}
		return nil
	}
	if err := w.copy(ctx, *do.table); err != nil {
		return fmt.Errorf("copy %s: %w", do.table.Name, err)
	}
	return nil
}

func (w *worker) openSource(ctx context.Context) (err error) {
	if w.source != nil {
		return nil
	}
	w.source, err = postgres.Connect(ctx, w.o.SourceURL, w.o.ID, "copy")
	return err
}

// sortMemorySQL gives the building of indexes a share of what the server has for buffers, if that is more than it has anyway: what
// doesn't fit is sorted on disk.
const sortMemorySQL = `
SELECT set_config('maintenance_work_mem', greatest(m.setting::bigint, least(1048576, s.setting::bigint * current_setting('block_size')::int / 1024 / 8)) || 'kB', false)
FROM pg_settings m, pg_settings s WHERE m.name = 'maintenance_work_mem' AND s.name = 'shared_buffers'`

func (w *worker) openTarget(ctx context.Context) (err error) {
	if w.target != nil {
		return nil
	}
	if w.target, err = postgres.Connect(ctx, w.o.TargetURL, w.o.ID, "copy"); err != nil {
		return err
	}
	// Neither triggers nor foreign keys concern rows that the source has accepted already.
	if _, err := w.target.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		return fmt.Errorf("set session_replication_role on the target: %w", err)
	}
	if _, err := w.target.Exec(ctx, sortMemorySQL); err != nil {
		return fmt.Errorf("set maintenance_work_mem on the target: %w", err)
	}
	return nil
}

func (w *worker) close(ctx context.Context) {
	for _, c := range []*pgx.Conn{w.source, w.target} {
		if c != nil {
			closeConn(ctx, c)
		}
	}
}

// copy copies a table, or leads those who do.
func (w *worker) copy(ctx context.Context, t replication.Table) error {
	form, err := format(ctx, w.target, t)
	if err != nil {
		return err
	}
	if n := w.bounds.parts(t); n > 1 {
		return w.lead(ctx, t, form, n)
	}
	return w.whole(ctx, t, form)
}

// whole copies a table in one transaction. Since it is emptied in the same one, its rows may come frozen: nobody can look at them before they
// are committed, and nobody has to visit them again to note that they are.
func (w *worker) whole(ctx context.Context, t replication.Table, form string) (err error) {
	seam, err := w.snapshot(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = w.leave(ctx, err) }()
	if err := w.o.Started(ctx, t, seam); err != nil {
		return err
	}
	freeze, err := w.empty(ctx, true, t.Name)
	if err != nil {
		return err
	}
	out := t.Name.Quoted()
	if c := columns(t); len(c) > 0 {
		out += " (" + strings.Join(c, ", ") + ")"
	}
	rows, bytes, err := w.pipe(ctx, t, out, form, freeze)
	if err != nil {
		return err
	}
	witness, err := w.witness(ctx)
	if err != nil {
		return err
	}
	if err := w.commit(ctx, func(b *pgx.Batch) { w.o.Finished(b, t, rows, bytes, witness) }); err != nil {
		return err
	}
	w.finished(t, rows)
	return nil
}

// finished spreads the word that a table is done.
func (w *worker) finished(t replication.Table, rows int64) {
	w.o.Progress(t, rows, 0)
	if w.o.Then != nil {
		w.q.addChain(w.o.Then(t), w.q.weigh(t))
	}
}

// begin begins a transaction on the target with the statements, in one round trip. The transaction's commit waits for the flush if durable is set.
func (w *worker) begin(ctx context.Context, durable bool, statements ...string) error {
	commit := "on"
	if !durable {
		commit = "off"
	}
	return postgres.Several(ctx, w.target, append([]string{"BEGIN", "SET LOCAL synchronous_commit = " + commit}, statements...)...)
}

// commit ends the transaction on the target with the notes, in one round trip. Only the leader can do that.
func (w *worker) commit(ctx context.Context, notes func(*pgx.Batch)) error {
	var b pgx.Batch
	switch {
	case notes != nil:
		notes(&b)
	case w.o.Fence != nil:
		w.o.Fence(&b)
	}
	b.Queue("COMMIT")
	if err := w.target.SendBatch(ctx, &b).Close(); err != nil {
		err = errors.Join(err, postgres.Rollback(ctx, w.target))
		if w.o.Refused != nil {
			err = w.o.Refused(err)
		}
		return fmt.Errorf("commit on the target: %w", err)
	}
	return nil
}

// witness ends the snapshot and has the source witness it. The session is the one that had it: on another one, the answer might be that of another
// server, to which the name of the source leads by now.
func (w *worker) witness(ctx context.Context) (string, error) {
	if w.o.Witness == "" {
		return "", nil
	}
	answers, err := w.source.PgConn().Exec(ctx, "ROLLBACK; "+w.o.Witness).ReadAll()
	if err != nil {
		return "", fmt.Errorf("witness the snapshot: %w", err)
	}
	for _, a := range answers {
		if len(a.Rows) == 1 {
			return string(a.Rows[0][0]), nil
		}
	}
	return "", errors.New("witness the snapshot: no answer")
}

// leave ends the snapshot and lets go of the lock, whatever happened.
func (w *worker) leave(ctx context.Context, err error) error {
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, e := w.source.Exec(closing, "ROLLBACK"); e != nil && err == nil {
		return fmt.Errorf("end the snapshot: %w", e)
	}
	return err
}

// empty begins a transaction on the target by removing what an earlier copy left, and waits for sessions of that copy which haven't ended
// yet. Truncated tables may take frozen rows; a table that foreign keys point to can't be truncated.
func (w *worker) empty(ctx context.Context, durable bool, name replication.TableName) (freeze bool, err error) {
	err = w.begin(ctx, durable, "TRUNCATE ONLY "+name.Quoted())
	if postgres.Code(err) != postgres.CodeNotSupported {
		return true, emptying(err)
	}
	return false, emptying(w.begin(ctx, durable, "LOCK TABLE ONLY "+name.Quoted()+" IN SHARE ROW EXCLUSIVE MODE", "DELETE FROM ONLY "+name.Quoted()))
}

func emptying(err error) error {
	if err != nil {
		return fmt.Errorf("empty the target's table: %w", err)
	}
	return nil
}

// columns are the quoted names of the columns that are copied.
func columns(t replication.Table) []string {
	var names []string
	for _, c := range t.Stored() {
		names = append(names, replication.QuoteIdent(c.Name))
	}
	return names
}

// pipe moves rows from what the source is to copy out, a table or a query in parentheses, to the target's table.
func (w *worker) pipe(ctx context.Context, t replication.Table, from, form string, freeze bool) (rows, bytes int64, err error) {
	into, options := t.Name.Quoted(), "FORMAT "+form
	if c := columns(t); len(c) > 0 {
		into += " (" + strings.Join(c, ", ") + ")"
	}
	if freeze {
		options += ", FREEZE"
	}
	rows, err = pipe(ctx, w.source.PgConn(), w.target.PgConn(), "COPY "+from+" TO STDOUT (FORMAT "+form+")", "COPY "+into+" FROM STDIN ("+options+")", func(n int) {
		bytes += int64(n)
		w.o.Progress(t, 0, int64(n))
	})
	if err != nil {
		// Both are in the middle of something: the servers end it when their sessions are gone.
		closeConn(ctx, w.source)
		closeConn(ctx, w.target)
	}
	return rows, bytes, err
}
