package snapshot

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"replicator/internal/postgres"
	"replicator/internal/retry"
	"replicator/replication"
)

// Options say what is copied and who hears of it.
type Options struct {
	SourceURL, TargetURL string
	ID                   postgres.Identity
	// Workers is how many tables are copied at once.
	Workers int
	// Started notes durably, before a row is copied, under which seam a table is copied.
	Started func(ctx context.Context, t replication.Table, s replication.Seam) error
	// Finished notes in the transaction that holds the copy that the table is done.
	Finished func(ctx context.Context, tx pgx.Tx, t replication.Table, rows, bytes int64) error
	// Progress hears of bytes as they pass and of rows when a table is done; it is called concurrently.
	Progress func(t replication.Table, rows, bytes int64)
	// Waiting hears what the copy waits for, and "" when it goes on.
	Waiting func(string)
}

// Copy copies the tables, the largest first. It returns when all are done or one has failed; finished tables stay finished.
func Copy(ctx context.Context, o Options, tables []replication.Table) error {
	if len(tables) == 0 {
		return nil
	}
	horizon, err := horizon(ctx, o)
	if err != nil {
		return err
	}
	queue := slices.Clone(tables)
	slices.SortStableFunc(queue, func(a, b replication.Table) int { return cmp.Compare(b.Bytes, a.Bytes) })
	work := make(chan replication.Table, len(queue))
	for _, t := range queue {
		work <- t
	}
	close(work)
	g, ctx := errgroup.WithContext(ctx)
	for range min(max(o.Workers, 1), len(queue)) {
		g.Go(func() error {
			w, err := open(ctx, o, horizon)
			if err != nil {
				return err
			}
			defer w.close(ctx)
			for t := range work {
				if err := w.copy(ctx, t); err != nil {
					return fmt.Errorf("copy %s: %w", t.Name, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func horizon(ctx context.Context, o Options) (uint64, error) {
	conn, err := postgres.Connect(ctx, o.SourceURL, o.ID, "horizon")
	if err != nil {
		return 0, err
	}
	defer closeConn(ctx, conn)
	return Horizon(ctx, conn, o.Waiting)
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// worker copies one table at a time over a session on either side.
type worker struct {
	o              Options
	horizon        uint64
	source, target *pgx.Conn
}

func open(ctx context.Context, o Options, horizon uint64) (*worker, error) {
	w := &worker{o: o, horizon: horizon}
	var err error
	if w.source, err = postgres.Connect(ctx, o.SourceURL, o.ID, "copy"); err != nil {
		return nil, err
	}
	if w.target, err = postgres.Connect(ctx, o.TargetURL, o.ID, "copy"); err != nil {
		w.close(ctx)
		return nil, err
	}
	// Neither triggers nor foreign keys concern rows that the source has accepted already.
	if _, err := w.target.Exec(ctx, `SET session_replication_role = replica`); err != nil {
		w.close(ctx)
		return nil, fmt.Errorf("set session_replication_role on the target: %w", err)
	}
	return w, nil
}

func (w *worker) close(ctx context.Context) {
	for _, c := range []*pgx.Conn{w.source, w.target} {
		if c != nil {
			closeConn(ctx, c)
		}
	}
}

func (w *worker) copy(ctx context.Context, t replication.Table) (err error) {
	form, err := format(ctx, w.target, t)
	if err != nil {
		return err
	}
	seam, err := w.snapshot(ctx, t)
	if err != nil {
		return err
	}
	defer func() {
		// Ends the snapshot and lets go of the lock, whatever happened.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, e := w.source.Exec(closing, "ROLLBACK"); e != nil && err == nil {
			err = fmt.Errorf("end the snapshot: %w", e)
		}
	}()
	if err := w.o.Started(ctx, t, seam); err != nil {
		return err
	}
	tx, err := w.target.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin on the target: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit this does nothing
	freeze, err := empty(ctx, tx, t.Name)
	if err != nil {
		return err
	}
	rows, bytes, err := w.pipe(ctx, t, form, freeze)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
		return err
	}
	if err := w.o.Finished(ctx, tx, t, rows, bytes); err != nil {
		return err
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit on the target: %w", err)
	}
	w.o.Progress(t, rows, 0)
	return nil
}

// snapshot locks the table, then takes the snapshot: a REPEATABLE READ transaction takes it with its first query, and LOCK is none
// ("LOCK", notes on isolation levels).
func (w *worker) snapshot(ctx context.Context, t replication.Table) (replication.Seam, error) {
	var seam replication.Seam
	err := retry.Do(ctx, retry.Policy{Max: 5 * time.Second, Notify: func(err error, _ int, _ time.Duration) {
		if w.o.Waiting != nil {
			w.o.Waiting(fmt.Sprintf("the copy of %s waits for a lock on it: %v", t.Name, err))
		}
	}}, func(ctx context.Context) error {
		err := w.trySnapshot(ctx, t, &seam)
		if err == nil {
			return nil
		}
		if _, e := w.source.Exec(ctx, "ROLLBACK"); e != nil {
			return retry.Stop(errors.Join(err, e))
		}
		if postgres.Code(err) == postgres.CodeLockNotAvailable || errors.Is(err, errTooEarly) {
			return err
		}
		return retry.Stop(err)
	})
	if err == nil && w.o.Waiting != nil {
		w.o.Waiting("")
	}
	return seam, err
}

var errTooEarly = errors.New("the snapshot is older than the capture")

func (w *worker) trySnapshot(ctx context.Context, t replication.Table, seam *replication.Seam) error {
	for _, sql := range []string{
		"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
		"SET LOCAL lock_timeout = '2s'",
		"LOCK TABLE ONLY " + t.Name.Quoted() + " IN ACCESS SHARE MODE",
		"SET LOCAL lock_timeout = 0",
	} {
		if _, err := w.source.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	s, err := current(ctx, w.source)
	if err != nil {
		return err
	}
	if s.Xmin < w.horizon {
		return errTooEarly // not after Horizon has returned; a standby would lie
	}
	var lsn string
	if err := w.source.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&lsn); err != nil {
		return fmt.Errorf("read the write-ahead log position: %w", err)
	}
	l, err := pglogrepl.ParseLSN(lsn)
	*seam = replication.Seam{Snapshot: s, LSN: uint64(l)}
	return err
}

const referencedSQL = `SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = to_regclass($1))`

// empty removes what an earlier copy left. Truncated tables may take frozen rows; a table that foreign keys point to can't be truncated.
func empty(ctx context.Context, tx pgx.Tx, name replication.TableName) (freeze bool, err error) {
	var referenced bool
	if err := tx.QueryRow(ctx, referencedSQL, name.Quoted()).Scan(&referenced); err != nil {
		return false, fmt.Errorf("look for foreign keys: %w", err)
	}
	sql := "TRUNCATE ONLY " + name.Quoted()
	if referenced {
		sql = "DELETE FROM ONLY " + name.Quoted()
	}
	if _, err := tx.Exec(ctx, sql); err != nil {
		return false, fmt.Errorf("empty the target's table: %w", err)
	}
	return !referenced, nil
}

// pipe moves the rows. What is in memory at any time is a buffer on either side.
func (w *worker) pipe(ctx context.Context, t replication.Table, form string, freeze bool) (rows, bytes int64, err error) {
	var names []string
	for _, c := range t.Stored() {
		names = append(names, replication.QuoteIdent(c.Name))
	}
	columns := "(" + strings.Join(names, ", ") + ")"
	if len(names) == 0 {
		columns = ""
	}
	in, out := io.Pipe()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		counting := &counter{w: out, add: func(n int64) { w.o.Progress(t, 0, n) }}
		buffered := bufio.NewWriterSize(counting, 256<<10)
		_, err := w.source.PgConn().CopyTo(ctx, buffered, "COPY "+t.Name.Quoted()+" "+columns+" TO STDOUT (FORMAT "+form+")")
		if err == nil {
			err = buffered.Flush()
		}
		bytes = counting.n
		if err != nil {
			err = fmt.Errorf("read from the source: %w", err)
		}
		_ = out.CloseWithError(err) // never fails; nil ends the stream
		return err
	})
	g.Go(func() error {
		options := "FORMAT " + form
		if freeze {
			options += ", FREEZE"
		}
		tag, err := w.target.PgConn().CopyFrom(ctx, bufio.NewReaderSize(in, 256<<10), "COPY "+t.Name.Quoted()+" "+columns+" FROM STDIN ("+options+")")
		rows = tag.RowsAffected()
		if err != nil {
			err = fmt.Errorf("write to the target: %w", err)
		}
		_ = in.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		return err
	})
	err = g.Wait()
	return rows, bytes, err
}

type counter struct {
	w   io.Writer
	n   int64
	add func(int64)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.add(int64(n))
	return n, err
}
