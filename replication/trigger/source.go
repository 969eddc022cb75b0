package trigger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/postgres"
	"replicator/internal/retry"
	"replicator/replication"
)

// Limits bound one batch.
type Limits struct {
	// Changes and Bytes are what a window may hold that must be one batch.
	Changes int
	Bytes   int
	// Piece is how many changes a piece of any other window may hold, Changes if that is less.
	Piece int
	// Early is after how many changes, and again after as many, a piece goes out before it is full if its receiver has nothing else to do.
	Early int
}

// DefaultLimits keep two batches in flight below 64 MB. Larger pieces gain nothing and cost the memory that they are kept in.
var DefaultLimits = Limits{Changes: 20000, Bytes: 16 << 20, Piece: 4000, Early: 2000}

// Querier runs statements in the window's transaction. It fits replication/schema's.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Options say what to stream.
type Options struct {
	URL string
	ID  postgres.Identity
	// Tables are those that the destination holds copies of.
	Tables []replication.TableName
	// Seams are the tables' copies. A table's first window begins at its copy's snapshot, unless the position is past that.
	Seams  map[replication.TableName]replication.Seam
	Limits Limits
	Log    *slog.Logger
	// Drift is asked before a window is handed over whether the catalog, read in the window's transaction, is still the one the destination
	// was made after; its error ends the stream before anything of the window is delivered. It is called with a stream's first window,
	// whenever a changed table's columns or constraints are not what they were, and otherwise at most every DriftEvery (5 s if zero). nil: never.
	Drift      func(ctx context.Context, q Querier) error
	DriftEvery time.Duration
	// Waiting hears what the stream waits for, and "" when it goes on.
	Waiting func(string)
	// IdleMax bounds the pause between two looks at an idle source; 200 ms if zero.
	IdleMax time.Duration
	// RotateBytes is the size of a log table from which on writing moves to the other one; 16 MB if zero.
	RotateBytes int64
	// UpkeepEvery is how often the log is looked at for that; 2 s if zero.
	UpkeepEvery time.Duration
	Scanning    Scanning
}

// Source streams from the change log. It implements replication.Source.
type Source struct {
	o          Options
	acked      atomic.Pointer[place]
	nudged     chan struct{}
	boundaries chan *boundaryRequest
}

// NewSource returns a Source; nothing is opened before Stream.
func NewSource(o Options) *Source {
	if o.Limits.Changes == 0 {
		o.Limits = DefaultLimits
	}
	if o.Limits.Piece == 0 {
		o.Limits.Piece = min(o.Limits.Changes, DefaultLimits.Piece)
	}
	if o.Limits.Early == 0 {
		o.Limits.Early = DefaultLimits.Early
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Waiting == nil {
		o.Waiting = func(string) {}
	}
	if o.IdleMax == 0 {
		o.IdleMax = 200 * time.Millisecond
	}
	if o.RotateBytes == 0 {
		o.RotateBytes = 16 << 20
	}
	if o.UpkeepEvery == 0 {
		o.UpkeepEvery = 2 * time.Second
	}
	o.Scanning = o.Scanning.orDefault()
	if o.DriftEvery == 0 {
		o.DriftEvery = 5 * time.Second
	}
	return &Source{o: o, nudged: make(chan struct{}, 1), boundaries: make(chan *boundaryRequest)}
}

// Reached compares snapshots: p lies at or after q if it sees everything that q sees.
func (s *Source) Reached(p, q replication.Position) (bool, error) { return Reached(p, q) }

// Reached tells whether p lies at or after q, both positions of trigger capture on one server.
func Reached(p, q replication.Position) (bool, error) {
	a, err := parsePlace(p)
	if err != nil {
		return false, err
	}
	b, err := parsePlace(q)
	if err != nil {
		return false, err
	}
	if a.System != "" && b.System != "" && a.System != b.System {
		return false, errors.New("compare positions: they belong to different servers")
	}
	return covers(a.seen, b.seen), nil
}

// Acknowledge lets the log forget what lies before p.
func (s *Source) Acknowledge(p replication.Position) {
	at, err := parsePlace(p)
	if err != nil {
		return // never one of ours: Reached and Stream report it
	}
	for {
		old := s.acked.Load()
		if old != nil && covers(old.seen, at.seen) {
			return
		}
		if s.acked.CompareAndSwap(old, &at) {
			return
		}
	}
}

// Nudge makes an idle stream look at once and hand over the position, even where only transactions of others have passed: somebody waits
// for what has just been committed. It doesn't block and may be called at any time.
func (s *Source) Nudge() {
	select {
	case s.nudged <- struct{}{}:
	default:
	}
}

// Stream implements replication.Source.
func (s *Source) Stream(ctx context.Context, start replication.Position, out chan<- *replication.Batch) error {
	from, err := parsePlace(start)
	if err != nil {
		return retry.Stop(err)
	}
	conn, err := postgres.Connect(ctx, s.o.URL, s.o.ID, "capture")
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	r, err := newReader(ctx, s, conn, from)
	if err != nil {
		return err
	}
	s.acked.Store(&from)
	return r.run(ctx, out)
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}

// settings of the reading session. The log has no statistics worth the name: rows are found by index, whatever the planner thinks.
var settings = []string{`SET synchronous_commit = on`, `SET jit = off`, `SET max_parallel_workers_per_gather = 0`, `SET plan_cache_mode = force_generic_plan`}

// forbidden are the planner's ways that the session doesn't take.
var forbidden = []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_hashagg"}

func newReader(ctx context.Context, s *Source, conn *pgx.Conn, from place) (*reader, error) {
	for _, sql := range settings {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("prepare the capture's session: %w", err)
		}
	}
	if _, err := conn.Exec(ctx, `SELECT set_config(x, 'off', false) FROM unnest($1::text[]) x`, forbidden); err != nil {
		return nil, fmt.Errorf("prepare the capture's session: %w", err)
	}
	r := &reader{s: s, conn: conn, at: from, since: from.seen, prepared: map[string]string{}, tables: map[uint32]*captured{}}
	if err := r.sameHistory(ctx); err != nil {
		return nil, err
	}
	if err := r.sameCopies(ctx); err != nil {
		return nil, err
	}
	// Before the functions are read: what is given up in between stops the stream.
	if err := conn.QueryRow(ctx, silencedSQL).Scan(&r.silenced); err != nil {
		return nil, fmt.Errorf("look for captures that were given up: %w", err)
	}
	tables, err := readCaptured(ctx, conn, s.o.Tables)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if seam, ok := s.o.Seams[t.name]; ok && !covers(from.seen, seam.Snapshot) {
			r.seams = true
			t.seam = &seam.Snapshot
		}
		r.tables[t.oid] = t
		r.order = append(r.order, t)
		r.oids = append(r.oids, t.oid)
	}
	return r, nil
}
