package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// workload is a backlog that is written once and drained by every system.
type workload struct {
	name, what, unit string
	goal             float64
	ddl              string
	// load fills the tables before the first copy; write makes the backlog of a round and returns its size in units.
	load  func(w *world)
	write func(w *world, round int) int
}

const wide = `CREATE TABLE wide (id bigserial PRIMARY KEY, a1 int, a2 int, a3 int, a4 int, a5 bigint, a6 bigint, a7 bigint, a8 text, a9 text, a10 text, a11 text,
	a12 timestamptz, a13 timestamptz, a14 date, a15 numeric, a16 numeric, a17 boolean, a18 uuid, a19 float8)`

const narrow = `CREATE TABLE narrow (id bigint PRIMARY KEY, n int, note text, at timestamptz, amount numeric(12, 2))`

// fillNarrow inserts rows id from … to.
const fillNarrow = `INSERT INTO narrow SELECT i, i %% 1000, md5(i::text), timestamptz '2024-01-01' + i * interval '1 second', i / 100.0 FROM generate_series(%d, %d) i`

// randomUpdates changes n rows of narrow, 1,000 a transaction. A stride that shares no factor with the number of rows visits each of them once,
// in no order that an index has.
func randomUpdates(n, round int) string {
	return fmt.Sprintf(`DO $$ BEGIN FOR t IN 0 .. %d LOOP
		UPDATE narrow SET n = n + 1, note = md5(id::text || '%d'), amount = amount + 1 WHERE id = ANY (ARRAY(SELECT 1 + (i * 7919) %% %d FROM generate_series(t::bigint * 1000, t::bigint * 1000 + 999) i));
		COMMIT; END LOOP; END $$`, n/1000-1, round, n)
}

// drains are the rows B1 to B5. Sizes are those of scale 1.
var drains = []workload{
	{
		name: "B1", what: "backlog of pgbench TPC-B, scale 50", unit: "transactions", goal: 2.5,
		load: func(w *world) {
			w.pgbench("--initialize", "--quiet", fmt.Sprintf("--scale=%d", scaled(w.b, 50)))
		},
		write: func(w *world, _ int) int {
			n := scaled(w.b, 100000)
			w.pgbench("--no-vacuum", "--client=4", "--jobs=2", "--protocol=prepared", fmt.Sprintf("--transactions=%d", n/4))
			return n / 4 * 4
		},
	},
	{
		name: "B2", what: "single-row inserts, 20 columns", unit: "transactions", goal: 1.6, ddl: wide,
		write: func(w *world, _ int) int {
			n := scaled(w.b, 200000)
			script := filepath.Join(w.b.TempDir(), "insert.sql")
			sql := `INSERT INTO wide (a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19) VALUES (1, 2, 3, 4, 5, 6, 7, 'eight', 'nine nine nine',
				'ten', md5(random()::text), now(), now(), current_date, 15.15, 1616161616.16, true, gen_random_uuid(), random());`
			if err := os.WriteFile(script, []byte(oneLine(sql)+"\n"), 0o600); err != nil {
				w.b.Fatal(err)
			}
			w.pgbench("--no-vacuum", "--client=4", "--jobs=2", "--protocol=prepared", "--file="+script, fmt.Sprintf("--transactions=%d", n/4))
			return n / 4 * 4
		},
	},
	{
		name: "B3", what: "bulk inserts, 100 thousand rows each", unit: "rows", goal: 1.4, ddl: narrow,
		write: func(w *world, round int) int {
			n := scaled(w.b, 20)
			for i := range n {
				from := (round*n+i)*100000 + 1
				w.exec(w.origin, fmt.Sprintf(fillNarrow, from, from+99999))
			}
			return n * 100000
		},
	},
	{
		name: "B4", what: "random updates, 1,000 a transaction", unit: "rows", goal: 1.5, ddl: narrow,
		load: func(w *world) { w.exec(w.origin, fmt.Sprintf(fillNarrow, 1, scaled(w.b, 1000000))) },
		write: func(w *world, round int) int {
			n := scaled(w.b, 1000000)
			w.exec(w.origin, randomUpdates(n, round))
			return n / 1000 * 1000
		},
	},
	{
		name: "B5", what: "random deletes, 1,000 a transaction", unit: "rows", goal: 1.4, ddl: narrow,
		load: func(w *world) { w.exec(w.origin, fmt.Sprintf(fillNarrow, 1, rounds(w.b)*scaled(w.b, 500000))) },
		write: func(w *world, round int) int {
			n := scaled(w.b, 500000)
			w.exec(w.origin, fmt.Sprintf(`DO $$ BEGIN FOR t IN %d .. %d LOOP
				DELETE FROM narrow WHERE id = ANY (ARRAY(SELECT 1 + (i * 7919) %% %d FROM generate_series(t::bigint * 1000, t::bigint * 1000 + 999) i));
				COMMIT; END LOOP; END $$`, round*(n/1000), (round+1)*(n/1000)-1, rounds(w.b)*n))
			return n / 1000 * 1000
		},
	},
}

func BenchmarkDrain(b *testing.B) {
	var report table
	for _, l := range drains {
		b.Run(l.name, func(b *testing.B) { report.add(l.run(b)) })
	}
	report.print(b)
}
