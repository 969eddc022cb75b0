package bench

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// drainLimit bounds one drain.
const drainLimit = 20 * time.Minute

// run measures one workload.
func (l workload) run(b *testing.B) row {
	w := newWorld(b, l.ddl)
	if l.load != nil {
		l.load(w)
		w.schema = pgDump(w)
	}
	w.native("text", "binary = off")
	w.native("binary", "binary = on")
	w.replicator()
	units := 0
	for round := range rounds(b) {
		units = l.round(w, round)
	}
	r := row{name: l.name, what: l.what, unit: l.unit, units: units, goal: l.goal}
	for _, s := range w.systems {
		r.systems = append(r.systems, summary{name: s.name, median: medians(s.drains)})
	}
	return r
}

// round writes the workload's backlog, lets the systems drain it in turn, and returns its size in units.
func (l workload) round(w *world, round int) int {
	w.b.Helper()
	units := l.write(w, round)
	w.exec(w.origin, fmt.Sprintf("INSERT INTO bench_done VALUES (%d)", round))
	w.calm()
	for i := range w.systems {
		s := w.systems[(i+round)%len(w.systems)]
		s.drains = append(s.drains, w.drain(s, round, drainLimit))
	}
	// To read the source makes it clean its pages, which goes into the log: only now.
	for _, s := range w.systems {
		w.equal(s.url)
	}
	w.settle()
	return units
}

// medians takes each number's median by itself.
func medians(all []drain) drain {
	of := func(f func(drain) float64) float64 {
		var v []float64
		for _, d := range all {
			v = append(v, f(d))
		}
		slices.Sort(v)
		return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
	}
	return drain{
		seconds: of(func(d drain) float64 { return d.seconds }), sender: of(func(d drain) float64 { return d.sender }),
		applier: of(func(d drain) float64 { return d.applier }), replicator: of(func(d drain) float64 { return d.replicator }),
	}
}

type summary struct {
	name   string
	median drain
}

// row is one workload's line; systems[0] and [1] are native's text and binary forms, the last one is replicator.
type row struct {
	name, what, unit string
	units            int
	goal             float64
	systems          []summary
}

// ratio is replicator's throughput over the faster native form's.
func (r row) ratio() float64 {
	best := r.systems[0].median.seconds
	for _, s := range r.systems[:len(r.systems)-1] {
		best = min(best, s.median.seconds)
	}
	return best / r.systems[len(r.systems)-1].median.seconds
}

// table collects rows and prints them as Markdown.
type table struct{ rows []row }

func (t *table) add(r row) { t.rows = append(t.rows, r) }

func (t *table) print(b *testing.B) {
	var out strings.Builder
	fmt.Fprintf(&out, "\nscale %g, %d rounds\n\n| workload | size | native text | native binary | replicator | ratio | goal | CPU s text: sender + apply | CPU s binary | CPU s replicator: sender + apply + daemon |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n", scale(b), rounds(b))
	for _, r := range t.rows {
		fmt.Fprintf(&out, "| %s %s | %d %s |", r.name, r.what, r.units, r.unit)
		for _, s := range r.systems {
			fmt.Fprintf(&out, " %.2f s (%.0f/s) |", s.median.seconds, float64(r.units)/s.median.seconds)
		}
		fmt.Fprintf(&out, " %.2f | ≥ %.1f |", r.ratio(), r.goal)
		for _, s := range r.systems[:len(r.systems)-1] {
			fmt.Fprintf(&out, " %.2f + %.2f |", s.median.sender, s.median.applier)
		}
		m := r.systems[len(r.systems)-1].median
		fmt.Fprintf(&out, " %.2f + %.2f + %.2f |\n", m.sender, m.applier, m.replicator)
	}
	fmt.Println(out.String())
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
