package logical

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"

	"replicator/replication"
)

// heartbeat is the table whose rows are tokens of our own, not the application's data.
var heartbeat = replication.TableName{Schema: "replicator", Name: "heartbeat"}

// builder turns messages into batches. The reader feeds it, the deliverer takes from it; mu guards all of it.
type builder struct {
	limits Limits
	seams  map[replication.TableName]replication.Seam
	// seamsEnd is the highest seam LSN: transactions that commit at or above it need no filter.
	seamsEnd uint64

	mu        sync.Mutex
	cur       *replication.Batch
	relations map[uint32]*replication.Relation
	open      bool // between Begin and Commit
	begin     begin
	token     string
	first     int  // how many chunks cur held when the open transaction began
	pieces    bool // the open transaction has already given a piece
	closed    bool // the last piece of such a transaction waits to be taken
	// late is how long after its commit the last message of a transaction was sent, by the server's own clock. Only the reader writes it.
	late time.Duration
	// patient: the deliverer waits for a larger batch.
	patient bool
	// What comes belongs to a backlog if this isn't 0: how long it waits for something to be taken.
	overlong time.Duration
	// reached is the place up to which everything has been handed over or is in cur. A server that has just started to send names places
	// before it.
	reached uint64

	filled chan struct{} // something may be taken
	taken  chan struct{} // something was taken
}

func newBuilder(l Limits, start uint64, seams map[replication.TableName]replication.Seam) *builder {
	b := &builder{
		limits: l, reached: start, seams: seams, cur: replication.NewBatch(), relations: map[uint32]*replication.Relation{},
		filled: make(chan struct{}, 1), taken: make(chan struct{}, 1),
	}
	for _, s := range seams {
		b.seamsEnd = max(b.seamsEnd, s.LSN)
	}
	return b
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// add decodes one message into the current batch and then waits until the batch is within its bounds again. The message may be used
// again.
func (b *builder) add(ctx context.Context, data []byte) error {
	return b.locked(ctx, func() error { return b.decode(data, nil, 0) })
}

// locked lets f add to the current batch and then waits until the batch is within its bounds again.
func (b *builder) locked(ctx context.Context, f func() error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := f(); err != nil {
		return err
	}
	b.tell()
	return b.room(ctx)
}

// pulling says whether what comes from now on belongs to a backlog, by how long it waits for something to be taken: 0 if not.
func (b *builder) pulling(overlong time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.overlong, b.late = overlong, 0
}

// between tells whether nothing has come of a transaction whose end hasn't.
func (b *builder) between() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.open
}

// where is the place up to which everything has been handed over or is in the current batch.
func (b *builder) where() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.reached
}

// tell says that something may be taken, if so. The caller holds mu.
func (b *builder) tell() {
	if (len(b.cur.Marks) > 0 || b.full() || b.cur.Position != "") && (!b.patient || !b.small()) {
		signal(b.filled)
	}
}

