package bench

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// vacuumSQL gives each round tables without dead rows and with statistics, as autovacuum, which is off, would in time: tellers and branches collect dead rows
// fastest, and Bucardo looks for what is due by joining its tables of changes and of transactions done.
const vacuumSQL = "VACUUM (ANALYZE)"

const (
	// turnsARound is how often all variants take turns between two vacuums. A machine that changes its speed for seconds at a time
	// changes it for all of them alike when each has the source for half a second, and does so often.
	turnsARound = 20
	// sliceSize is how many transactions each of pgbench's clients carries out in a turn, and unsettled the part of a slice's that aren't counted: new sessions read
	// the catalogs and compile the triggers' functions first, which an application's have done.
	sliceSize = 120
	unsettled = 0.2
)

// variant is a way for the source to be used while pgbench runs.
type variant struct {
	name    string
	r       *rival
	follows bool // its daemon drains meanwhile
	seed    int
	// Of each slice: transactions a second, bytes of write-ahead log and CPU seconds a transaction.
	tps, wal, cpu []float64
	session       []float64 // CPU seconds a transaction that the daemon's sessions took on the source until the target had everything
	behind        []float64 // seconds that the target needed after a slice until then
	resting       float64   // CPU seconds that the sessions of daemons which follow another database took on the source in all slices
}

// run lets pgbench write for one slice.
func (v *variant) run(how manner, all []*variant) {
	b := v.r.b
	b.Helper()
	prefix := filepath.Join(b.TempDir(), "slice")
	pids, _ := v.r.sessions()
	spent := cpuOf(pids)
	var resting []int
	for _, o := range all {
		if o != v && o.follows {
			theirs, _ := o.r.sessions()
			resting = append(resting, theirs...)
		}
	}
	rested := cpuOf(resting)
	v.seed++
	l := v.r.tpcb(how, v.seed, fmt.Sprintf("--transactions=%d", sliceSize), "--log", "--log-prefix="+prefix)
	v.resting += max(cpuOf(resting)-rested, 0) // those that have ended meanwhile count nothing
	v.tps = append(v.tps, settledRate(b, prefix))
	v.wal, v.cpu = append(v.wal, float64(l.wal)/float64(l.count)), append(v.cpu, l.cpu/float64(l.count))
	if !v.follows {
		return
	}
	began := time.Now()
	v.r.mark()
	v.r.await()
	v.behind = append(v.behind, time.Since(began).Seconds())
	if now, _ := v.r.sessions(); slices.Equal(pids, now) { // otherwise it began anew meanwhile
		v.session = append(v.session, (cpuOf(pids)-spent)/float64(l.count))
	}
}

// settledRate reads pgbench's log of transactions (pgbench, "Per-Transaction Logging") and returns how many a second ended once its sessions had settled.
func settledRate(b *testing.B, prefix string) float64 {
	b.Helper()
	files, err := filepath.Glob(prefix + ".*")
	if err != nil || len(files) != 1 {
		b.Fatalf("pgbench left %d logs: %v", len(files), err)
	}
	f, err := os.Open(files[0])
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var ends []int64 // µs
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var client, number, took, script, second, micro int64
		if _, err := fmt.Sscan(lines.Text(), &client, &number, &took, &script, &second, &micro); err != nil {
			b.Fatalf("log of pgbench: %q: %v", lines.Text(), err)
		}
		ends = append(ends, second*1e6+micro)
	}
	if err := lines.Err(); err != nil {
		b.Fatal(err)
	}
	slices.Sort(ends)
	// Its clients end one after the other.
	ends = ends[int(unsettled*float64(len(ends))):max(len(ends)-clients, 0)]
	if len(ends) < 2 {
		b.Fatalf("pgbench logged %d transactions that count", len(ends))
	}
	return float64(len(ends)-1) / (float64(ends[len(ends)-1]-ends[0]) / 1e6)
}

// cpuOf is the CPU time of processes, in seconds.
func cpuOf(pids []int) (sum float64) {
	for _, pid := range pids {
		sum += cpu(pid)
	}
	return sum
}

func median(v []float64) float64 { return quantile(v, 0.5) }

// quantile is the q-th part of the sorted values, between neighbours in proportion; 0 of nothing.
func quantile(v []float64, q float64) float64 {
	v = slices.Sorted(slices.Values(v))
	if len(v) == 0 {
		return 0
	}
	at := q * float64(len(v)-1)
	i := int(at)
	return v[i] + (at-float64(i))*(v[min(i+1, len(v)-1)]-v[i])
}

// losses are what is missing from v's rate against the reference's, as parts of 1.
type losses struct {
	turns    interval // the median of those of each turn
	whole    interval // of the rates over all turns
	ofMedian float64  // of the median rates; where a machine knows two speeds, a median says which of them was more frequent
}

// interval is a measured value with the bounds of its 95 % interval by the bootstrap.
type interval struct{ value, low, high float64 }

