package snapshot

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication"
)

// Without a bound of the caller's, a table is copied in parts if it is larger than a worker's share of all that is to be copied, in parts of
// a quarter of that share, but not below smallestPart: a part costs a few round trips, and rows that come in parts can't be frozen.
const smallestPart = 64 << 20

// tidRangeScans is the first version that reads a range of ctids without reading the whole table (release notes of PostgreSQL 14).
const tidRangeScans = 140000

// split is a table that is copied in parts, all under one snapshot. Each part is a transaction of its own on the target; the note that the
// table is done is in that of the last. A copy that was cut begins with emptying the table.
type split struct {
	table    replication.Table
	form     string
	exported string // the snapshot's name

	// The queue's own, under its lock.
	unbegun int  // parts of which no session has the snapshot yet
	alone   bool // only the leader can go on: somebody waits for an exclusive lock, behind whom all others would queue

	mu          sync.Mutex
	left        int // parts that aren't done
	rows, bytes int64
}

// part is a range of a split table's pages; to is the first page beyond it, 0 for the last part, which has no end: the table may have grown
// between the measuring and the snapshot.
type part struct {
	of       *split
	from, to int64
}

// bounds says into how many parts the tables are cut.
type bounds struct {
	above, size int64 // bytes
	version     int   // of the source, as server_version_num
}

func newBounds(o Options, version int, tables []replication.Table) bounds {
	if o.PartBytes > 0 {
		return bounds{above: o.PartBytes, size: o.PartBytes, version: version}
	}
	var total int64
	for _, t := range tables {
		total += t.Bytes
	}
	share := max(total/int64(max(o.Workers, 1)), smallestPart)
	return bounds{above: share, size: max(share/4, smallestPart), version: version}
}

// parts is the number of parts of a table; one means that it is copied whole.
func (b bounds) parts(t replication.Table) int64 {
	if b.version < tidRangeScans || t.Bytes <= b.above || len(t.Stored()) == 0 {
		return 1
	}
	return max(1, min((t.Bytes+b.size-1)/b.size, t.Pages))
}

// weight is about how long a table takes from its first row to its last index when as many as can work on it, in bytes to be copied.
// Building an index costs about twice as much as copying as many bytes.
func (b bounds) weight(t replication.Table, workers int) int64 {
	return t.Bytes/min(b.parts(t), int64(workers)) + 2*t.IndexBytes
}

// cut returns n parts of alike numbers of pages.
func (s *split) cut(n int64) []*part {
	out := make([]*part, n)
	for i := range n {
		out[i] = &part{of: s, from: s.table.Pages * i / n, to: s.table.Pages * (i + 1) / n}
	}
	out[n-1].to = 0
	return out
}

// where is the condition on ctid, which ("System Columns") orders rows by page.
func (p *part) where() string {
	if p.to == 0 {
		return fmt.Sprintf("ctid >= '(%d,0)'", p.from)
	}
	return fmt.Sprintf("ctid >= '(%d,0)' AND ctid < '(%d,0)'", p.from, p.to)
}

// lead copies a table in parts: it takes the snapshot, offers all parts to everybody, and works on them itself. It keeps the snapshot until
// every part has a session that holds it too.
func (w *worker) lead(ctx context.Context, t replication.Table, form string, n int64) (err error) {
	seam, err := w.snapshot(ctx, t)
	if err != nil {
		return err
	}
	defer func() { err = w.leave(ctx, err) }()
	s := &split{table: t, form: form, left: int(n), unbegun: int(n)}
	if s.exported, err = w.export(ctx); err != nil {
		return err
	}
	if err := w.o.Started(ctx, t, seam); err != nil {
		return err
	}
	if _, err := w.empty(ctx, false, t.Name); err != nil {
		return err
	}
	if err := w.commit(ctx, nil); err != nil {
		return err
	}
	w.q.addParts(s.cut(n))
	for {
		p, ok, err := w.q.nextPart(ctx, s)
		if err != nil || !ok {
			return err
		}
		if err := w.copyPart(ctx, p); err != nil {
			return err
		}
	}
}

// help copies a part of a table that another worker leads.
func (w *worker) help(ctx context.Context, p *part) (err error) {
	err = w.join(ctx, p.of)
	defer func() { err = w.leave(ctx, err) }()
	if postgres.Code(err) == postgres.CodeLockNotAvailable {
		w.q.giveBack(p) // the leader has the lock already
		return nil
	}
	if err != nil {
		return err
	}
	w.q.begun(p)
	return w.copyPart(ctx, p)
}

// rangesOnly keeps the planner from reading a whole table for a part of it.
const rangesOnly = "SET LOCAL enable_seqscan = off"

// join makes the worker's source session see what the table's leader sees. Importing a snapshot after LOCK is allowed ("SET TRANSACTION").
func (w *worker) join(ctx context.Context, s *split) error {
	err := postgres.Several(ctx, w.source, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
		"SET LOCAL lock_timeout = '1s'",
		"LOCK TABLE ONLY "+s.table.Name.Quoted()+" IN ACCESS SHARE MODE",
		"SET LOCAL lock_timeout = 0",
		"SET TRANSACTION SNAPSHOT "+replication.QuoteLiteral(s.exported), rangesOnly)
	if err != nil {
		return fmt.Errorf("join the snapshot of %s: %w", s.table.Name, err)
	}
	return nil
}

// export gives the source session's snapshot a name under which others can join it.
func (w *worker) export(ctx context.Context) (name string, err error) {
	answers, err := w.source.PgConn().Exec(ctx, rangesOnly+"; SELECT pg_export_snapshot()").ReadAll()
	if err != nil {
		return "", fmt.Errorf("export the snapshot: %w", err)
	}
	return string(answers[1].Rows[0][0]), nil
}

// copyPart moves a part's rows. The commit waits for no flush: that of the last part's note does, and comes later in the log.
func (w *worker) copyPart(ctx context.Context, p *part) error {
	s := p.of
	if err := w.begin(ctx, false); err != nil {
		return err
	}
	out := "(SELECT " + strings.Join(columns(s.table), ", ") + " FROM ONLY " + s.table.Name.Quoted() + " WHERE " + p.where() + ")"
	rows, bytes, err := w.pipe(ctx, s.table, out, s.form, false)
	if err != nil {
		return err
	}
	if err := w.commit(ctx, nil); err != nil {
		return err
	}
	s.mu.Lock()
	s.rows, s.bytes, s.left = s.rows+rows, s.bytes+bytes, s.left-1
	rows, bytes, last := s.rows, s.bytes, s.left == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	if err := w.begin(ctx, true); err != nil {
		return err
	}
	witness, err := w.witness(ctx)
	if err != nil {
		return err
	}
	if err := w.commit(ctx, func(b *pgx.Batch) { w.o.Finished(b, s.table, rows, bytes, witness) }); err != nil {
		return err
	}
	w.finished(s.table, rows)
	return nil
}
