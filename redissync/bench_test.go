package redissync

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"replicator/internal/redistest"
)

// The sizes are those of docs/performance.md times REPLICATOR_BENCH_SCALE; REPLICATOR_BENCH_ROUNDS repeats each comparison.

func benchScale() float64 {
	if v, err := strconv.ParseFloat(os.Getenv("REPLICATOR_BENCH_SCALE"), 64); err == nil && v > 0 {
		return v
	}
	return 0.1
}

func benchRounds() int {
	if v, err := strconv.Atoi(os.Getenv("REPLICATOR_BENCH_ROUNDS")); err == nil && v > 0 {
		return v
	}
	return 3
}

// BenchmarkRedisCopy measures the first copy of small keys of mixed types, from New to caught up, against a plain pipelined
// DUMP/RESTORE loop over the same keys: the floor. They take turns, each into a target that was just emptied.
func BenchmarkRedisCopy(b *testing.B) {
	keys := int(1_000_000 * benchScale())
	ctx := b.Context()
	source, target := launch(b), launch(b)
	fill(b, source, keys)
	t := dialBench(b, target)
	for b.Loop() {
		var floors, ours, ratios []float64
		var cpu [3]float64
		copies := []func(){
			func() { floors = append(floors, timed(func() { plainCopy(b, source, target, keys) })) },
			func() {
				before := cpuSeconds(b, source, target)
				ours = append(ours, timed(func() {
					stop := startPair(b, source, target)
					defer stop()
				}))
				for i, x := range cpuSeconds(b, source, target) {
					cpu[i] += x - before[i]
				}
			},
		}
		for range benchRounds() {
			for _, f := range copies {
				if _, err := t.do(ctx, "FLUSHALL", "SYNC"); err != nil {
					b.Fatal(err)
				}
				f()
			}
			slices.Reverse(copies) // who goes first takes turns
			ratios = append(ratios, floors[len(floors)-1]/ours[len(ours)-1])
		}
		n := float64(keys)
		b.Logf("floor %.2f s, replicator %.2f s, ratios %.3f", floors, ours, ratios)
		b.ReportMetric(n/median(floors), "floor-keys/s")
		b.ReportMetric(n/median(ours), "keys/s")
		b.ReportMetric(median(floors)/median(ours), "of-floor")
		for i, name := range []string{"daemon", "source", "target"} {
			b.ReportMetric(cpu[i]/float64(benchRounds())/n*1e6, name+"-µs/key")
		}
	}
}

// BenchmarkRedisFollow measures the way of a change to the target under 20 thousand writes a second: from before the write is sent until
// the target itself reports it.
func BenchmarkRedisFollow(b *testing.B) {
	w := startWorld(b)
	defer w.stop()
	length := time.Duration(60 * benchScale() * float64(time.Second))
	for b.Loop() {
		lags := w.lags(b, length)
		b.ReportMetric(w.rate(), "writes/s")
		report(b, "lag", lags)
		b.ReportMetric(timed(func() {
			if err := w.pair.CaughtUp(b.Context()); err != nil {
				b.Fatal(err)
			}
		})*1000, "ms-caught-up")
	}
}

// BenchmarkRedisFreeze measures from the call that holds the source's writes until the target has all of them, under the same load, many
// times over.
func BenchmarkRedisFreeze(b *testing.B) {
	w := startWorld(b)
	defer w.stop()
	ctx := b.Context()
	freezes := max(50, int(200*benchScale()))
	for b.Loop() {
		var all []time.Duration
		for range freezes {
			ended := time.NewTimer(100 * time.Millisecond) // the load runs on between two freezes
			<-ended.C
			started := time.Now()
			if err := w.pair.Freeze(ctx, false, time.Now().Add(10*time.Second)); err != nil {
				b.Fatal(err)
			}
			if err := w.pair.Fence(ctx, false); err != nil {
				b.Fatal(err)
			}
			if err := w.pair.Drain(ctx, false); err != nil {
				b.Fatal(err)
			}
			all = append(all, time.Since(started))
			if err := w.pair.Thaw(ctx, false); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(w.rate(), "writes/s")
		report(b, "frozen-to-drained", all)
	}
	if err := w.pair.CaughtUp(ctx); err != nil {
		b.Fatal(err)
	}
	if r, err := w.pair.VerifyNow(ctx); err != nil || r.Mismatches > 0 {
		b.Fatalf("verify: %+v, %v", r, err)
	}
}

// BenchmarkRedisVerify measures the complete comparison of both sides at rest.
func BenchmarkRedisVerify(b *testing.B) {
	keys := int(1_000_000 * benchScale())
	source, target := launch(b), launch(b)
	fill(b, source, keys)
	p, stop := startedPair(b, source, target)
	defer stop()
	for b.Loop() {
		took := timed(func() {
			if r, err := p.VerifyNow(b.Context()); err != nil || r.Mismatches > 0 {
				b.Fatalf("verify: %+v, %v", r, err)
			}
		})
		b.ReportMetric(float64(keys)/took, "keys/s")
	}
}

func timed(f func()) float64 {
	started := time.Now()
	f()
	return time.Since(started).Seconds()
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	if len(x)%2 == 0 {
		return (x[len(x)/2-1] + x[len(x)/2]) / 2
	}
	return x[len(x)/2]
}

func report(b *testing.B, what string, all []time.Duration) {
	slices.Sort(all)
	at := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Microseconds()) / 1000 }
	b.Logf("%s of %d: p50 %.2f ms, p90 %.2f, p99 %.2f, worst %.2f", what, len(all), at(0.5), at(0.9), at(0.99), at(1))
	b.ReportMetric(at(0.5), "ms-p50-"+what)
	b.ReportMetric(at(0.99), "ms-p99-"+what)
}

