package logical

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"replicator/internal/postgres"
	"replicator/replication"
)

// DefaultPull is the backlog in bytes of write-ahead log from which on it is pulled.
const DefaultPull = 2 << 20

const (
	// A portion is so many bytes of log and what is left of its last transaction. Every call decodes in vain what lies before its portion, so portions grow
	// fast: the first is a small part of the backlog, so that the destination has work soon, and each of the next ones a multiple of the one before.
	leastPull = 256 << 10
	firstPull = 32 << 20
	firstPart = 16
	mostPull  = 256 << 20
	// mostMessages bounds a portion, too. Beyond some 400 thousand the server puts it into a temporary file.
	mostMessages = 2_000_000
	// farthest is how much may be decoded in vain, in bytes of log. No transaction that begins before it is pulled, which bounds the temporary file.
	farthest = 1 << 30
	// A part of leastUse of what is decoded in vain is the least backlog that is worth it: the stream decodes the former too, but only once.
	leastUse = 8
	// A portion is meant to take no longer than that, since the query that gives it holds back the source's vacuum.
	longPull = 10 * time.Second
	// longestRun is how far the pulling may get ahead of the slot itself, in bytes of log: the source holds it, and the stream decodes it in vain.
	longestRun = 4 << 30
	// unsettled is how many bytes of log aren't worth waiting for an acknowledgement before the stream goes on.
	unsettled = 32 << 20
	// Where the server refuses, or the destination stands still, the replication protocol is used for so long.
	respite = 5 * time.Minute
)

// pace says when to change between the ways to read; tests hurry.
type pace struct {
	// A stream that has run for settled and whose messages come farBehind late tries to pull.
	farBehind, settled time.Duration
	// again is how long it isn't looked for a backlog after there was none that is worth it.
	again time.Duration
	// A portion is given up once the destination has taken nothing for overlong.
	overlong time.Duration
	// settle is how long the destination may take to acknowledge much that was pulled before the stream goes on.
	settle time.Duration
	// portion is the size of the first one at most, in bytes of log.
	portion int64
	// growth is how many times as large as the one before it a portion is.
	growth float64
}

var usualPace = pace{farBehind: 10 * time.Second, settled: 20 * time.Second, again: time.Minute, overlong: 45 * time.Second, settle: time.Second, portion: firstPull, growth: 3}

// errOverlong looks like a lost connection, so that the stream is tried again.
var errOverlong = &pgconn.PgError{Severity: "FATAL", Code: "57P05", Message: "the destination takes too little for the source's query to be held open any longer"}

func (s *Source) mayPull() bool { return s.o.Pull >= 0 && !time.Now().Before(s.notBefore) }

// pull makes up for a large backlog by queries: the server decodes as much of the log as a call asks for and returns it as rows
// (pg_logical_slot_get_binary_changes, "Replication Management Functions" in the PostgreSQL documentation). The messages are those of the
// replication protocol, but the server doesn't send each by a system call of its own, which is most of its work there. The calls read from a temporary
// copy of the slot; the slot itself stays where it is until the stream goes on. (To move it without a stream, by pg_replication_slot_advance, is not safe
// on all servers: before 13.21, 14.18, 15.13, 16.9 and 17.5 that may let vacuum remove catalog rows that decoding still needs.)
//
// It returns nil where the stream should go on from what the builder has reached, which may be at once: the backlog is small, or the server
// doesn't let us.
func (s *Source) pull(ctx context.Context, b *builder) error {
	if !s.mayPull() {
		return nil
	}
	p := &pulled{b: b, publication: s.o.Publication, least: s.o.Pull / 2, growth: s.pace.growth}
	worth, err := p.open(ctx, s)
	switch {
	case err == nil && worth:
		err = s.pullAll(ctx, p)
	case err == nil:
		s.notBefore = time.Now().Add(s.pace.again) // or the stream would be ended again and again, and decode in vain each time
	}
	p.close(ctx)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("pull from slot %q: %w", s.o.Slot, err)
	if ctx.Err() == nil && (errors.Is(err, errOverlong) || refused(err)) {
		s.notBefore = time.Now().Add(respite)
		if !errors.Is(err, errOverlong) && b.between() {
			// Without the right, a free slot, or room for a temporary file: the replication protocol needs none of them.
			s.o.Log.Info("a backlog can't be pulled; it is streamed instead, which takes longer", "error", err)
			return nil
		}
	}
	return err
}

