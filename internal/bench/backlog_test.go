package bench

import (
	"fmt"
	"testing"
	"time"
)

// backlog is one rival's drain of TPC-B transactions.
type backlog struct {
	seconds                        float64
	source, applied, daemon, bytes float64 // CPU seconds of its sessions on either side and of its daemon; bytes a change in the log
}

// drain writes a backlog of so many changes and lets the rival carry it over. It is timed from the moment its session on the source stands.
func (r *rival) drain(write func(), changes int) backlog {
	r.b.Helper()
	r.settle()
	r.exec(r.origin, vacuumSQL)
	size := r.logSize()
	write()
	var k backlog
	k.bytes = float64(r.logSize()-size) / float64(changes)
	r.mark()
	r.exec(r.source.URL("postgres"), "CHECKPOINT")
	r.exec(r.target.URL("postgres"), "CHECKPOINT")
	freshen(r.b)
	r.start()
	var source, target []int
	until(r.b, "session of "+r.name, time.Minute, func() bool {
		source, target = r.sessions()
		return len(source) > 0
	})
	began := time.Now()
	daemon := r.daemon()
	k.source, k.applied, k.daemon = -cpuOf(source), -cpuOf(target), -cpuOf(daemon)
	r.await()
	k.seconds = time.Since(began).Seconds()
	source, target = r.sessions()
	daemon = r.daemon()
	k.source += cpuOf(source)
	k.applied += cpuOf(target)
	k.daemon += cpuOf(daemon)
	r.stop()
	r.equal(r.copyURL)
	return k
}

// BenchmarkCaptureDrain measures how fast a backlog is carried over by the change log, by a native subscription and by Bucardo.
func BenchmarkCaptureDrain(b *testing.B) {
	b.Run("TPC-B", func(b *testing.B) {
		d := newBed(b)
		n := max(scaled(b, 50000)/clients*clients, 800)
		rivals := []*rival{d.triggers("replicator"), d.subscription("native"), d.bucardo("bucardo")}
		for _, r := range rivals {
			r.warm()
		}
		compare(d, rivals, fmt.Sprintf("%d TPC-B transactions, scale %d", n, d.size), n, "transactions", 4,
			func(r *rival, round int) { r.tpcb(asynchronous, round+1, fmt.Sprintf("--transactions=%d", n/clients)) })
	})
	b.Run("updates", func(b *testing.B) {
		d := newBed(b)
		n := scaled(b, 1000000) / 1000 * 1000
		d.size, d.more = 1, []string{narrow, fmt.Sprintf(fillNarrow, 1, n)}
		compare(d, []*rival{d.triggers("replicator"), d.subscription("native")}, fmt.Sprintf("%d random updates, 1,000 a transaction (B4)", n), n, "rows", 1,
			func(r *rival, round int) { r.exec(r.owner, randomUpdates(n, round)) })
	})
}

// compare lets rivals drain the same backlog of n units in turn, each of so many changes, and prints the medians.
func compare(d *bed, rivals []*rival, what string, n int, unit string, changes int, write func(r *rival, round int)) {
	drains := make([][]backlog, len(rivals))
	for round := range rounds(d.b) {
		for i := range rivals {
			at := (i + round) % len(rivals)
			k := rivals[at].drain(func() { write(rivals[at], round) }, n*changes)
			fmt.Printf("round %d, %s: %.2f s\n", round+1, rivals[at].name, k.seconds) // a long run shows where it is
			drains[at] = append(drains[at], k)
		}
	}
	of := func(all []backlog, f func(backlog) float64) float64 {
		var v []float64
		for _, k := range all {
			v = append(v, f(k))
		}
		return median(v)
	}
	ours := of(drains[0], func(k backlog) float64 { return k.seconds })
	fmt.Printf("\nbacklog of %s, %d rounds; source on one core, target and daemon on the other\n\n| drained by | seconds | %s/s | replicator is faster by | CPU s: sessions on the source, on the target, daemon | log, bytes/change |\n| --- | --- | --- | --- | --- | --- |\n", what, rounds(d.b), unit)
	for i, r := range rivals {
		s := of(drains[i], func(k backlog) float64 { return k.seconds })
		bytes := "–"
		if r.logged != "" {
			bytes = fmt.Sprintf("%.0f", drains[i][0].bytes) // later ones find room that earlier ones left
		}
		fmt.Printf("| %s | %.2f | %.0f | %.2f | %.2f, %.2f, %.2f | %s |\n", r.name, s, float64(n)/s, s/ours, of(drains[i], func(k backlog) float64 { return k.source }),
			of(drains[i], func(k backlog) float64 { return k.applied }), of(drains[i], func(k backlog) float64 { return k.daemon }), bytes)
	}
	fmt.Println()
}
