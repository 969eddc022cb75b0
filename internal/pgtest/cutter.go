package pgtest

import (
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
)

// Cutter passes connections on to a server until it cuts them, as a network does that fails. Its methods may be called from several
// goroutines.
type Cutter struct {
	turns atomic.Int64
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
			var asked atomic.Bool
			pass := func(to, from net.Conn, note func()) {
				_, _ = io.Copy(to, noting{from, note})
				_, _ = to.Close(), from.Close() // the first end to fail or close takes the other with it
			}
			go pass(out, in, func() {
				if !asked.Swap(true) {
					c.turns.Add(1)
				}
			})
			go pass(in, out, func() { asked.Store(false) })
		}
	}()
	u.Host = l.Addr().String()
	return c, u.String()
}

// Turns is how often a client has spoken after the server had, on all connections: about the round trips that were waited for.
func (c *Cutter) Turns() int { return int(c.turns.Load()) }

// noting tells of each read that brings something.
type noting struct {
	from net.Conn
	note func()
}

func (n noting) Read(b []byte) (int, error) {
	k, err := n.from.Read(b)
	if k > 0 {
		n.note()
	}
	return k, err
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
