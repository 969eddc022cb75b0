package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

// reader reads one window after the other over one session.
type reader struct {
	s     *Source
	conn  *pgx.Conn
	at    place // everything before it has been handed over
	seams bool  // some table's seam lies after at
	order []*captured
	oids  []uint32

	tables   map[uint32]*captured
	prepared map[string]string
	// lookedAt is when a snapshot last showed nothing new, or when the last window ended, by the server's clock.
	lookedAt time.Time
	// beat identifies the heartbeat row that was last seen.
	beat string
	// driftAsked is when Options.Drift was last asked, catalog what tablesSQL said then.
	driftAsked time.Time
	catalog    string
	upkeepAt   time.Time
	nudged     bool // somebody waits for what has been committed
}

// probeChunk is how many tables one probing statement covers.
const probeChunk = 50

// busyPause is the least time between two windows: each costs the source a flush and a few milliseconds.
const busyPause = 10 * time.Millisecond

// run reads windows: while there is much, half of the time at most; with growing pauses while there is nothing.
func (r *reader) run(ctx context.Context, out chan<- *replication.Batch) error {
	pause := time.Duration(0)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var request *boundaryRequest
	for {
		began := time.Now()
		moved, err := r.window(ctx, out, request)
		r.nudged = false
		if request != nil {
			request.fail(err)
			request = nil
		}
		if err != nil {
			return err
		}
		if err := r.upkeep(ctx); err != nil {
			return err
		}
		if moved {
			pause = min(max(time.Since(began), busyPause), 10*busyPause)
		} else {
			pause = min(max(2*pause, 2*time.Millisecond), r.s.o.IdleMax)
		}
		timer.Reset(pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-r.s.nudged:
			r.nudged = true
		case request = <-r.s.boundaries:
		}
	}
}

// errRewritten: a table got a new file after the snapshot was taken.
var errRewritten = errors.New("a table was truncated or rewritten after the window's snapshot was taken")

// window hands over what has committed since the last one, if there is anything. A window that meets a truncation is discarded and read again.
func (r *reader) window(ctx context.Context, out chan<- *replication.Batch, request *boundaryRequest) (bool, error) {
	var moved bool
	var first []*captured
	waiting := false
	err := retry.Do(ctx, retry.Policy{First: 20 * time.Millisecond, Max: 2 * time.Second}, func(ctx context.Context) error {
		w := &window{reader: r, request: request, first: first}
		err := w.read(ctx, out)
		if err == nil {
			moved = w.moved
			return nil
		}
		if _, e := r.conn.Exec(context.WithoutCancel(ctx), "ROLLBACK"); e != nil {
			return retry.Stop(errors.Join(err, e))
		}
		first = w.dirty
		switch {
		case w.sent:
			return retry.Stop(err)
		case errors.Is(err, errRewritten):
			return err
		case postgres.Code(err) == postgres.CodeLockNotAvailable:
			r.s.o.Waiting("the change log's next window waits for a lock: " + w.holders(ctx))
			waiting = true
			return err
		}
		return retry.Stop(err)
	})
	if waiting {
		r.s.o.Waiting("")
	}
	return moved, err
}

// window is one attempt at a window.
type window struct {
	*reader
	request *boundaryRequest
	first   []*captured // tables to lock before the snapshot is taken

	state     state
	dirty     []*captured
	truncated map[uint32]bool
	emit      emitter
	moved     bool
	sent      bool // a piece has been handed over
}

// state is what the transaction's first query says.
type state struct {
	snapshot replication.Snapshot
	text     string
	at       time.Time
	token    string
	beat     string
}

const stateSQL = `
SELECT pg_current_snapshot()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text, h.token, h.at::text
FROM (SELECT 1) one LEFT JOIN replicator.heartbeat h ON h.id = 1`

const truncatedSQL = `SELECT relid::text, xid::text FROM replicator.capture_truncated WHERE xid >= $1::text::xid8
UNION ALL SELECT relid::text, xid::text FROM replicator.capture_truncated WHERE xid = ANY ($2::text::xid8[])`

