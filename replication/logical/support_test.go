package logical

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication"
)

// origin is a database with a publication and a slot.
type origin struct {
	t    *testing.T
	url  string
	pool *pgxpool.Pool
	id   postgres.Identity
	name string // of publication and slot
	at   uint64 // the slot's consistent point

	sources int // so far
}

const heartbeatTable = `CREATE SCHEMA replicator; CREATE TABLE replicator.heartbeat (id integer PRIMARY KEY, token text NOT NULL)`

// newOrigin makes the tables in an empty database and captures those named.
func newOrigin(t *testing.T, url, schema string, tables ...string) *origin {
	t.Helper()
	o := &origin{t: t, url: url, id: postgres.Identity{Migration: "m", Pair: "p", Epoch: 1}}
	pgtest.Exec(t, url, heartbeatTable, schema)
	var err error
	if o.pool, err = pgxpool.New(o.ctx(), url); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.pool.Close)
	var db string
	if err := o.pool.QueryRow(o.ctx(), "SELECT current_database()").Scan(&db); err != nil {
		t.Fatal(err)
	}
	o.name = "replicator_" + db
	var names []replication.TableName
	for _, n := range tables {
		names = append(names, replication.TableName{Schema: "public", Name: n})
	}
	if err := EnsurePublication(o.ctx(), o.pool, o.name, names); err != nil {
		t.Fatal(err)
	}
	if o.at, err = CreateSlot(o.ctx(), url, o.id, o.pool, o.name, nil); err != nil {
		t.Fatal(err)
	}
	return o
}

// ctx bounds one call.
func (o *origin) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	o.t.Cleanup(cancel)
	return ctx
}

// source pulls what it finds, or doesn't, or goes from one to the other as often as it can: one after the other.
func (o *origin) source(l Limits) *Source {
	options := Options{URL: o.url, ID: o.id, Slot: o.name, Publication: o.name, Limits: l, Pull: 1}
	o.sources++
	switch o.sources % 3 {
	case 1:
		options.Pull = -1
	case 2:
		s := NewSource(options)
		s.pace = pace{farBehind: time.Millisecond, overlong: time.Minute, settle: 20 * time.Millisecond, portion: 500, growth: 2}
		return s
	}
	return NewSource(options)
}

func (o *origin) exec(sql string, args ...any) {
	o.t.Helper()
	if _, err := o.pool.Exec(o.ctx(), sql, args...); err != nil {
		o.t.Fatalf("%s: %v", sql, err)
	}
}

// insertLSN is the end of the write-ahead log.
func (o *origin) flushLSN() uint64 {
	o.t.Helper()
	var text string
	if err := o.pool.QueryRow(o.ctx(), "SELECT pg_current_wal_flush_lsn()::text").Scan(&text); err != nil {
		o.t.Fatal(err)
	}
	lsn, err := ParsePosition(replication.Position(text))
	if err != nil {
		o.t.Fatal(err)
	}
	return lsn
}

// beat writes a token that the stream carries.
func (o *origin) beat(token string) {
	o.t.Helper()
	o.exec("INSERT INTO replicator.heartbeat VALUES (1, $1) ON CONFLICT (id) DO UPDATE SET token = excluded.token", token)
}

// stream is a running Source.
type stream struct {
	t      *testing.T
	source *Source
	out    chan *replication.Batch
	done   chan error
	cancel context.CancelFunc
}

func start(t *testing.T, s *Source, at replication.Position) *stream {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	st := &stream{t: t, source: s, out: make(chan *replication.Batch), done: make(chan error, 1), cancel: cancel}
	go func() { st.done <- s.Stream(ctx, at, st.out) }()
	t.Cleanup(func() { cancel() })
	return st
}

// stop ends the stream, which must return nothing but its context's end.
func (s *stream) stop() {
	s.t.Helper()
	s.cancel()
	if err := <-s.done; !errors.Is(err, context.Canceled) {
		s.t.Fatalf("Stream returned %v", err)
	}
}

// next returns the next batch.
func (s *stream) next() *replication.Batch {
	s.t.Helper()
	select {
	case b := <-s.out:
		return b
	case err := <-s.done:
		s.t.Fatalf("the stream ended: %v", err)
	case <-time.After(30 * time.Second):
		s.t.Fatal("no batch within 30 s")
	}
	return nil
}

// fails waits for the stream to end by itself.
func (s *stream) fails() error {
	s.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case <-s.out:
		case err := <-s.done:
			return err
		case <-deadline:
			s.t.Fatal("the stream goes on")
		}
	}
}

// transaction is one source transaction as it was streamed, with its changes written down.
type transaction struct {
	position replication.Position
	token    string
	changes  []string
}

// reader puts transactions together out of batches.
type reader struct {
	t     *testing.T
	all   []transaction
	open  []string
	check collector
}

func newReader(t *testing.T, at uint64) *reader {
	return &reader{t: t, check: collector{t: t, last: at}}
}

// add takes a batch, which must follow the one before, and tells whether it carried the token.
func (r *reader) add(b *replication.Batch, token string) (found bool) {
	r.t.Helper()
	r.check.add(b)
	at := 0
	for _, m := range b.Marks {
		tx := transaction{position: m.Position, token: m.Token, changes: append(r.open, write(b.Changes[at:m.End])...)}
		r.open, at = nil, m.End
		r.all = append(r.all, tx)
		found = found || (token != "" && m.Token == token)
	}
	r.open = append(r.open, write(b.Changes[at:])...)
	return found
}

func write(changes []replication.Change) (out []string) {
	for _, c := range changes {
		s := c.Op.String() + " " + c.Relation.Name.Name
		for _, t := range c.Truncated {
			s += " " + t.Name.Name
		}
		for _, values := range [][]replication.Value{c.Old, c.New} {
			s += " ("
			for i, v := range values {
				s += fmt.Sprintf("%s=%c:%s,", c.Relation.Columns[i].Name, max(byte(v.Kind), '.'), v.Data)
			}
			s += ")"
		}
		out = append(out, s)
	}
	return out
}

// rows reads a query's rows as text.
func (o *origin) rows(sql string) []string {
	o.t.Helper()
	rows, err := o.pool.Query(o.ctx(), sql)
	if err != nil {
		o.t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		o.t.Fatal(err)
	}
	return out
}
