package pair

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
)

// cutter passes connections on to a server until it cuts them.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

// newCutter returns a URL that leads through the cutter.
func newCutter(t *testing.T, to string) (*cutter, string) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	server := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{}
	t.Cleanup(func() { l.Close(); c.cut() })
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
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			for _, p := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() { _, _ = io.Copy(p[0], p[1]); p[0].Close(); p[1].Close() }()
			}
		}
	}()
	u.Host = l.Addr().String()
	return c, u.String()
}

// cut ends all connections at once, in the middle of whatever they carry.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, not an orderly end
		}
		conn.Close()
	}
	c.conns = nil
}

// persistentWriters write to the varied schema and connect again whenever the server is gone, until stop is called.
func persistentWriters(t *testing.T, url string, s uint64, n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(s, uint64(i)))
			for ctx.Err() == nil {
				conn, err := pgx.Connect(ctx, url)
				if err != nil {
					select {
					case <-ctx.Done():
					case <-time.After(50 * time.Millisecond):
					}
					continue
				}
				for ctx.Err() == nil {
					err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
						for range 1 + r.IntN(8) {
							if _, err := tx.Exec(ctx, randomStatement(r)); err != nil {
								return err
							}
						}
						return nil
					})
					if err != nil && conn.IsClosed() {
						break
					}
					if err != nil && fatal(err) && !postgres.IsTransient(err) && ctx.Err() == nil {
						t.Errorf("write: %v", err)
						cancel()
					}
				}
				conn.Close(context.Background())
			}
		})
	}
	f := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(f)
	return f
}

// Servers that are killed and networks that are cut, on either side, at random moments of copy and stream, need nobody: the pair goes on,
// nothing is lost and nothing comes twice. The target loses what it had committed without waiting for the flush.
func TestCrashesAndCuts(t *testing.T) {
	s := seed(t)
	r := rand.New(rand.NewPCG(s, 3))
	source := pgtest.Start(t, pgtest.Options{})
	target := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_writer_delay": "10s"}})
	direct, destination := source.Database(t), target.Database(t)
	cutSource, throughSource := newCutter(t, direct)
	cutTarget, throughTarget := newCutter(t, destination)
	f := &fixture{t: t, source: throughSource, target: throughTarget, migration: "m" + strconv.FormatUint(r.Uint64()%1e9, 10), capture: Logical}
	pgtest.Exec(t, direct, variedSchema)
	stop := persistentWriters(t, direct, s, 3)
	restart := func(s *pgtest.Server) {
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(f.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	disturb := []struct {
		name string
		do   func()
	}{
		{"source killed", func() { restart(source) }},
		{"target killed", func() { restart(target) }},
		{"source cut", cutSource.cut},
		{"target cut", cutTarget.cut},
		{"both cut", func() { cutSource.cut(); cutTarget.cut() }},
	}
	f.start(false)
	for _, phase := range []Phase{Starting, Copying, Indexing} {
		f.until("phase "+string(phase), time.Minute, func(s Status) bool { return s.Phase == phase || s.Phase == Streaming })
		d := disturb[r.IntN(len(disturb))]
		t.Logf("%s in phase %s", d.name, f.pair.Status().Phase)
		d.do()
	}
	f.streaming()
	rounds := 3
	if os.Getenv("REPLICATOR_SOAK") != "" {
		rounds = 100
	}
	for i := range rounds {
		d := disturb[(i+r.IntN(2))%len(disturb)]
		applied, least := f.pair.Status().Applied, int64(1+r.IntN(60))
		f.until(fmt.Sprintf("%d transactions", least), time.Minute, func(s Status) bool { return s.Applied >= applied+least })
		t.Log(d.name)
		d.do()
	}
	stop()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := f.pair.CaughtUp(ctx); err != nil {
		t.Fatalf("%v: %+v", err, f.pair.Status().Problems)
	}
	f.equal()
}