// bounds are the parameters that say what lies after a snapshot.
func bounds(s replication.Snapshot) [][]byte {
	var xip strings.Builder
	xip.WriteByte('{')
	for i, x := range s.Xip {
		if i > 0 {
			xip.WriteByte(',')
		}
		xip.WriteString(strconv.FormatUint(x, 10))
	}
	xip.WriteByte('}')
	return [][]byte{[]byte(strconv.FormatUint(s.Xmax, 10)), []byte(xip.String())}
}

// previous is the snapshot that ended the table's last window.
func (r *reader) previous(t *captured) replication.Snapshot {
	if t.seam != nil {
		return *t.seam
	}
	return r.at.seen
}

// query is one statement of a round trip; each row goes to take, whose data is valid until it returns.
type query struct {
	sql  string
	args [][]byte
	take func(row [][]byte) error
}

// ask carries out queries in one round trip. Statements that come again are prepared.
func (r *reader) ask(ctx context.Context, queries []query) error {
	names := make([]string, len(queries))
	for i, q := range queries {
		if len(q.args) == 0 && q.take == nil {
			continue // BEGIN, LOCK and their like
		}
		name, err := r.prepare(ctx, q.sql)
		if err != nil {
			return err
		}
		names[i] = name
	}
	p := r.conn.PgConn().StartPipeline(ctx)
	for i, q := range queries {
		if names[i] == "" {
			p.SendQueryParams(q.sql, nil, nil, nil, nil)
		} else {
			p.SendQueryPrepared(names[i], q.args, nil, nil)
		}
	}
	if err := p.Sync(); err != nil {
		_ = p.Close() // the first error tells more
		return fmt.Errorf("read the change log: %w", err)
	}
	var failed error
	for _, q := range queries {
		if failed = r.result(p, q.take); failed != nil {
			break
		}
	}
	if err := p.Close(); err != nil && failed == nil {
		failed = fmt.Errorf("read the change log: %w", err)
	}
	return failed
}

func (r *reader) result(p *pgconn.Pipeline, take func([][]byte) error) error {
	got, err := p.GetResults()
	if err != nil {
		return fmt.Errorf("read the change log: %w", err)
	}
	rows, ok := got.(*pgconn.ResultReader)
	if !ok {
		return fmt.Errorf("read the change log: unexpected answer %T in a pipeline", got)
	}
	var failed error
	for failed == nil && rows.NextRow() {
		if take != nil {
			failed = take(rows.Values())
		}
	}
	if _, err := rows.Close(); err != nil && failed == nil {
		return fmt.Errorf("read the change log: %w", err)
	}
	return failed
}

func (r *reader) prepare(ctx context.Context, sql string) (string, error) {
	if name, ok := r.prepared[sql]; ok {
		return name, nil
	}
	name := "replicator_" + strconv.Itoa(len(r.prepared))
	if _, err := r.conn.PgConn().Prepare(ctx, name, sql, nil); err != nil {
		return "", fmt.Errorf("prepare to read the change log: %w", err)
	}
	r.prepared[sql] = name
	return name, nil
}

// probes ask every table's log whether the window holds anything of it.
func (r *reader) probes(dirty func(oid uint32)) []query {
	take := func(row [][]byte) error {
		oid, err := strconv.ParseUint(string(row[0]), 10, 32)
		dirty(uint32(oid))
		return err
	}
	var out []query
	if r.seams {
		for _, t := range r.order {
			out = append(out, query{probe([]*captured{t}), bounds(r.previous(t)), take})
		}
		return out
	}
	for i := 0; i < len(r.order); i += probeChunk {
		out = append(out, query{probe(r.order[i:min(i+probeChunk, len(r.order))]), bounds(r.at.seen), take})
	}
	return out
}

func lockStatement(tables []*captured) string {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.name.Quoted()
	}
	return "LOCK TABLE ONLY " + strings.Join(names, ", ONLY ") + " IN ACCESS SHARE MODE"
}

