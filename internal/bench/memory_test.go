package bench

import (
	"fmt"
	"testing"
)

// BenchmarkMemory is the first part of row M: the greatest resident size of replicator's process while it applies one transaction of five
// million rows.
func BenchmarkMemory(b *testing.B) {
	w := newWorld(b, narrow)
	s := w.replicator()
	rows := scaled(b, 5000000)
	w.exec(w.origin, fmt.Sprintf("BEGIN; "+fillNarrow+"; INSERT INTO bench_done VALUES (0); COMMIT", 1, rows))
	var resident int64
	disable := s.disable
	s.disable = func() {
		resident = peak(s.pid())
		disable()
	}
	d := w.drain(s, 0, drainLimit)
	w.equal(s.url)
	fmt.Printf("\nscale %g: a transaction of %d rows\n\n| workload | resident, at most | seconds | CPU s: sender + apply + daemon | goal |\n| --- | --- | --- | --- | --- |\n| M one large transaction | %d MB | %.1f | %.2f + %.2f + %.2f | < 200 MB |\n\n", scale(b), rows, resident>>20, d.seconds, d.sender, d.applier, d.replicator)
}
