package logical

import (
	"crypto/tls"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gatherer lets messages gather before they are read. The server sends each by a system call of its own; a reader that takes each at once is woken by
// each, at its own cost and the server's. For a moment before each read the socket reports data only from enough bytes on (SO_RCVLOWAT in
// socket(7)).
type gatherer struct {
	raw syscall.RawConn
	// known is how much lay in the socket and hasn't been read. TLS takes a record at a time, however much there is.
	known int
}

// enough is how many bytes aren't waited for any longer.
const enough = 512 << 10

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
	return &gatherer{raw: raw}
}

// wait lets messages gather for a moment, if nothing is left of what had.
func (g *gatherer) wait(moment time.Duration) (err error) {
	if g == nil || g.known > 0 || moment == 0 {
		return nil
	}
	if e := g.raw.Control(func(fd uintptr) { g.known, err = gather(int(fd), moment) }); e != nil {
		return e
	}
	return err
}

// took says that n bytes were read.
func (g *gatherer) took(n int) {
	if g != nil {
		g.known -= n
	}
}

// gather waits and tells how much there is.
func gather(fd int, moment time.Duration) (int, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, enough); err != nil {
		return 0, err
	}
	limit := unix.NsecToTimespec(int64(moment))
	_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &limit, nil)
	// The read that follows takes what there is.
	if e := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1); e != nil {
		return 0, e
	}
	if err != nil && err != unix.EINTR {
		return 0, err
	}
	return unix.IoctlGetInt(fd, unix.TIOCINQ)
}