const beginSQL = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

// lockWaitSQL bounds the wait behind a table's ALTER or TRUNCATE; the window's snapshot is held meanwhile.
const lockWaitSQL = "SET LOCAL lock_timeout = '1s'"

// read carries the window out up to its end, or leaves a transaction to be rolled back.
func (w *window) read(ctx context.Context, out chan<- *replication.Batch) error {
	changed := map[uint32]bool{}
	w.truncated = map[uint32]bool{}
	var truncations [][2]uint64
	queries := []query{{sql: beginSQL}, {sql: lockWaitSQL}}
	if len(w.first) > 0 {
		queries = append(queries, query{sql: lockStatement(w.first)})
	}
	queries = append(queries,
		query{stateSQL, nil, w.state.take},
		query{truncatedSQL, bounds(w.at.seen), func(row [][]byte) error {
			oid, e1 := strconv.ParseUint(string(row[0]), 10, 32)
			xid, e2 := strconv.ParseUint(string(row[1]), 10, 64)
			truncations = append(truncations, [2]uint64{oid, xid})
			return errors.Join(e1, e2)
		}})
	if err := w.ask(ctx, append(queries, w.probes(func(oid uint32) { changed[oid] = true })...)); err != nil {
		return err
	}
	for _, x := range truncations {
		if t := w.tables[uint32(x[0])]; t != nil && !w.previous(t).Sees(x[1]) {
			w.truncated[t.oid], changed[t.oid] = true, true
		}
	}
	for _, t := range w.order {
		if changed[t.oid] {
			w.dirty = append(w.dirty, t)
		}
	}
	// Somebody who waits gets the new position, even where nothing of ours has changed.
	awaited := w.nudged && !covers(w.at.seen, w.state.snapshot)
	if len(w.dirty) == 0 && w.state.beat == w.beat && w.request == nil && !w.seams && !awaited {
		w.lookedAt = w.state.at
		_, err := w.conn.Exec(ctx, "ROLLBACK")
		return err
	}
	if err := w.check(ctx); err != nil {
		return err
	}
	if err := w.changes(ctx, out); err != nil {
		return err
	}
	return w.end(ctx)
}

func (s *state) take(row [][]byte) error {
	s.text = string(row[0])
	var err error
	if s.snapshot, err = replication.ParseSnapshot(s.text); err != nil {
		return err
	}
	micros, err := strconv.ParseInt(string(row[1]), 10, 64)
	s.at, s.token, s.beat = time.UnixMicro(micros).UTC(), string(row[2]), string(row[2])+" "+string(row[3])
	return err
}

const enabledSQL = `
SELECT x.oid::text FROM unnest($1::text::oid[]) x(oid) LEFT JOIN pg_trigger t
  ON t.tgrelid = x.oid AND t.tgname IN ('replicator_capture', 'replicator_capture_truncate') AND t.tgenabled = 'A'
GROUP BY x.oid HAVING count(t.oid) <> 2`

// tablesSQL identifies the set of tables; a partition that was attached or a table that came or went changes it.
const tablesSQL = `
SELECT count(*) || ' ' || coalesce(sum(c.oid::bigint), 0) || ' ' || (SELECT count(*) || ' ' || coalesce(sum(inhrelid::bigint * 31 + inhparent::bigint), 0) FROM pg_inherits)
FROM pg_class c WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'`

