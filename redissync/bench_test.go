package redissync

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// BenchmarkCopy measures the first copy of small keys of mixed types against a plain pipelined DUMP/RESTORE loop over the same keys.
func BenchmarkCopy(b *testing.B) {
	const keys = 200_000
	for b.Loop() {
		source, target, floor := launch(b), launch(b), launch(b)
		e, _ := parseEndpoint(source.URL(), TLS{})
		s := &session{endpoint: e}
		fill(b, s, keys)
		started := time.Now()
		plainCopy(b, source, floor, keys)
		plain := time.Since(started)
		started = time.Now()
		p := New(Options{Migration: "bench", Name: "b", SourceURL: source.URL(), TargetURL: target.URL(), Epoch: 1})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { p.Run(ctx, false) })
		if err := p.CaughtUp(ctx); err != nil {
			b.Fatal(err)
		}
		ours := time.Since(started)
		started = time.Now()
		if r, err := p.VerifyNow(ctx); err != nil || r.Mismatches > 0 {
			b.Fatalf("verify: %+v, %v", r, err)
		}
		b.ReportMetric(keys/time.Since(started).Seconds(), "verified/s")
		b.ReportMetric(keys/ours.Seconds(), "keys/s")
		b.ReportMetric(plain.Seconds()/ours.Seconds(), "of-floor")
		cancel()
		wg.Wait()
		s.close()
		for _, srv := range []*redistest.Server{source, target, floor} {
			srv.Kill()
		}
	}
}

func launch(b *testing.B) *redistest.Server {
	srv, err := redistest.Launch(context.Background(), b.TempDir(), redistest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return srv
}

func fill(b *testing.B, s *session, keys int) {
	l, err := s.open(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	var cmds []command
	for i := range keys {
		n := strconv.Itoa(i)
		switch i % 4 {
		case 0:
			cmds = append(cmds, command{"SET", "session:" + n, fmt.Sprintf("%0200d", i), "PX", "10000000"})
		case 1:
			cmds = append(cmds, command{"HSET", "user:" + n, "name", "n" + n, "mail", n + "@example.com", "visits", n})
		case 2:
			cmds = append(cmds, command{"ZADD", "scores:" + n, "1", "a", "2", "b", "3", "c"})
		case 3:
			cmds = append(cmds, command{"RPUSH", "queue:" + n, "a", "b", "c"})
		}
		if len(cmds) == 1000 || i == keys-1 {
			if _, err := l.pipe(context.Background(), cmds); err != nil {
				b.Fatal(err)
			}
			cmds = cmds[:0]
		}
	}
}

// plainCopy is the floor: SCAN, DUMP and PTTL in one pipeline, RESTORE in another, on one connection to each side.
func plainCopy(b *testing.B, source, target *redistest.Server, keys int) {
	ctx := context.Background()
	e, _ := parseEndpoint(source.URL(), TLS{})
	g, _ := parseEndpoint(target.URL(), TLS{})
	s, t := &session{endpoint: e}, &session{endpoint: g}
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

// BenchmarkFollow measures how long a change takes to reach the target under a load of about 20 thousand writes a second.
func BenchmarkFollow(b *testing.B) {
	source, target := launch(b), launch(b)
	defer source.Kill()
	defer target.Kill()
	p := New(Options{Migration: "bench", Name: "b", SourceURL: source.URL(), TargetURL: target.URL(), Epoch: 1})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(ctx, false) })
	e, _ := parseEndpoint(source.URL(), TLS{})
	s := &session{endpoint: e}
	fill(b, s, 100_000)
	if err := p.CaughtUp(ctx); err != nil {
		b.Fatal(err)
	}
	writes := 0
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		defer s.close()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var cmds []command
			for range 100 {
				cmds = append(cmds, command{"SET", "session:" + strconv.Itoa(writes*7919%100_000), strconv.Itoa(writes)})
				writes++
			}
			if _, err := s.link.pipe(context.WithoutCancel(ctx), cmds); err != nil {
				return
			}
		}
	})
	started := time.Now()
	var worst, total time.Duration
	n := 0
	for b.Loop() {
		before := time.Now()
		if err := p.CaughtUp(ctx); err != nil {
			b.Fatal(err)
		}
		took := time.Since(before)
		worst, total, n = max(worst, took), total+took, n+1
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(n), "ms/caught-up")
	b.ReportMetric(float64(worst.Milliseconds()), "ms-worst")
	b.ReportMetric(float64(writes)/time.Since(started).Seconds(), "writes/s")
	cancel()
	wg.Wait()
}
