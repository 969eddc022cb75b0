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
	raw  syscall.RawConn
	busy bool // the last read brought much, of a stream that is behind
	low  int  // SO_RCVLOWAT
}

const (
	// much is what a read must bring for the stream to be busy, enough what is waited for then, for at most a moment.
	much   = 64 << 10
	enough = 512 << 10
	moment = 10 * time.Millisecond
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

// read notes what the last read brought, and whether the stream is behind: one that follows has bursts, and whoever waits for their last row.
func (g *gatherer) read(n int, behind bool) {
	if g != nil {
		g.busy = n >= much && behind
	}
}

// wait returns when a read is worth it.
func (g *gatherer) wait(ctx context.Context, conn net.Conn) error {
	if g == nil {
		return nil
	}
	if !g.busy {
		return g.set(1)
	}
	if err := g.set(enough); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(moment)); err != nil {
		return err
	}
	waited := false
	err := g.raw.Read(func(fd uintptr) bool {
		if waited {
			return true
		}
		waited = true
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		return err != nil || n >= enough
	})
	if timedOut(err) {
		if err = g.set(1); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	return ctx.Err() // whose end may have set a deadline that was just taken away
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
