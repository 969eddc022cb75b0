package bench

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// BenchmarkLatency is row C: from a commit on the source until its row can be read on the target, under a steady 2,000 TPC-B transactions
// a second, each system in turn for 60 seconds times the scale.
func BenchmarkLatency(b *testing.B) {
	w := newWorld(b, "CREATE TABLE probe (id bigint PRIMARY KEY)")
	w.pgbench("--initialize", "--quiet", fmt.Sprintf("--scale=%d", scaled(b, 50)))
	w.schema = pgDump(w)
	w.native("text", "binary = off")
	w.replicator()
	seconds := max(int(60*scale(b)), 5)
	samples := map[string][]time.Duration{}
	var id int64
	for round := range rounds(b) {
		w.calm()
		for i := range w.systems {
			s := w.systems[(i+round)%len(w.systems)]
			s.enable()
			id++
			w.probe(s, id) // both are in step from here on
			before, senders := w.used(s), meter{}
			senders.read(w.senders(s.slot))
			var g errgroup.Group
			g.Go(func() error {
				w.pgbench("--no-vacuum", "--client=4", "--jobs=1", "--protocol=prepared", "--rate=2000", fmt.Sprintf("--time=%d", seconds))
				return nil
			})
			read := time.Now()
			for end := read.Add(time.Duration(seconds) * time.Second); time.Now().Before(end); {
				if time.Since(read) > time.Second {
					senders.read(w.senders(s.slot)) // what was written meanwhile may be pulled first
					read = time.Now()
				}
				id++
				samples[s.name] = append(samples[s.name], w.probe(s, id))
				<-time.After(10 * time.Millisecond)
			}
			_ = g.Wait() // pgbench fails the benchmark itself
			after := w.used(s)
			senders.read(w.senders(s.slot))
			s.drains = append(s.drains, drain{sender: senders.sum(), applier: after.applier - before.applier, replicator: after.replicator - before.replicator})
			s.disable()
		}
	}
	fmt.Printf("\nscale %g, %d rounds: commit to visible\n\n| system | samples | p50 | p99 | CPU s of %d s: sender + apply + daemon |\n| --- | --- | --- | --- | --- |\n", scale(b), rounds(b), seconds)
	for _, s := range w.systems {
		v := samples[s.name]
		slices.Sort(v)
		m := medians(s.drains)
		fmt.Printf("| %s | %d | %.1f ms | %.1f ms | %.2f + %.2f + %.2f |\n", s.name, len(v), milliseconds(v[len(v)/2]), milliseconds(v[len(v)*99/100]), m.sender, m.applier, m.replicator)
	}
	fmt.Println()
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// probe commits a row on the source and returns the time until it is visible on the target.
func (w *world) probe(s *system, id int64) time.Duration {
	w.b.Helper()
	ctx, cancel := context.WithTimeout(w.b.Context(), 2*time.Minute)
	defer cancel()
	if _, err := w.control.Exec(ctx, "INSERT INTO probe VALUES ($1)", id); err != nil {
		w.b.Fatal(err)
	}
	began := time.Now()
	for {
		var there bool
		if err := s.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM probe WHERE id = $1)", id).Scan(&there); err != nil {
			w.b.Fatal(err)
		}
		if there {
			return time.Since(began)
		}
		<-time.After(200 * time.Microsecond)
	}
}
