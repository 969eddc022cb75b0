package bench

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"replicator/replication/pair"
)

// roundTrip is the time between the clouds; window is what a connection has under way in one direction at most, as TCP has (tcp(7):
// tcp_rmem grows to 6 MB, of which half is window).
const (
	roundTrip = 50 * time.Millisecond
	window    = 3 << 20
)

// wire returns a URL that leads to the same database through a proxy in this process. What passes arrives later by half a round trip.
func (w *world) wire(to string, delay time.Duration) string {
	w.b.Helper()
	u, err := url.Parse(to)
	if err != nil {
		w.b.Fatal(err)
	}
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.b.Fatal(err)
	}
	w.b.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", server)
			if err != nil {
				in.Close()
				continue
			}
			go late(out, in, delay/2)
			go late(in, out, delay/2)
		}
	}()
	u.Host = l.Addr().String()
	return u.String()
}

// late passes on what it reads once it is old enough, and ends the connection when its end has come through.
func late(to io.WriteCloser, from io.Reader, after time.Duration) {
	type piece struct {
		data []byte
		due  time.Time
	}
	const size = 64 << 10
	line := make(chan piece, window/size)
	free := make(chan []byte, cap(line)+2)
	for range cap(free) {
		free <- make([]byte, size)
	}
	go func() {
		defer close(line)
		for {
			b := <-free
			n, err := io.ReadAtLeast(from, b, 1)
			if n > 0 {
				line <- piece{b[:n], time.Now().Add(after)}
			}
			if err != nil {
				return
			}
		}
	}()
	defer to.Close()
	broken := false
	for p := range line {
		if !broken {
			<-time.After(time.Until(p.due))
			_, err := to.Write(p.data)
			broken = err != nil
		}
		free <- p.data[:size]
	}
}

// hops are where the distance lies. All of them go through the proxy, whose own cost is the same for each.
var hops = []struct {
	name           string
	source, target time.Duration
}{
	{"loopback", 0, 0}, {"50 ms to the source", roundTrip, 0}, {"50 ms to the target", 0, roundTrip},
}

// BenchmarkWire is row W: rows A and B1 with the daemon far from one of the servers.
func BenchmarkWire(b *testing.B) {
	b.Run("A", func(b *testing.B) {
		w := newWorld(b, large)
		w.loadLarge(scale(b))
		var all []*copier
		for _, h := range hops {
			c := &copier{name: h.name}
			c.run = func(db string) {
				c.elsewhere = w.copyByReplicator(db, w.wire(w.origin, h.source), w.wire(w.target.URL(db), h.target))
			}
			all = append(all, c)
		}
		w.measure(all[0], "warm")
		for round := range rounds(b) {
			for i := range all {
				c := all[(i+round)%len(all)]
				c.runs = append(c.runs, w.measure(c, fmt.Sprintf("copy_%d_%d", round, i)))
			}
		}
		fmt.Printf("\nscale %g, %d rounds\n\n| A, replicator's place | seconds | throughput against loopback | goal |\n| --- | --- | --- | --- |\n", scale(b), rounds(b))
		for _, c := range all {
			fmt.Printf("| %s | %.2f | %.2f | ≥ 0.9 |\n", c.name, c.median().seconds, all[0].median().seconds/c.median().seconds)
		}
	})
	b.Run("B1", func(b *testing.B) {
		l := drains[slices.IndexFunc(drains, func(l workload) bool { return l.name == "B1" })]
		w := newWorld(b, l.ddl)
		l.load(w)
		w.schema = pgDump(w)
		for i, h := range hops {
			w.far(h.name, fmt.Sprintf("wire%d", i), h.source, h.target)
		}
		for round := range rounds(b) {
			l.round(w, round)
		}
		fmt.Printf("\nscale %g, %d rounds\n\n| B1, replicator's place | seconds | throughput against loopback | goal |\n| --- | --- | --- | --- |\n", scale(b), rounds(b))
		for _, s := range w.systems {
			fmt.Printf("| %s | %.2f | %.2f | ≥ 0.9 |\n", s.name, medians(s.drains).seconds, medians(w.systems[0].drains).seconds/medians(s.drains).seconds)
		}
	})
}

// far is replicator with a distance to either server; its tables are copied before.
func (w *world) far(name, migration string, toSource, toTarget time.Duration) {
	w.b.Helper()
	s := w.database(migration)
	s.name, s.slot = name, "replicator_"+migration+"_main"
	source, target := w.wire(w.origin, toSource), w.wire(s.url, toTarget)
	var c *child
	s.enable = func() { c = start(w.b, order{Source: source, Target: target, Migration: migration}) }
	s.disable = func() {
		c.stop(w.b)
		w.idle(s)
	}
	s.pid = func() int { return c.cmd.Process.Pid }
	s.enable()
	c.await(w.b, pair.Streaming)
	s.disable()
}
