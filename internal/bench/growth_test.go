package bench

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"testing"
)

// BenchmarkGrowth is row G: the ratio to native is the same when there is twice and four times as much to do. REPLICATOR_BENCH_SCALE is the
// size of the smallest.
func BenchmarkGrowth(b *testing.B) {
	base := scale(b)
	ratios := map[string][]float64{}
	each := func(name string, f func(b *testing.B) float64) {
		for _, times := range []int{1, 2, 4} {
			b.Run(fmt.Sprintf("%s/%d", name, times), func(b *testing.B) {
				b.Setenv("REPLICATOR_BENCH_SCALE", strconv.FormatFloat(base*float64(times), 'g', -1, 64))
				ratios[name] = append(ratios[name], f(b))
			})
		}
	}
	each("A", func(b *testing.B) float64 {
		w := newWorld(b, large)
		w.loadLarge(scale(b))
		all := w.copiers()
		native, ours := all[1], all[len(all)-1]
		w.measure(ours, "warm")
		for round := range rounds(b) {
			for i, c := range []*copier{native, ours} {
				c.runs = append(c.runs, w.measure(c, fmt.Sprintf("copy_%d_%d", round, i)))
			}
		}
		return native.median().seconds / ours.median().seconds
	})
	each("B4", func(b *testing.B) float64 {
		return drains[slices.IndexFunc(drains, func(l workload) bool { return l.name == "B4" })].run(b).ratio()
	})
	fmt.Printf("\nbase scale %g, %d rounds: ratio to native\n\n| workload | 1× | 2× | 4× | spread | goal |\n| --- | --- | --- | --- | --- | --- |\n", base, rounds(b))
	for _, name := range []string{"A", "B4"} {
		r := ratios[name]
		if len(r) != 3 {
			continue // narrowed by RUN
		}
		fmt.Printf("| %s | %.2f | %.2f | %.2f | %.0f %% | ≤ 15 %% |\n", name, r[0], r[1], r[2], 100*(math.Max(r[0], math.Max(r[1], r[2]))/math.Min(r[0], math.Min(r[1], r[2]))-1))
	}
	fmt.Println()
}