// cpuSeconds is what this process and both servers have used so far.
func cpuSeconds(b *testing.B, source, target *redistest.Server) [3]float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	out := [3]float64{float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9}
	for i, srv := range []*redistest.Server{source, target} {
		s := dialBench(b, srv)
		info, err := readInfo(b.Context(), s, "cpu")
		if err != nil {
			b.Fatal(err)
		}
		for _, f := range []string{"used_cpu_user", "used_cpu_sys"} {
			x, _ := strconv.ParseFloat(info.fields[f], 64)
			out[i+1] += x
		}
		s.close()
	}
	return out
}

func dialBench(b *testing.B, srv *redistest.Server) *session {
	e, err := parseEndpoint(srv.URL(), TLS{})
	if err != nil {
		b.Fatal(err)
	}
	s := &session{endpoint: e}
	b.Cleanup(s.close)
	return s
}

func launch(b *testing.B) *redistest.Server {
	srv, err := redistest.Launch(context.Background(), b.TempDir(), redistest.Options{Version: os.Getenv("REPLICATOR_TEST_SOURCE_REDIS")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { srv.Kill() })
	return srv
}

// startedPair starts a pair and returns when the target has everything.
func startedPair(b *testing.B, source, target *redistest.Server) (*Pair, func()) {
	p := New(Options{Migration: "bench", Name: "b", SourceURL: source.URL(), TargetURL: target.URL(), Epoch: 1})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx, false) })
	if err := p.CaughtUp(ctx); err != nil {
		b.Fatal(err)
	}
	return p, func() {
		cancel()
		wg.Wait()
	}
}

func startPair(b *testing.B, source, target *redistest.Server) func() {
	_, stop := startedPair(b, source, target)
	return stop
}

func benchKey(i int) string {
	return []string{"session:", "user:", "scores:", "queue:"}[i%4] + strconv.Itoa(i)
}

func fill(b *testing.B, srv *redistest.Server, keys int) {
	s := dialBench(b, srv)
	l, err := s.open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var cmds []command
	for i := range keys {
		k, n := benchKey(i), strconv.Itoa(i)
		switch i % 4 {
		case 0:
			cmds = append(cmds, command{"SET", k, fmt.Sprintf("%0200d", i), "PX", "10000000"})
		case 1:
			cmds = append(cmds, command{"HSET", k, "name", "n" + n, "mail", n + "@example.com", "visits", n})
		case 2:
			cmds = append(cmds, command{"ZADD", k, "1", "a", "2", "b", "3", "c"})
		case 3:
			cmds = append(cmds, command{"RPUSH", k, "a", "b", "c"})
		}
		if len(cmds) == 1000 || i == keys-1 {
			if _, err := l.pipe(b.Context(), cmds); err != nil {
				b.Fatal(err)
			}
			cmds = cmds[:0]
		}
	}
}

