package bench

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// vacuumSQL gives each run tables without dead rows and with statistics, as autovacuum, which is off, would in time: tellers and branches collect dead rows
// fastest, and Bucardo looks for what is due by joining its tables of changes and of transactions done.
const vacuumSQL = "VACUUM (ANALYZE)"

// variant is a way for the source to be used while pgbench runs.
type variant struct {
	name    string
	r       *rival
	running bool // its daemon drains meanwhile
	loads   []throughput
	// behind is how many seconds the target needed afterwards until it had everything.
	behind []float64
	// session is the CPU time that the daemon's sessions took on the source meanwhile, in seconds a second.
	session []float64
}

func (v *variant) run(how manner, seconds int) {
	b := v.r.b
	b.Helper()
	if v.running {
		v.r.mark()
		v.r.start()
		v.r.await()
	}
	v.r.exec(v.r.origin, vacuumSQL)
	before, _ := v.r.sessions()
	spent := -cpuOf(before)
	v.loads = append(v.loads, v.r.tpcb(how, fmt.Sprintf("--time=%d", seconds)))
	if v.running {
		if after, _ := v.r.sessions(); slices.Equal(before, after) { // otherwise it began anew meanwhile
			v.session = append(v.session, (spent+cpuOf(after))/float64(seconds))
		}
		began := time.Now()
		v.r.mark()
		v.r.await()
		v.behind = append(v.behind, time.Since(began).Seconds())
		v.r.stop()
	} else if v.r.logged != "" {
		v.r.settle()
	}
}

// cpuOf is the CPU time of processes, in seconds.
func cpuOf(pids []int) (sum float64) {
	for _, pid := range pids {
		sum += cpu(pid)
	}
	return sum
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// BenchmarkCaptureCost measures what capture takes from the source: TPC-B with nothing, with replicator's triggers and daemon, with its
// triggers alone, with Bucardo's triggers and daemon, in turn. The loss is that against the run with nothing of the same round.
func BenchmarkCaptureCost(b *testing.B) {
	d := newBed(b)
	plain, ours, theirs := d.rival("nothing"), d.triggers("replicator"), d.bucardo("bucardo")
	seconds := int(number(b, "REPLICATOR_BENCH_SECONDS", float64(max(scaled(b, 10), 3))))
	for _, r := range []*rival{plain, ours, theirs} {
		r.warm(seconds)
	}
	for _, how := range []manner{simple, prepared, asynchronous} {
		b.Run(how.name, func(b *testing.B) {
			variants := []*variant{{name: "nothing", r: plain}, {name: "replicator, draining", r: ours, running: true}, {name: "replicator, triggers alone", r: ours}, {name: "Bucardo, draining", r: theirs, running: true}}
			for round := range rounds(b) {
				for i := range variants {
					variants[(i+round)%len(variants)].run(how, seconds)
				}
			}
			for _, r := range []*rival{ours, theirs} {
				r.equal(r.copyURL)
			}
			fmt.Printf("\nTPC-B, scale %d, %d s a run, %d rounds, %s protocol, durable commits: %t; source and pgbench on one core\n\n| source with | transactions/s | loss | of each round | by the fastest runs | CPU µs/transaction | WAL bytes/transaction | daemon's sessions there | behind at the end |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n", d.size, seconds, rounds(b), how.protocol, how.durable)
			fastest := func(v *variant) (best float64) {
				for _, l := range v.loads {
					best = max(best, l.tps)
				}
				return best
			}
			for _, v := range variants {
				var tps, losses, wal, spent []float64
				var each []string
				for i, l := range v.loads {
					loss := 100 * (1 - l.tps/variants[0].loads[i].tps)
					tps, losses, wal = append(tps, l.tps), append(losses, loss), append(wal, float64(l.wal)/float64(l.count))
					spent = append(spent, 1e6*l.cpu/float64(l.count))
					each = append(each, fmt.Sprintf("%.1f", loss))
				}
				behind, session := "–", "–"
				if v.running {
					session = fmt.Sprintf("%.0f %% of the core", 100*median(v.session))
					behind = fmt.Sprintf("%.1f s", median(v.behind))
				}
				fmt.Printf("| %s | %.0f | %.1f %% | %s | %.1f %% | %.0f | %.0f | %s | %s |\n", v.name, median(tps), median(losses), strings.Join(each, ", "), 100*(1-fastest(v)/fastest(variants[0])), median(spent), median(wal), session, behind)
			}
			fmt.Println()
		})
	}
}

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
		n := max(scaled(b, 50000)/8*8, 800)
		rivals := []*rival{d.triggers("replicator"), d.subscription("native"), d.bucardo("bucardo")}
		for _, r := range rivals {
			r.warm(0)
		}
		compare(d, rivals, fmt.Sprintf("%d TPC-B transactions, scale %d", n, d.size), n, "transactions", 4,
			func(r *rival, _ int) { r.tpcb(asynchronous, fmt.Sprintf("--transactions=%d", n/8)) })
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
