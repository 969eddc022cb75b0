package redissync

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// proxy is a stable address that leads to one server or another, as a provider's primary endpoint does.
type proxy struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	to    string
	conns map[net.Conn]struct{}
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: to, conns: map[net.Conn]struct{}{}}
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.lead("")
		p.wg.Wait()
	})
	return p
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	p.mu.Lock()
	to := p.to
	p.mu.Unlock()
	up, err := net.DialTimeout("tcp", to, time.Second)
	if err != nil {
		return
	}
	defer up.Close()
	p.mu.Lock()
	if p.to != to {
		p.mu.Unlock()
		return
	}
	p.conns[c], p.conns[up] = struct{}{}, struct{}{}
	p.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(up, c)
		up.Close()
	}()
	io.Copy(c, up)
	c.Close()
	<-done
	p.mu.Lock()
	delete(p.conns, c)
	delete(p.conns, up)
	p.mu.Unlock()
}

// lead sends later connections to another server and ends the present ones.
func (p *proxy) lead(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = to
	for c := range p.conns {
		c.Close()
	}
}

// TestTheSourceFailsOver promotes a replica behind a stable address while an application writes and the feed is cut again and again: one
// that has the data is followed, one that never had it isn't.
func TestTheSourceFailsOver(t *testing.T) {
	t.Parallel()
	for _, synced := range []bool{true, false} {
		t.Run(fmt.Sprintf("synced %v", synced), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Options{}, redistest.Options{})
			ctx := r.ctx()
			heir := redistest.Start(t, redistest.Options{})
			c := dialServer(t, heir)
			if synced {
				c.do("REPLICAOF", "127.0.0.1", fmt.Sprint(r.source.Port()))
			}
			everyType(r.a, "0")
			setMany(r.a, 300, "v")
			front := startProxy(t, r.source.Address())
			r.o.SourceURL = "redis://" + front.listener.Addr().String()
			p := r.run(false)
			r.caughtUp()
			s := (&storm{url: r.source.URL()}).start(testSeed(t), 2, 0)
			cut, stop := context.WithCancel(ctx)
			var cutting sync.WaitGroup
			cutting.Go(func() { cutFeeds(cut, r.source, heir) })
			eventually(t, "the feed was cut a few times under load", func() bool { return p.Status().Gaps > 3 })
			s.end()
			if synced {
				r.a.do("WAIT", "1", "5000")
			}
			before := lasting(contents(t, r.b)) // while the feed is cut again and again, the target lags behind the source
			if err := r.source.Kill(); err != nil {
				t.Fatal(err)
			}
			if synced {
				c.do("REPLICAOF", "NO", "ONE")
			}
			front.lead(heir.Address())
			c.do("SET", "after", "the failover")
			if !synced {
				stop()
				cutting.Wait()
				eventually(t, "the loss is named", func() bool { return hasProblem(p.Status(), "redis-origin-empty") })
				if n := lasting(contents(t, r.b)); n < before*9/10 { // some may have been deleted by then
					t.Fatalf("the target was emptied: %d lasting keys of %d", n, before)
				}
				return
			}
			s = (&storm{url: heir.URL(), upheavals: true}).start(testSeed(t), 2, 0)
			eventually(t, "the successor is followed", func() bool { _, ok := contents(t, r.b)[keyID{0, "after"}]; return ok || s.sent.Load() > 3000 })
			s.end()
			stop()
			cutting.Wait()
			r.a = c
			r.caughtUp()
			r.equal()
		})
	}
}

// cutFeeds ends the feed's connection ten times a second.
func cutFeeds(ctx context.Context, servers ...*redistest.Server) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, srv := range servers {
			e, err := parseEndpoint(srv.URL(), TLS{})
			if err != nil {
				return
			}
			s := &session{endpoint: e, name: "cutter"}
			s.do(ctx, "CLIENT", "KILL", "TYPE", "pubsub")
			s.close()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