// room waits until the batch is within its bounds. The caller holds mu, which is free meanwhile.
func (b *builder) room(ctx context.Context) error {
	var gaveUp <-chan time.Time
	if b.overlong > 0 && b.full() {
		timer := time.NewTimer(b.overlong)
		defer timer.Stop()
		gaveUp = timer.C
	}
	for b.full() {
		b.mu.Unlock()
		var err error
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-gaveUp:
			err = errOverlong
		case <-b.taken:
		}
		b.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

// full tells whether the reader must wait: the batch is at its bounds, or it ends a transaction that came in pieces.
func (b *builder) full() bool {
	// Transactions that change nothing of ours count too: servers before 15 send each of them.
	return b.closed || len(b.cur.Changes) >= b.limits.Changes || len(b.cur.Marks) >= b.limits.Changes || b.cur.Bytes >= b.limits.Bytes ||
		(len(b.cur.Changes) > 0 && b.cur.Held() >= 2*max(b.limits.Bytes, replication.ChunkSize))
}

// decode decodes one message, which was sent at that time, in microseconds since 2000 by the server's clock (0: unknown). Values lie in chunk
// afterwards, or where that is nil are copied. The caller holds mu.
func (b *builder) decode(data []byte, chunk *replication.Chunk, sent int64) error {
	if len(data) == 0 {
		return fmt.Errorf("decode pgoutput message: %w", errTruncated)
	}
	kind := data[0]
	m := &message{data: data[1:]}
	if b.cur.Received.IsZero() && kind != 'R' && kind != 'Y' {
		b.cur.Received = time.Now()
	}
	if b.open { // Begin tells when the transaction committed
		b.late = 0
		switch {
		case b.overlong > 0:
			b.late = lagging
		case sent != 0:
			b.late = time.Duration(sent)*time.Microsecond - b.begin.At.Sub(postgresEpoch)
		}
	}
	switch kind {
	case 'B':
		var err error
		if b.begin, err = decodeBegin(m); err != nil {
			return err
		}
		b.open, b.token, b.first = true, "", b.cur.Chunks()
		return nil
	case 'C':
		c, err := decodeCommit(m)
		if err != nil {
			return err
		}
		if c.End <= b.reached {
			return fmt.Errorf("the stream went back: a transaction ends at %s, while %s was reached", position(c.End), position(b.reached))
		}
		b.reached = c.End
		b.end(replication.Mark{End: len(b.cur.Changes), Position: position(c.End), Commit: c.At, Token: b.token})
		return nil
	case 'R':
		r, err := decodeRelation(m)
		if err != nil {
			return err
		}
		// The server describes a table again whenever its caches were emptied. Only another description is news.
		if !same(b.relations[r.OID], r) {
			b.relations[r.OID] = r
		}
		return nil
	case 'I', 'U', 'D':
		return b.row(kind, data[1:], chunk)
	case 'T':
		c, err := decodeTruncate(m, b.relations)
		if err != nil {
			return err
		}
		kept := c.Truncated[:0]
		for _, r := range c.Truncated {
			if b.needs(r) {
				kept = append(kept, r)
			}
		}
		if len(kept) > 0 {
			c.Truncated, c.Relation = kept, kept[0]
			b.cur.Changes = append(b.cur.Changes, c)
		}
		return nil
	case 'Y', 'O', 'M':
		return nil // type names, origins and messages carry no row
	}
	return fmt.Errorf("decode pgoutput message: unknown type %q", kind)
}

func same(a, b *replication.Relation) bool {
	return a != nil && a.Name == b.Name && a.ReplicaIdentity == b.ReplicaIdentity && slices.Equal(a.Columns, b.Columns)
}

func (b *builder) row(kind byte, data []byte, chunk *replication.Chunk) error {
	token := false
	if len(data) >= 4 {
		r := b.relations[binary.BigEndian.Uint32(data)]
		token = r != nil && r.Name == heartbeat
		if r != nil && !token && !b.needs(r) {
			return nil
		}
	}
	switch {
	case token:
		// Nothing of it is kept.
	case chunk != nil:
		b.cur.Hold(chunk)
		b.cur.Bytes += len(data)
	default:
		data = b.cur.Keep(data)
	}
	c, err := decodeRow(kind, &message{data: data}, b.relations, b.cur)
	if err != nil {
		return err
	}
	if c.Relation.Name != heartbeat {
		b.cur.Changes = append(b.cur.Changes, c)
		return nil
	}
	for i, col := range c.Relation.Columns {
		if col.Name == "token" && c.New != nil {
			b.token = string(c.New[i].Data)
		}
	}
	return nil
}

func (b *builder) needs(r *replication.Relation) bool {
	if b.begin.Commit >= b.seamsEnd {
		return true
	}
	s, ok := b.seams[r.Name]
	return !ok || s.Needs(b.begin.XID, b.begin.Commit)
}

func (b *builder) end(m replication.Mark) {
	b.cur.Marks = append(b.cur.Marks, m)
	b.cur.Position = m.Position
	b.open = false
	b.closed = b.pieces
}

// advance notes that nothing of interest lies before the position, as a keepalive between transactions says.
func (b *builder) advance(lsn pglogrepl.LSN) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advanced(lsn)
}

