package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// strain is a load of row M.
type strain struct {
	name, what string
	ddl        func(b *testing.B) string
	write      func(w *world)
	// stall is how long, at scale 1, the destination's table is locked against writing while the backlog waits.
	stall time.Duration
}

const manyTables = `DO $$ BEGIN FOR i IN 1 .. %d LOOP EXECUTE format('%s', i); IF i %% 100 = 0 THEN COMMIT; END IF; END LOOP; END $$`

// strains are the parts of row M. Sizes are those of scale 1.
var strains = []strain{
	{
		name: "transaction", what: "one transaction of 5 million rows",
		ddl: func(*testing.B) string { return narrow },
		write: func(w *world) {
			w.exec(w.origin, fmt.Sprintf("BEGIN; "+fillNarrow+"; INSERT INTO bench_done VALUES (0); COMMIT", 1, scaled(w.b, 5000000)))
		},
	},
	{
		name: "tables", what: "10 thousand tables, each written to in transactions of its own",
		ddl: func(b *testing.B) string {
			return fmt.Sprintf(manyTables, scaled(b, 10000), "CREATE TABLE many_%s (id int PRIMARY KEY, v text)")
		},
		write: func(w *world) {
			for _, statement := range []string{"INSERT INTO many_%s SELECT g, md5(g::text) FROM generate_series(1, 10) g", "UPDATE many_%s SET v = v || id"} {
				w.exec(w.origin, fmt.Sprintf(manyTables, scaled(w.b, 10000), statement))
			}
			w.exec(w.origin, "INSERT INTO bench_done VALUES (0)")
		},
	},
	{
		name: "stalled", what: "1 million rows wait while the target's table is locked for 60 s", stall: time.Minute,
		ddl: func(*testing.B) string { return narrow },
		write: func(w *world) {
			for i := range 10 {
				n := scaled(w.b, 100000)
				w.exec(w.origin, fmt.Sprintf(fillNarrow, i*n+1, (i+1)*n))
			}
			w.exec(w.origin, "INSERT INTO bench_done VALUES (0)")
		},
	},
}

// BenchmarkMemory is row M: the greatest resident size of replicator's process under each strain.
func BenchmarkMemory(b *testing.B) {
	fmt.Printf("\nscale %g\n\n| strain | resident, at most | seconds | CPU s: sender + apply + daemon | goal |\n| --- | --- | --- | --- | --- |\n", scale(b))
	for _, s := range strains {
		b.Run(s.name, func(b *testing.B) { s.run(b) })
	}
	fmt.Println()
}

func (l strain) run(b *testing.B) {
	w := newWorld(b, l.ddl(b))
	s := w.replicator()
	l.write(w)
	var resident int64
	disable := s.disable
	s.disable = func() {
		resident = peak(s.pid())
		disable()
	}
	if l.stall > 0 {
		lock := w.connect(s.url)
		if _, err := lock.Exec(b.Context(), "BEGIN; LOCK TABLE narrow IN EXCLUSIVE MODE", pgx.QueryExecModeSimpleProtocol); err != nil {
			b.Fatal(err)
		}
		time.AfterFunc(time.Duration(float64(l.stall)*scale(b)), func() { _, _ = lock.Exec(context.Background(), "ROLLBACK") }) // else the drain comes to its limit
	}
	d := w.drain(s, 0, drainLimit)
	w.equal(s.url)
	fmt.Printf("| M %s (%s) | %d MB | %.1f | %.2f + %.2f + %.2f | < 200 MB |\n", l.name, l.what, resident>>20, d.seconds, d.sender, d.applier, d.replicator)
}