func (i interval) String() string {
	return fmt.Sprintf("%.1f %% (%.1f–%.1f)", 100*i.value, 100*i.low, 100*i.high)
}

// bootstrap measures n turns, and again what is drawn from them.
func bootstrap(n int, measure func(turns []int) float64) interval {
	const draws = 4000
	turns := make([]int, n)
	for i := range turns {
		turns[i] = i
	}
	out := interval{value: measure(turns)}
	rng := rand.New(rand.NewPCG(1, 1))
	all := make([]float64, draws)
	for i := range all {
		for j := range turns {
			turns[j] = rng.IntN(n)
		}
		all[i] = measure(turns)
	}
	out.low, out.high = quantile(all, 0.025), quantile(all, 0.975)
	return out
}

func lost(reference, v []float64) losses {
	return losses{
		turns: bootstrap(len(v), func(turns []int) float64 {
			each := make([]float64, len(turns))
			for i, t := range turns {
				each[i] = 1 - v[t]/reference[t]
			}
			return median(each)
		}),
		whole: bootstrap(len(v), func(turns []int) float64 {
			var took, without float64 // seconds a transaction
			for _, t := range turns {
				took, without = took+1/v[t], without+1/reference[t]
			}
			return 1 - without/took
		}),
		ofMedian: 1 - median(v)/median(reference),
	}
}

// BenchmarkCaptureCost measures what capture takes from the source: TPC-B with nothing, with replicator's triggers and daemon, with its
// triggers alone, with Bucardo's triggers and daemon. They take turns of some half a second, in an order that rotates; each has its own database and writes
// the same. The daemons run throughout.
func BenchmarkCaptureCost(b *testing.B) {
	d := newBed(b)
	plain, ours, alone, theirs := d.rival("nothing"), d.triggers("replicator"), d.triggers("alone"), d.bucardo("bucardo")
	rivals := []*rival{plain, ours, alone, theirs}
	for _, r := range rivals {
		r.warm()
	}
	for _, how := range []manner{simple, prepared, asynchronous} {
		b.Run(how.name, func(b *testing.B) {
			variants := []*variant{{name: "nothing", r: plain}, {name: "replicator, draining", r: ours, follows: true}, {name: "replicator, triggers alone", r: alone}, {name: "Bucardo, draining", r: theirs, follows: true}}
			for _, v := range variants {
				if v.follows {
					v.r.follow()
				}
			}
			for round := range rounds(b) {
				began := time.Now()
				for _, r := range rivals {
					r.exec(r.origin, vacuumSQL)
				}
				for turn := range turnsARound {
					for i := range variants {
						variants[(i+turn+round)%len(variants)].run(how, variants)
					}
				}
				alone.settle()
				fmt.Printf("round %d:", round+1) // a long run shows where it is
				for _, v := range variants {
					fmt.Printf(" %s %.0f/s;", v.name, median(v.tps[round*turnsARound:]))
				}
				fmt.Printf(" %.0f s\n", time.Since(began).Seconds())
			}
			for _, v := range variants {
				if v.follows {
					v.r.stop()
				}
			}
			for _, r := range []*rival{ours, alone, theirs} {
				r.equal(r.copyURL)
			}
			fmt.Printf("\nTPC-B, scale %d, %d turns of %d transactions, %s protocol, durable commits: %t; source and pgbench on one core\n\n", d.size, len(variants[0].tps), clients*sliceSize, how.protocol, how.durable)
			report(variants)
		})
	}
}

// report prints what the variants cost, with the medians of their turns; the first is the reference.
func report(variants []*variant) {
	fmt.Println("| source with | transactions/s (quartiles) | loss, median of the turns | of the whole run | of the median rates | CPU µs/transaction | WAL bytes/transaction | daemon's sessions there | behind after a turn |\n" + strings.Repeat("| --- ", 9) + "|")
	for i, v := range variants {
		lossOf, session, behind := "– | – | –", "–", "–"
		if i > 0 {
			l := lost(variants[0].tps, v.tps)
			lossOf = fmt.Sprintf("%s | %s | %.1f %%", l.turns, l.whole, 100*l.ofMedian)
		}
		if v.follows {
			session = fmt.Sprintf("%.0f µs/transaction", 1e6*median(v.session))
			behind = fmt.Sprintf("%.2f s", median(v.behind))
		}
		fmt.Printf("| %s | %.0f (%.0f–%.0f) | %s | %.0f | %.0f | %s | %s |\n", v.name, median(v.tps), quantile(v.tps, 0.25), quantile(v.tps, 0.75), lossOf,
			1e6*median(v.cpu), median(v.wal), session, behind)
	}
	var took float64
	for _, rate := range variants[0].tps {
		took += clients * sliceSize / rate
	}
	fmt.Printf("\nIn the turns with %s the daemons, which have nothing to do then, took %.1f %% of the source's core.\n\n", variants[0].name, 100*variants[0].resting/took)
}