// advanced is advance for a caller that holds mu.
func (b *builder) advanced(lsn pglogrepl.LSN) {
	if b.open || b.closed || uint64(lsn) <= b.reached {
		return
	}
	b.reached = uint64(lsn)
	b.cur.Position = position(uint64(lsn))
	signal(b.filled)
}

// lagging is how far behind its commit a transaction must be sent for larger batches to be worth waiting for; patience is how long that
// may take.
const (
	lagging  = 500 * time.Millisecond
	patience = 50 * time.Millisecond
)

// early is how long to wait for a larger batch before taking what there is: on a stream that is behind, what a batch costs by itself and
// what the rows of a larger one have in common count for more than the wait.
func (b *builder) early() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.patient = false
	if b.late < lagging || !b.small() || b.cur.Received.IsZero() {
		return 0
	}
	wait := patience - time.Since(b.cur.Received)
	b.patient = wait > 0
	return wait
}

// small tells whether there is room for much more in the batch.
func (b *builder) small() bool {
	return !b.closed && !b.full() && len(b.cur.Changes) < b.limits.Changes/2 && b.cur.Bytes < b.limits.Bytes/2
}

// take removes what may be applied now: the whole transactions so far, a piece of the open one if it is over the bounds, or a
// bare position. It returns nil if there is nothing.
func (b *builder) take() *replication.Batch {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.takeNow()
}

// takeNow is take for a caller that holds mu.
func (b *builder) takeNow() *replication.Batch {
	cur := b.cur
	switch {
	case b.closed:
		b.closed, b.pieces = false, false
		cur.First, cur.Last = false, true
		b.cur = replication.NewBatch()
	case len(cur.Marks) > 0:
		if b.open {
			// The open transaction's first changes go on in a batch of their own.
			b.cur = cur.Split(cur.Marks[len(cur.Marks)-1].End, b.first)
			b.cur.Received = time.Now()
		} else {
			b.cur = replication.NewBatch()
		}
	case b.open && b.full():
		cur.First, cur.Last = !b.pieces, false
		cur.Position = ""
		b.pieces = true
		b.cur = replication.NewBatch()
	case !b.open && cur.Position != "":
		b.cur = replication.NewBatch()
	default:
		return nil
	}
	b.first = 0
	signal(b.taken)
	return cur
}

// join adds the whole transactions that have come meanwhile to a batch that waits for its receiver, as long as the bounds admit both.
func (b *builder) join(batch *replication.Batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	cur := b.cur
	if batch.Whole() && !b.pieces && (len(cur.Marks) > 0 || (!b.open && cur.Position != "")) &&
		len(batch.Changes)+len(cur.Changes) <= b.limits.Changes && len(batch.Marks)+len(cur.Marks) <= b.limits.Changes &&
		batch.Bytes+cur.Bytes <= b.limits.Bytes && batch.Held()+cur.Held() <= 2*max(b.limits.Bytes, replication.ChunkSize) {
		batch.Join(b.takeNow())
	}
}

// position formats an LSN as pg_lsn's text form does, once a transaction.
func position(lsn uint64) replication.Position {
	const digits = "0123456789ABCDEF"
	var b [17]byte
	at := len(b)
	half := func(v uint32) {
		for {
			at--
			b[at] = digits[v&15]
			if v >>= 4; v == 0 {
				return
			}
		}
	}
	half(uint32(lsn))
	at--
	b[at] = '/'
	half(uint32(lsn >> 32))
	return replication.Position(b[at:])
}
