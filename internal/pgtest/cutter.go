package pgtest

import (
	"io"
	"net"
	"net/url"
	"sync"
)

// Cutter passes connections on to a server until it cuts them, as a network does that fails. Its methods may be called from several
// goroutines.
type Cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

// NewCutter returns a Cutter before the server of a URL, and the URL that leads through it. It ends with the test.
func NewCutter(t TB, to string) (c *Cutter, through string) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatalf("parse the server's URL: %v", err)
	}
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	c = &Cutter{}
	t.Cleanup(func() { _ = l.Close(); c.Cut() }) // closing a listener only says that it was closed before
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", server)
			if err != nil {
				_ = in.Close() // the server is gone: so is the client's connection
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
				// The first end to fail or close takes the other with it.
				go func() { _, _ = io.Copy(p[0], p[1]); _ = p[0].Close(); _ = p[1].Close() }()
			}
		}
	}()
	u.Host = l.Addr().String()
	return c, u.String()
}

// Cut ends all connections at once, in the middle of whatever they carry and without a word to either end. New ones pass.
func (c *Cutter) Cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, not an orderly end
		}
		_ = conn.Close() // it may have ended by itself
	}
	c.conns = nil
}
