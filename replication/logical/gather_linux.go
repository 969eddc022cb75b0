package logical

import (
	"context"
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gatherer lets a busy stream's messages gather before they are read. The server sends every message by a system call of its own; a reader
// that takes each at once has itself woken by each, at the server's cost. While much comes late, the socket reports data only from enough bytes on
// (SO_RCVLOWAT in socket(7)), or after a moment; on a quiet stream nothing waits.
type gatherer struct {
	raw syscall.RawConn
	low int // SO_RCVLOWAT
}

const (
	// enough is what is waited for at most, inTime how late messages may come without being waited for, longest the longest moment; pulling is that of a
	// backlog that is pulled, which the server sends 8 kB at a time.
	enough  = 512 << 10
	inTime  = 20 * time.Millisecond
	longest = 10 * time.Millisecond
	pulling = time.Millisecond
)

func newGatherer(conn net.Conn) *gatherer {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	t, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	return &gatherer{raw: raw, low: 1}
}

// wait returns when a read is worth it. The later what came last was sent, the more may gather, so that waiting adds a part to what has been lost
// already. A stream that follows in time has bursts, and whoever waits for their last row.
func (g *gatherer) wait(ctx context.Context, conn net.Conn, late time.Duration, backlog bool) error {
	if g == nil {
		return nil
	}
	moment := min(max((late-inTime)/4, 0), longest)
	if backlog {
		moment = pulling
	}
	if moment == 0 {
		return g.set(1)
	}
	if err := g.set(enough); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(moment)); err != nil {
		return err
	}
	waited, much := false, false
	err := g.raw.Read(func(fd uintptr) bool {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		much = n >= enough
		ready := waited || err != nil || much
		waited = true
		return ready
	})
	if err != nil && !timedOut(err) {
		return err
	}
	// Readiness may be left from data that was read before, and then a read, or one of the rest of a TLS record, would wait until enough has come, however long
	// that takes.
	if !much {
		if err := g.set(1); err != nil {
			return err
		}
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return ctx.Err() // whose end may have set a deadline that was just taken away
}

// close leaves the socket as it was.
func (g *gatherer) close() {
	if g != nil {
		_ = g.set(1) // a socket that is closed needs nothing
	}
}

// set sets SO_RCVLOWAT.
func (g *gatherer) set(low int) error {
	if g.low == low {
		return nil
	}
	var err error
	if e := g.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, low) }); e != nil {
		return e
	}
	if err == nil {
		g.low = low
	}
	return err
}