// refused tells whether the server has said no, rather than been lost.
func refused(err error) bool {
	code := postgres.Code(err)
	return code != "" && !strings.HasPrefix(code, "57P")
}

func (s *Source) pullAll(ctx context.Context, p *pulled) error {
	p.b.pulling(s.pace.overlong)
	defer p.b.pulling(0)
	if err := p.run(ctx, s); err != nil {
		return err
	}
	// A session that streams first decodes all of it again, in vain. What is under way may end before.
	if p.b.where()-s.acked.Load() < unsettled {
		return nil
	}
	return s.acknowledged(ctx, p.b.where(), s.pace.settle)
}

// acknowledged waits until the destination has acknowledged what lies before lsn, for so long at most.
func (s *Source) acknowledged(ctx context.Context, lsn uint64, limit time.Duration) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); s.acked.Load() < lsn && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// pulled is a backlog that is being pulled, and what the answers to its queries mean.
type pulled struct {
	b *builder
	// Two sessions take turns where the server allows it: one decodes a portion while the other one's is taken. Each reads from a temporary copy of the
	// slot, which is made anew for every portion, from the other's.
	sessions    []*session
	from        uint64 // the slot's own restart_lsn
	start       uint64 // where to start; before: what comes belongs to a transaction from before
	before      bool
	publication string
	size        int64 // of the next portion
	least       int64 // of a rest that another portion is worth
	growth      float64
	// asked are the portions asked for and not yet answered; turns counts all that were asked for. reading is the session whose answer is being read.
	asked   []portion
	turns   int
	reading *session
	// ready: the portion is decoded, and comes. told: its rows are complete, and what comes is where its copy of the slot stands, which is at. ended: that
	// answer is complete, too.
	ready, told, ended bool
	at                 standing
}

// portion is a part of the backlog that a session was asked for.
type portion struct {
	by    *session
	size  int64 // bytes of log
	began time.Time
	// copying: the answer to the query that makes the copy of the slot is yet to come.
	copying bool
}

// standing is where the copy of the slot stands.
type standing struct {
	confirmed, restart, end uint64 // up to where it has been read, where decoding begins, and the log's end
}

func (a standing) rest() int64   { return int64(a.end - min(a.end, a.confirmed)) }
func (a standing) inVain() int64 { return int64(a.confirmed - min(a.confirmed, a.restart)) }

const (
	standSQL = `SELECT confirmed_flush_lsn::text, restart_lsn::text, pg_catalog.pg_current_wal_flush_lsn()::text FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`

	// pullSQL takes a portion of $2 bytes of log, or $3 messages, and what is left of its last transaction. The end is computed by the server, so that one portion can
	// be asked for before the one before it has come. Servers before 14 don't add to an LSN.
	pullSQL = `
SELECT data FROM pg_catalog.pg_logical_slot_get_binary_changes($1, (
	SELECT (pg_catalog.to_hex(pg_catalog.div(n, 4294967296)::bigint) || '/' || pg_catalog.to_hex(pg_catalog.mod(n, 4294967296)::bigint))::pg_catalog.pg_lsn
	FROM (SELECT pg_catalog.pg_wal_lsn_diff(confirmed_flush_lsn, '0/0') + $2::bigint AS n FROM pg_catalog.pg_replication_slots WHERE slot_name = $1) s
), $3, 'proto_version', '1', 'publication_names', $4)`
)

// run pulls until little is left.
func (p *pulled) run(ctx context.Context, s *Source) error {
	several := p.at.rest()-p.size > p.least
	err := p.ask()
	if err == nil && several {
		err = p.openOther(ctx, s) // while the first portion is decoded
	}
	for err == nil && len(p.asked) > 0 {
		p.reading = p.asked[0].by
		err = receive(ctx, p.reading.conn, p.b, p)
	}
	return err
}