// plainCopy is the floor: SCAN, DUMP and PTTL in one pipeline, RESTORE in another, on one connection to each side.
func plainCopy(b *testing.B, source, target *redistest.Server, keys int) {
	ctx := context.Background()
	s, t := dialBench(b, source), dialBench(b, target)
	defer s.close()
	defer t.close()
	done := 0
	for cursor := "0"; ; {
		v, err := s.do(ctx, "SCAN", cursor, "COUNT", "500")
		if err != nil {
			b.Fatal(err)
		}
		var ask, put []command
		names := v.items[1].strings()
		for _, k := range names {
			ask = append(ask, command{"DUMP", k}, command{"PTTL", k})
		}
		got, err := s.link.pipe(ctx, ask)
		if err != nil {
			b.Fatal(err)
		}
		for i, k := range names {
			put = append(put, command{"RESTORE", k, strconv.FormatInt(max(0, got[2*i+1].num), 10), got[2*i].str, "REPLACE"})
		}
		if l, err := t.open(ctx); err != nil {
			b.Fatal(err)
		} else if _, err := l.pipe(ctx, put); err != nil {
			b.Fatal(err)
		}
		done += len(names)
		if cursor = v.items[0].str; cursor == "0" {
			break
		}
	}
	if done < keys {
		b.Fatalf("copied %d keys", done)
	}
}

// world is a pair that follows a source of 100 thousand mixed keys under a steady load.
type world struct {
	source, target *redistest.Server
	pair           *Pair
	writes         atomic.Int64
	since          time.Time
	stop           func()
}

const benchRate = 20_000 // writes a second

func startWorld(b *testing.B) *world {
	w := &world{source: launch(b), target: launch(b)}
	const keys = 100_000
	fill(b, w.source, keys)
	p, stop := startedPair(b, w.source, w.target)
	w.pair, w.since = p, time.Now()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		s := dialBench(b, w.source)
		l, err := s.open(context.Background())
		if err != nil {
			b.Error(err)
			return
		}
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		var owed float64
		last := time.Now()
		for i := 0; ; {
			select {
			case <-done:
				return
			case now := <-tick.C:
				owed = min(owed+benchRate*now.Sub(last).Seconds(), benchRate/20) // what a freeze held up isn't made up for
				last = now
			}
			var cmds []command
			for ; owed >= 1; owed-- {
				k := benchKey(i * 7919 % keys)
				switch n := strconv.Itoa(i); i * 7919 % keys % 4 {
				case 0:
					cmds = append(cmds, command{"SET", k, strings.Repeat("x", 180) + n, "PX", "10000000"})
				case 1:
					cmds = append(cmds, command{"HSET", k, "visits", n})
				case 2:
					cmds = append(cmds, command{"ZADD", k, n, "b"})
				case 3:
					cmds = append(cmds, command{"LSET", k, "1", n})
				}
				i++
			}
			if len(cmds) == 0 {
				continue
			}
			if _, err := l.pipe(context.Background(), cmds); err != nil {
				b.Error(err)
				return
			}
			w.writes.Add(int64(len(cmds)))
		}
	})
	w.stop = func() {
		close(done)
		wg.Wait()
		stop()
	}
	return w
}

// rate is the writes a second since the last call.
func (w *world) rate() float64 {
	r := float64(w.writes.Swap(0)) / time.Since(w.since).Seconds()
	w.since = time.Now()
	return r
}

// lags writes a key every 5 ms and returns how long each took to be reported by the target.
func (w *world) lags(b *testing.B, length time.Duration) []time.Duration {
	ctx, cancel := context.WithTimeout(b.Context(), length)
	defer cancel()
	e, err := parseEndpoint(w.target.URL(), TLS{})
	if err != nil {
		b.Fatal(err)
	}
	l, err := dial(b.Context(), e, "", true)
	if err != nil {
		b.Fatal(err)
	}
	defer l.close()
	if _, err := l.do(b.Context(), "CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", "lag:"); err != nil {
		b.Fatal(err)
	}
	var mu sync.Mutex
	sent := map[string]time.Time{}
	var lags []time.Duration
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			v, err := l.in.read()
			now := time.Now()
			if err != nil {
				return // closed below
			}
			mu.Lock()
			for _, k := range v.items[1].strings() {
				if at, ok := sent[k]; ok {
					lags = append(lags, now.Sub(at))
					delete(sent, k)
				}
			}
			mu.Unlock()
		}
	})
	s := dialBench(b, w.source)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	w.rate()
	for i := 0; ctx.Err() == nil; i++ {
		<-tick.C
		k := "lag:" + strconv.Itoa(i)
		mu.Lock()
		sent[k] = time.Now()
		mu.Unlock()
		if _, err := s.do(b.Context(), "SET", k, "1", "PX", "60000"); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.pair.CaughtUp(b.Context()); err != nil {
		b.Fatal(err)
	}
	for open, started := 1, time.Now(); open > 0 && time.Since(started) < 5*time.Second; <-tick.C {
		mu.Lock()
		open = len(sent)
		mu.Unlock()
	}
	l.close()
	wg.Wait()
	if len(sent) > 0 {
		b.Fatalf("%d changes never arrived", len(sent))
	}
	return lags
}
