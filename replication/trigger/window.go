package trigger

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
)

// reader reads one window after the other over one session.
type reader struct {
	s    *Source
	conn *pgx.Conn
	at   place // everything before it has been handed over
	// since is the last snapshot that showed nothing beyond at, or at's own: what comes next has come after it. Looks at an idle source move it, so
	// that they don't go through the rows of a large open transaction again and again.
	since replication.Snapshot
	seams bool // some table's seam lies after at
	order []*captured
	oids  []uint32

	tables   map[uint32]*captured
	prepared map[string]string
	// lookedAt is when a snapshot last showed nothing new, or when the last window ended, by the server's clock.
	lookedAt time.Time
	// silenced is what silencedSQL said when the stream began.
	silenced string
	// beat identifies the heartbeat row that was last seen.
	beat string
	// driftAsked is when Options.Drift was last asked, catalog what tablesSQL said then.
	driftAsked time.Time
	catalog    string
	upkeepAt   time.Time
	// witness names the session's row in replicator.witness, empty before its first window; witnessNumber is its number there. former: those of earlier
	// sessions have been removed.
	witness, witnessNumber string
	former                 bool
	nudged                 bool // somebody waits for what has been committed
}

// probeChunk is how many tables one probing statement covers.
const probeChunk = 50

// busyPause is the least time between two windows, and windowShare the part of the time that they may take while there is much: each costs
// the source a flush and a few milliseconds, and hot rows are read once a window.
const (
	busyPause   = 10 * time.Millisecond
	windowShare = 10 // one part of so many
)

// run reads windows: while there is much, a tenth of the time (more where the pauses would get longer than an idle source's); with growing pauses while there is nothing.
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
		if err != nil && ctx.Err() != nil {
			return errors.Join(ctx.Err(), err) // it was to be tried again
		}
		if err != nil {
			return err
		}
		if err := r.upkeep(ctx); err != nil {
			return err
		}
		if moved {
			pause = min(max((windowShare-1)*time.Since(began), busyPause), r.s.o.IdleMax)
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
		case postgres.Code(err) == postgres.CodeUndefinedTable && !errors.As(err, new(*preflight.Hinted)):
			return retry.Stop(w.missing(ctx, err))
		case postgres.Code(err) == postgres.CodeLockNotAvailable, postgres.Code(err) == "40P01":
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
	reshaped  bool // some dirty table's description is new
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
	return r.since
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
		out = append(out, query{probe(r.order[i:min(i+probeChunk, len(r.order))]), bounds(r.since), take})
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
		query{truncatedSQL, bounds(w.since), func(row [][]byte) error {
			oid, e1 := strconv.ParseUint(string(row[0]), 10, 32)
			xid, e2 := strconv.ParseUint(string(row[1]), 10, 64)
			truncations = append(truncations, [2]uint64{oid, xid})
			return errors.Join(e1, e2)
		}})
	queries = append(queries, w.probes(func(oid uint32) { changed[oid] = true })...)
	if err := w.ask(ctx, append(queries, w.scans()...)); err != nil {
		if errors.Is(err, errRewritten) {
			w.dirty = w.scanned() // the next attempt locks them before its snapshot
		}
		return err
	}
	for _, t := range w.order {
		if t.scan.news() {
			changed[t.oid] = true
		}
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
		w.lookedAt, w.since = w.state.at, w.state.snapshot
		w.settle()
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