// check locks the tables that have changes, and makes sure that the window can be trusted: no table has been rewritten since the snapshot was
// taken, all triggers have stood in place, and the catalog is as it was.
func (w *window) check(ctx context.Context) error {
	var queries []query
	var bad uint32
	var tables string
	var shapes []found
	if len(w.dirty) > 0 {
		oids := make([]uint32, len(w.dirty))
		for i, t := range w.dirty {
			oids[i] = t.oid
		}
		queries = append(queries, query{sql: lockStatement(w.dirty)}, query{shapeSQL, [][]byte{oidArray(oids)}, func(row [][]byte) error {
			var f found
			err := json.Unmarshal(row[0], &f)
			shapes = append(shapes, f)
			return err
		}})
	}
	queries = append(queries, query{tablesSQL, nil, func(row [][]byte) error {
		tables = string(row[0])
		return nil
	}}, query{enabledSQL, [][]byte{oidArray(w.oids)}, func(row [][]byte) error {
		oid, err := strconv.ParseUint(string(row[0]), 10, 32)
		bad = uint32(oid)
		return err
	}})
	if err := w.ask(ctx, queries); err != nil {
		if postgres.Code(err) == postgres.CodeUndefinedTable {
			return retry.Stop(&preflight.Hinted{Code: "capture-altered", Err: fmt.Errorf("a table with changes was dropped or renamed: %w", err),
				Hint: "make both sides alike, then run `replicator resync` for it, or exclude it"})
		}
		return err
	}
	if bad != 0 {
		name := w.tables[bad].name
		return retry.Stop(&preflight.Hinted{Code: "capture-disabled", Err: fmt.Errorf("the capture triggers of table %s are, or were for a while, switched off or gone (ALTER TABLE … DISABLE TRIGGER, or the table was dropped): changes may be missing", name),
			Hint: fmt.Sprintf("run `replicator resync` with --table %s, and keep triggers enabled: DISABLE TRIGGER ALL and USER hit ours too", name)})
	}
	reshaped, err := w.describe(shapes)
	if err != nil {
		return err
	}
	if w.s.o.Drift == nil || (!reshaped && tables == w.catalog && time.Since(w.driftAsked) < w.s.o.DriftEvery) {
		return nil
	}
	// What the session forbids the planner for the log's sake would make a query of the whole catalog slow.
	if _, err := w.conn.Exec(ctx, `SELECT set_config(x, 'on', true) FROM unnest($1::text[]) x`, forbidden); err != nil {
		return fmt.Errorf("ask for drift: %w", err)
	}
	if err := w.s.o.Drift(ctx, w.conn); err != nil {
		return err
	}
	if _, err := w.conn.Exec(ctx, `SELECT set_config(x, 'off', true) FROM unnest($1::text[]) x`, forbidden); err != nil {
		return fmt.Errorf("ask for drift: %w", err)
	}
	w.driftAsked, w.catalog = time.Now(), tables
	return nil
}

// describe takes over the descriptions of the tables that have changes; reshaped tells whether one is new or no longer what it was.
func (w *window) describe(shapes []found) (reshaped bool, err error) {
	for _, f := range shapes {
		if f.Rewritten {
			return false, errRewritten
		}
		t := w.tables[f.OID]
		was := t.shape
		if err := t.describe(f.shape(t)); err != nil {
			return false, err
		}
		reshaped = reshaped || t.shape != was
	}
	if len(shapes) != len(w.dirty) {
		return false, retry.Stop(&preflight.Hinted{Code: "capture-altered", Err: errors.New("a table with changes was dropped"), Hint: "exclude it, or make it again and run `replicator resync` for it"})
	}
	return reshaped, nil
}

func oidArray(oids []uint32) []byte {
	b := []byte{'{'}
	for i, o := range oids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendUint(b, uint64(o), 10)
	}
	return append(b, '}')
}

const lockHoldersSQL = `
SELECT coalesce(string_agg(DISTINCT c.relname || ' by pid ' || coalesce(l.pid::text, '? (prepared)') || ' (' || coalesce(nullif(a.application_name, ''), 'no name') || ', ' ||
  coalesce(a.state, '?') || ', open for ' || coalesce(date_trunc('second', clock_timestamp() - a.xact_start)::text, '?') || ')', '; '), 'somebody')
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = ANY($1) AND l.granted AND l.mode = 'AccessExclusiveLock' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())`

// holders names who holds the tables that the window needs.
func (w *window) holders(ctx context.Context) string {
	var who string
	if err := w.conn.QueryRow(ctx, lockHoldersSQL, w.oids).Scan(&who); err != nil {
		return "somebody"
	}
	return who
}