// ask asks for another portion if there is enough for it.
func (p *pulled) ask() error {
	rest, inVain := p.at.rest(), p.at.inVain()
	for _, a := range p.asked {
		rest, inVain = rest-a.size, inVain+a.size
	}
	if rest <= max(p.least, inVain/leastUse) || inVain > farthest || p.at.confirmed-p.from >= longestRun {
		return nil
	}
	a := portion{size: p.size, began: time.Now()}
	if rest < a.size+a.size/2 {
		a.size = rest // a little that is left over costs as much in vain as much
	}
	a.by = p.sessions[p.turns%len(p.sessions)]
	to := a.by.conn.Frontend()
	if a.copying = p.turns > 0 && len(p.sessions) > 1; a.copying {
		// It goes on where the other session's copy has come to.
		other := p.sessions[(p.turns-1)%len(p.sessions)]
		to.SendQuery(&pgproto3.Query{String: `SELECT pg_catalog.pg_drop_replication_slot(` + replication.QuoteLiteral(a.by.slot) + `); ` + copySQL(other.slot, a.by.slot)})
	}
	p.turns++
	parameters := [][]byte{[]byte(a.by.slot), strconv.AppendInt(nil, a.size, 10), strconv.AppendInt(nil, mostMessages, 10), []byte(p.publication)}
	to.SendParse(&pgproto3.Parse{Query: pullSQL})
	to.SendBind(&pgproto3.Bind{Parameters: parameters, ResultFormatCodes: []int16{1}})
	to.SendExecute(&pgproto3.Execute{})
	to.SendParse(&pgproto3.Parse{Query: standSQL})
	to.SendBind(&pgproto3.Bind{Parameters: parameters[:1]})
	to.SendExecute(&pgproto3.Execute{})
	to.SendSync(&pgproto3.Sync{})
	p.asked = append(p.asked, a)
	p.size = min(int64(p.growth*float64(p.size)), mostPull)
	return to.Flush()
}

func (p *pulled) message(kind byte, body []byte, chunk *replication.Chunk) error {
	switch {
	case kind == 'E':
		return serverError(body)
	case len(p.asked) == 0:
		// What comes unasked concerns nobody.
	case p.asked[0].copying:
		p.asked[0].copying = kind != 'Z'
	case kind == 'D' && p.told:
		return p.stands(body)
	case kind == 'D':
		if err := p.decoded(); err != nil {
			return err
		}
		const head = 2 + 4 // how many columns, and the first one's length
		if len(body) < head {
			return errNotAMessage
		}
		if data := body[head:]; !p.skips(data) {
			return p.b.decode(data, chunk, 0)
		}
	case kind == 'C':
		p.told = !p.told
	case kind == 'Z':
		p.ended = true
		return p.portion()
	}
	return nil // what says that a statement was bound, and notices
}

// decoded notes that the server has decoded a portion, and asks for the next one: the copy of the slot stands behind it before its first row comes.
func (p *pulled) decoded() error {
	if p.ready {
		return nil
	}
	p.ready = true
	return p.ask()
}

// skips tells whether a message is part of a transaction from before the start, which the slot hasn't been moved beyond yet.
func (p *pulled) skips(data []byte) bool {
	if len(data) > 8 && data[0] == 'B' {
		p.before = binary.BigEndian.Uint64(data[1:]) < p.start // where its commit lies
	}
	return p.before && len(data) > 0 && data[0] != 'R' && data[0] != 'Y'
}

// stands takes the row that tells where the copy of the slot stands.
func (p *pulled) stands(row []byte) error {
	m := &message{data: row}
	if m.uint16() != 3 {
		return errNotAMessage
	}
	for _, to := range []*uint64{&p.at.confirmed, &p.at.restart, &p.at.end} {
		lsn, err := pglogrepl.ParseLSN(string(m.take(int(int32(m.uint32())))))
		if err != nil {
			return fmt.Errorf("read where the slot stands: %w", err)
		}
		*to = uint64(lsn)
	}
	return m.err('D')
}

// portion notes that a portion is complete.
func (p *pulled) portion() error {
	if p.b.open {
		return fmt.Errorf("a portion ended within a transaction: %w", errNotAMessage)
	}
	p.b.advanced(pglogrepl.LSN(p.at.confirmed))
	a := p.asked[0]
	if took := time.Since(a.began); took > longPull {
		p.size = max(min(p.size, int64(float64(a.size)*float64(longPull)/float64(took))), leastPull)
	}
	p.asked = p.asked[1:]
	p.ready = false
	return nil
}

// moment is that of rows, which the server sends 8 kB at a time.
func (p *pulled) moment() time.Duration { return time.Millisecond }

// taken asks for more once a portion is complete; where the next one comes from another session, this conversation is over.
func (p *pulled) taken() (bool, error) {
	if !p.ended {
		return false, nil
	}
	p.ended = false
	if len(p.asked) == 0 {
		if err := p.ask(); err != nil {
			return true, err
		}
	}
	return len(p.asked) == 0 || p.asked[0].by != p.reading, nil
}
