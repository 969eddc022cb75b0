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
	// slicesARound is how often all variants take turns between two vacuums. A machine that changes its speed for seconds at a time
	// changes it for all of them alike when each has the source for a second, and does so often.
	slicesARound = 5
	// slice is the least that pgbench can be told to run.
	slice = time.Second
	// unsettled is how much of a slice isn't counted: new sessions read the catalogs and compile the triggers' functions first, which an application's have done.
	unsettled = 250 * time.Millisecond
)

// variant is a way for the source to be used while pgbench runs.
type variant struct {
	name    string
	r       *rival
	follows bool // its daemon drains meanwhile
	seed    int
	tps     []float64 // of each slice
	sum     throughput
	session float64   // CPU seconds that the daemon's sessions took on the source in its slices
	behind  []float64 // seconds that the target needed after a slice until it had everything
}

// run lets pgbench write for one slice.
func (v *variant) run(how manner) {
	b := v.r.b
	b.Helper()
	prefix := filepath.Join(b.TempDir(), "slice")
	pids, _ := v.r.sessions()
	spent := cpuOf(pids)
	v.seed++
	l := v.r.tpcb(how, v.seed, fmt.Sprintf("--time=%.0f", slice.Seconds()), "--log", "--log-prefix="+prefix)
	v.tps = append(v.tps, settledRate(b, prefix))
	v.sum.count, v.sum.wal, v.sum.cpu = v.sum.count+l.count, v.sum.wal+l.wal, v.sum.cpu+l.cpu
	if !v.follows {
		return
	}
	v.session += max(cpuOf(pids)-spent, 0) // those that are gone count nothing
	began := time.Now()
	v.r.mark()
	v.r.await()
	v.behind = append(v.behind, time.Since(began).Seconds())
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
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var client, number, took, script, second, micro int64
		if _, err := fmt.Sscan(lines.Text(), &client, &number, &took, &script, &second, &micro); err != nil {
			b.Fatalf("log of pgbench: %q: %v", lines.Text(), err)
		}
		ends = append(ends, second*1e6+micro)
	}
	slices.Sort(ends)
	if len(ends) == 0 {
		b.Fatal("pgbench logged no transaction")
	}
	since := ends[0] + unsettled.Microseconds()
	first, _ := slices.BinarySearch(ends, since)
	last := ends[len(ends)-1]
	if last <= since {
		b.Fatalf("pgbench ran for %d µs only", last-ends[0])
	}
	return float64(len(ends)-first) / (float64(last-since) / 1e6)
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

// loss is what of the reference's median rate is missing from v's, as a part of 1, and the bounds of its 95 % interval by the bootstrap: slices are
// drawn again, those of one turn together.
func loss(reference, v []float64) (found, low, high float64) {
	const draws = 4000
	found = 1 - median(v)/median(reference)
	rng := rand.New(rand.NewPCG(1, 1))
	all := make([]float64, draws)
	a, z := make([]float64, len(v)), make([]float64, len(v))
	for i := range all {
		for j := range v {
			k := rng.IntN(len(v))
			a[j], z[j] = reference[k], v[k]
		}
		all[i] = 1 - median(z)/median(a)
	}
	return found, quantile(all, 0.025), quantile(all, 0.975)
}

// BenchmarkCaptureCost measures what capture takes from the source: TPC-B with nothing, with replicator's triggers and daemon, with its
// triggers alone, with Bucardo's triggers and daemon. They take turns, a second each, in an order that rotates; each has its own database and writes
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
				for _, r := range rivals {
					r.exec(r.origin, vacuumSQL)
				}
				for turn := range slicesARound {
					for i := range variants {
						variants[(i+turn+round)%len(variants)].run(how)
					}
				}
				alone.settle()
			}
			for _, v := range variants {
				if v.follows {
					v.r.stop()
				}
			}
			for _, r := range []*rival{ours, alone, theirs} {
				r.equal(r.copyURL)
			}
			fmt.Printf("\nTPC-B, scale %d, %d slices of %v, %s protocol, durable commits: %t; source and pgbench on one core\n\n", d.size, len(variants[0].tps), slice, how.protocol, how.durable)
			report(variants)
		})
	}
}

// report prints what the variants cost; the first is the reference.
func report(variants []*variant) {
	fmt.Println("| source with | transactions/s (quartiles) | loss | 95 % interval | median loss of a turn | CPU µs/transaction | WAL bytes/transaction | daemon's sessions there | behind after a slice |\n" + strings.Repeat("| --- ", 9) + "|")
	reference := variants[0].tps
	for _, v := range variants {
		found, low, high := loss(reference, v.tps)
		var each []float64
		for i := range v.tps {
			each = append(each, 100*(1-v.tps[i]/reference[i]))
		}
		session, behind := "–", "–"
		if v.follows {
			session = fmt.Sprintf("%.0f %% of the core", 100*v.session/(float64(len(v.tps))*slice.Seconds()))
			behind = fmt.Sprintf("%.2f s", median(v.behind))
		}
		n := float64(v.sum.count)
		fmt.Printf("| %s | %.0f (%.0f–%.0f) | %.1f %% | %.1f–%.1f | %.1f %% | %.0f | %.0f | %s | %s |\n", v.name, median(v.tps), quantile(v.tps, 0.25), quantile(v.tps, 0.75), 100*found, 100*low, 100*high, median(each),
			1e6*v.sum.cpu/n, float64(v.sum.wal)/n, session, behind)
	}
	fmt.Println()
}
