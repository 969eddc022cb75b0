package redissync

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

// TestDaemonToBeStopped is no test of its own: it is what TestAStalledDaemonCostsTheSourceNoMoreThanTheBuffer starts and stops.
func TestDaemonToBeStopped(t *testing.T) {
	source, target, ok := strings.Cut(os.Getenv("REPLICATOR_TEST_STALL"), " ")
	if !ok {
		return
	}
	p := New(Options{Migration: "shop", Name: "cache", SourceURL: source, TargetURL: target, Epoch: 1, Log: testLog(t)})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends with the test
		cancel()
	}()
	if err := p.Run(ctx, false); err != nil {
		t.Fatal(err)
	}
}

// TestAStalledDaemonCostsTheSourceNoMoreThanTheBuffer stops a daemon (SIGSTOP) while an application writes to a source that is a full
// cache. What the source keeps for the daemon stays below the output buffer limit of class pubsub all the time, the feed is cut there, and
// after SIGCONT both sides become equal. With REPLICATOR_SOAK it lasts 60 s at 20 thousand writes a second with the default limit.
func TestAStalledDaemonCostsTheSourceNoMoreThanTheBuffer(t *testing.T) {
	t.Parallel()
	// Long names fill the buffer at less cost.
	limit, stalled, rate, name, most, memory := int64(1<<20), 20*time.Second, 2_000, 1000, 8, "10mb"
	setting := "pubsub 1mb 1mb 0"
	if soak() {
		limit, stalled, rate, name, memory, setting = 32<<20, 60*time.Second, 20_000, 60, "100mb", "pubsub 32mb 8mb 60"
	}
	r := newRig(t, redistest.Options{Settings: map[string]string{"maxmemory": memory, "maxmemory-policy": "allkeys-lru", "client-output-buffer-limit": setting}}, redistest.Options{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run", "^TestDaemonToBeStopped$", "-test.v")
	cmd.Env = append(os.Environ(), "REPLICATOR_TEST_STALL="+r.source.URL()+" "+r.target.URL())
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		stdin.Close()
		_ = cmd.Wait()
	})
	writers, stopWriters := startLoad(t, r.source, rate, name)
	defer stopWriters()
	watcher, other := dialServer(t, r.source), dialServer(t, r.target)
	eventually(t, "the cache is full", func() bool { return infoNumber(watcher, "stats", "evicted_keys") > 100 })
	eventually(t, "the target is being filled", func() bool { return infoNumber(other, "stats", "total_commands_processed") > 1000 })
	eventually(t, "the feed stands", func() bool { kept, feeds := keptForUs(watcher); return feeds == 1 && kept.feed < limit/4 })

	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began, evicted, before := time.Now(), infoNumber(watcher, "stats", "evicted_keys"), writers.Load()
	var worst kept
	var cut time.Duration
	samples := 0
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for enough := 0; enough < 50 && time.Since(began) < stalled; <-tick.C {
		now, feeds := keptForUs(watcher)
		worst = kept{max(worst.feed, now.feed), max(worst.rest, now.rest), max(worst.clients, now.clients)}
		samples++
		if feeds == 0 && cut == 0 {
			cut = time.Since(began)
		}
		if cut > 0 && !soak() { // after the cut, half a second more
			enough++
		}
	}
	took := time.Since(began)
	t.Logf("stopped for %v at %.0f writes/s: the source kept at most %d kB for the feed and %d kB for all other connections of ours (limit %d kB; INFO: %d kB for all clients, %d samples), cut the feed after %v and evicted %d keys",
		took.Round(time.Millisecond), float64(writers.Load()-before)/took.Seconds(), worst.feed>>10, worst.rest>>10, limit>>10, worst.clients>>10, samples,
		cut.Round(time.Millisecond), infoNumber(watcher, "stats", "evicted_keys")-evicted)
	// The server counts what it has just added before it cuts.
	if slack := int64(64 << 10); worst.feed > limit+slack {
		t.Errorf("the source kept %d bytes for the feed, the limit is %d", worst.feed, limit)
	}
	if worst.rest > int64(most)<<20 {
		t.Errorf("the source kept %d bytes for our other connections", worst.rest)
	}
	if cut == 0 {
		t.Errorf("the source never cut the feed")
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new feed stands", func() bool { _, feeds := keptForUs(watcher); return feeds == 1 })
	stopWriters()
	watcher.do("CONFIG", "SET", "maxmemory", "0") // reading everything would evict more of it
	r.settles()
}

// settles waits until both sides hold the same keys, whoever synchronises them.
func (r *rig) settles() {
	r.t.Helper()
	a, b := dialServer(r.t, r.source), dialServer(r.t, r.target)
	keys := func(c *client) int64 {
		return c.do("DBSIZE").num - c.do("EXISTS", r.o.stateKey(), r.o.originKey(), r.o.elsewhereKey()).num
	}
	began := time.Now()
	eventually(r.t, "the target is as the source", func() bool {
		// To read all keys takes both servers' time, which the healing needs: only when their number is right.
		return keys(a) == keys(b) && maps.Equal(stringsOf(r.t, a), stringsOf(r.t, b))
	})
	r.t.Logf("both sides are equal after %v, %d keys", time.Since(began).Round(time.Millisecond), keys(a))
}

// stringsOf reads the string keys of database 0.
func stringsOf(t *testing.T, c *client) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := scanKeys(context.Background(), c.s, 0, Options{}, func(keys []string) error {
		v := c.do(append([]string{"MGET"}, keys...)...)
		for i, k := range keys {
			if !v.items[i].null {
				out[k] = v.items[i].str
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kept is what a server holds in memory for clients.
type kept struct{ feed, rest, clients int64 }

// keptForUs sums the output buffers of our connections, of the feed and of the others, and counts the feeds.
func keptForUs(c *client) (k kept, feeds int) {
	c.t.Helper()
	for line := range strings.Lines(c.do("CLIENT", "LIST").str) {
		if !strings.Contains(line, " name=replicator:") {
			continue
		}
		n, _ := strconv.ParseInt(between(line, " omem=", " "), 10, 64)
		if strings.Contains(line, "-feed:") {
			k.feed += n
			feeds++
		} else {
			k.rest += n
		}
	}
	k.clients = infoNumber(c, "memory", "mem_clients_normal")
	return k, feeds
}

func infoNumber(c *client, section, field string) int64 {
	c.t.Helper()
	n, _ := strconv.ParseInt(between(c.do("INFO", section).str+"\r", "\n"+field+":", "\r"), 10, 64)
	return n
}

// startLoad writes at a rate to more keys than a small cache holds, with names of so many bytes, until the returned function is called.
func startLoad(t *testing.T, srv *redistest.Server, rate, name int) (*atomic.Int64, func()) {
	var written atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	c := dialServer(t, srv)
	l, err := c.s.open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		value := strings.Repeat("x", 100)
		last, owed := time.Now(), 0.0
		for i := 0; ; {
			select {
			case <-stop:
				return
			case now := <-tick.C:
				owed = min(owed+float64(rate)*now.Sub(last).Seconds(), float64(rate)/10)
				last = now
			}
			var cmds []command
			for ; owed >= 1; owed-- {
				cmds = append(cmds, command{"SET", fmt.Sprintf("cache:%0*d", name, i*7919%1_000_000), value})
				i++
			}
			if len(cmds) == 0 {
				continue
			}
			if _, err := l.pipe(context.Background(), cmds); err != nil {
				t.Error(err)
				return
			}
			written.Add(int64(len(cmds)))
		}
	}()
	var once sync.Once
	return &written, func() { once.Do(func() { close(stop); <-done }) }
}

// TestAFeedThatFallsBehindEndsItself lets only the feed's connection crawl, as a network does that is too slow for the changes: long
// before the server's limit, the feed is ended by ourselves, named, and what was missed is made good once the network is well.
func TestAFeedThatFallsBehindEndsItself(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{Settings: map[string]string{"client-output-buffer-limit": "pubsub 6mb 6mb 0"}}, redistest.Options{})
	slow := startCrawl(t, r.source)
	r.o.SourceURL = "redis://" + slow.listener.Addr().String()
	p := r.run(false)
	r.caughtUp()
	watcher := dialServer(t, r.source)
	slow.crawls.Store(true)
	_, stop := startLoad(t, r.source, 1_000, 1000)
	defer stop()
	var worst int64
	eventually(t, "the feed has ended itself", func() bool {
		now, _ := keptForUs(watcher)
		worst = max(worst, now.feed)
		return hasProblem(p.Status(), "redis-feed-behind")
	})
	slow.crawls.Store(false)
	stop()
	t.Logf("the source kept at most %d kB of 6 MB for the feed", worst>>10)
	if _, limit, _ := p.Memory(); worst >= 6<<20 || limit == nil || *limit != 6<<20 {
		t.Errorf("the source kept %d bytes, %v of which are allowed", worst, limit)
	}
	// It is named at once, and counted as a gap when the feed has gone.
	eventually(t, "a gap is noted", func() bool { return p.Status().Gaps > 0 })
	r.caughtUp()
	r.settles()
}

// crawl is a way to a server on which feeds can be made slow.
type crawl struct {
	listener net.Listener
	crawls   atomic.Bool
}

func startCrawl(t *testing.T, to *redistest.Server) *crawl {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	x := &crawl{listener: l}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to.Address())
			if err != nil {
				c.Close()
				continue
			}
			_ = up.(*net.TCPConn).SetReadBuffer(64 << 10) // what isn't read stays with the server
			mu.Lock()
			open = append(open, c, up)
			mu.Unlock()
			var feed atomic.Bool
			wg.Go(func() {
				defer up.Close()
				defer c.Close()
				b := make([]byte, 4096)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if strings.Contains(string(b[:n]), "TRACKING") {
						feed.Store(true)
					}
					if _, err := up.Write(b[:n]); err != nil {
						return
					}
				}
			})
			wg.Go(func() {
				defer up.Close()
				defer c.Close()
				b := make([]byte, 16<<10)
				for {
					n, err := up.Read(b)
					if err != nil {
						return
					}
					if feed.Load() && x.crawls.Load() { // 400 kB/s
						<-time.After(40 * time.Millisecond)
					}
					if _, err := c.Write(b[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return x
}

// TestRoomIsJudged goes through what servers tell of their memory.
func TestRoomIsJudged(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{
		"normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60": 32 << 20,
		"normal 0 0 0 slave 0 0 0 pubsub 0 8388608 60":                        8 << 20,
		"normal 0 0 0 slave 0 0 0 pubsub 0 0 0":                               0,
	} {
		if got, ok := pubsubLimit(text); !ok || got != want {
			t.Errorf("%q: %d, %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "normal 0 0 0", "pubsub 1"} {
		if got, ok := pubsubLimit(text); ok {
			t.Errorf("%q: %d", text, got)
		}
	}
	at := side{name: "source"}
	for _, c := range []struct {
		room room
		bad  string // part of the message; empty: nothing is wrong
		cut  int64
	}{
		{room{left: 1 << 30, limit: 32 << 20}, "", 16 << 20},
		{room{left: -1, limit: 32 << 20, assumed: true}, "", 16 << 20},
		{room{left: 10 << 20, limit: 32 << 20}, "refused", 5 << 20},
		{room{left: 10 << 20, limit: 32 << 20, evicts: true}, "evicted", 5 << 20},
		{room{left: 10 << 20, limit: 32 << 20, assumed: true, evicts: true}, "32 MB (the default, as the server doesn't tell its own)", 5 << 20},
		{room{left: 0, limit: 32 << 20, evicts: true}, "evicted", 1 << 20},
		{room{left: 10 << 20, system: true, limit: 32 << 20}, "run out of memory", 5 << 20},
		{room{left: 1 << 30, limit: 0}, "no limit", 16 << 20},
		{room{left: 1 << 30, limit: 1 << 20}, "", 512 << 10},
	} {
		f, bad := c.room.finding(at, "source")
		if bad != (c.bad != "") || !strings.Contains(f.Message, c.bad) {
			t.Errorf("%+v: %v, %q", c.room, bad, f.Message)
		}
		if got := c.room.cut(); got != c.cut {
			t.Errorf("%+v: cut at %d, want %d", c.room, got, c.cut)
		}
	}
}

// TestCheckSaysWhichLimitItAssumes asks a source that keeps its configuration to itself, as managed ones do.
func TestCheckSaysWhichLimitItAssumes(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	r.a.do("ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", "-config")
	r.o.SourceURL = "redis://limited:pw@" + r.source.Address()
	said := func() (out []string) {
		for _, f := range Check(r.ctx(), r.o) {
			if f.Code == "redis-memory-headroom" && f.Side == "source" {
				out = append(out, fmt.Sprint(f.Severity)+": "+f.Message)
			}
		}
		return out
	}
	if got := said(); len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprint(preflight.OK)) || !strings.Contains(got[0], "32 MB (assumed: CONFIG GET is not allowed)") {
		t.Errorf("with room: %q", got)
	}
	r.a.do("CONFIG", "SET", "maxmemory", "20mb")
	if got := said(); len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprint(preflight.Warning)) || !strings.Contains(got[0], "32 MB (the default, as the server doesn't tell its own)") {
		t.Errorf("without: %q", got)
	}
	p := r.run(false)
	eventually(t, "the status warns as well", func() bool { return hasProblem(p.Status(), "redis-memory-headroom") })
	left, limit, kept := p.Memory()
	if left == nil || *left <= 0 || *left > 20<<20 || limit == nil || *limit != 32<<20 || kept == nil || *kept != 0 {
		t.Errorf("memory: %v left, limit %v, kept %v", left, limit, kept)
	}
}
