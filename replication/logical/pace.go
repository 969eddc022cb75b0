package logical

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	// rest is how long the reader of a stream leaves what arrives to the kernel while nobody could use it yet.
	rest = time.Millisecond
	// long is the number of changes from which on an open transaction's end isn't waited for at every message.
	long = 200
	// behind is the age of a transaction, by both clocks, from which on it is better applied together with the next ones than at once.
	// Where the clocks disagree by more, transactions wait for gather without need.
	behind = time.Second
	// gather bounds that wait.
	gather = 40 * time.Millisecond
)

// pace reads the stream in large pieces. The server sends every message by itself, and a reader that takes each of them at once wakes
// up, and makes the server wake it, once a message: that costs both sides more than the messages do. So while what comes couldn't be
// applied yet anyway, the reader rests before it looks for more. While the applier waits for the next message, it never does.
type pace struct {
	from io.Reader
	idle func() bool
	buf  []byte
	data []byte // of buf, not read yet
	// scarce: the last look found less than half a buffer.
	scarce bool
	socket syscall.RawConn // nil before attach, or where there is none
}

func newPace(from io.Reader, idle func() bool) *pace {
	return &pace{from: from, idle: idle, buf: make([]byte, 128<<10)}
}

// Read implements io.Reader.
func (p *pace) Read(b []byte) (int, error) {
	if len(p.data) == 0 {
		if p.scarce && !p.idle() {
			p.lowWater(len(p.buf) / 2)
			time.Sleep(rest)
			p.lowWater(1)
		}
		n, err := p.from.Read(p.buf)
		p.data, p.scarce = p.buf[:n], n < len(p.buf)/2
		if n == 0 {
			return 0, err
		}
		// An error that came with data comes again with the next look.
	}
	n := copy(b, p.data)
	p.data = p.data[n:]
	return n, nil
}

// attach tells the pace the session's connection, before its first rest.
func (p *pace) attach(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	if c, ok := conn.(syscall.Conn); ok {
		p.socket, _ = c.SyscallConn() // without it a rest still helps
	}
}

// lowWater sets how much must have arrived before the kernel tells anybody (SO_RCVLOWAT, socket(7)): the runtime's poller looks at the
// connection even while no goroutine does, and would be woken by every message.
func (p *pace) lowWater(n int) {
	if p.socket == nil {
		return
	}
	_ = p.socket.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT, n) // only costs time where it can't be set
	})
}

// idle tells whether the applier may be waiting for the very next message.
func (b *builder) idle() bool {
	if b.busy.Load() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.open || len(b.cur.Changes) < long
}

// gather waits while a stream that is behind fills the batch: a large one costs less a transaction than many small ones, since rows that
// change again and again are written once.
func (b *builder) gather(ctx context.Context) {
	for waited := time.Duration(0); waited < gather && b.wantsMore(); waited += gather / 8 {
		b.busy.Store(true)
		timer := time.NewTimer(gather / 8)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
	b.busy.Store(false)
}

// wantsMore tells whether the batch holds only old transactions and is far from its bounds.
func (b *builder) wantsMore() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	marks := b.cur.Marks
	return len(marks) > 0 && !b.closed && !b.full() && len(b.cur.Changes) < b.limits.Changes/2 && time.Since(marks[len(marks)-1].Commit) > behind
}
