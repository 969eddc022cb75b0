package pair

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// Keys and indexes of tables that are done are built while others are still copied; a process that dies in between is followed by one that
// builds what is left and copies what isn't done, and nothing else.
func TestKeysAreBuiltWhileOthersAreCopied(t *testing.T) {
	everyCapture(t, keysAreBuiltWhileOthersAreCopied)
}

func keysAreBuiltWhileOthersAreCopied(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, variedSchema)
	pgtest.Exec(t, f.source, "CREATE TABLE bulk (id int, v text); INSERT INTO bulk SELECT i, repeat(md5(i::text), 8) FROM generate_series(1, 200000) i; CREATE INDEX bulk_id ON bulk (id)")
	f.start(false)
	f.until("copying", time.Minute, func(s Status) bool { return s.Phase == Copying || s.Phase == Streaming })
	there := pgtest.Connect(t, f.target)
	built := func(condition string) (n int) {
		t.Helper()
		const sql = "SELECT count(*) FROM replicator.ddl WHERE stage IN ('keys', 'indexes') AND done_at IS NOT NULL AND "
		if err := there.QueryRow(f.ctx(), sql+condition).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	f.until("key", time.Minute, func(Status) bool { return built("true") > 0 })
	f.stop()
	var before int
	if err := there.QueryRow(f.ctx(), "SELECT count(*) FROM replicator.copy WHERE state = 'copied'").Scan(&before); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	f.start(false)
	f.streaming()
	f.equal()
	if n := built("done_at < (SELECT max(finished_at) FROM replicator.copy)"); n == 0 {
		t.Error("nothing was built before the last table was copied")
	}
	var again, lacking int
	if err := there.QueryRow(f.ctx(), "SELECT count(*) FILTER (WHERE finished_at < $1), (SELECT count(*) FROM replicator.ddl WHERE done_at IS NULL) FROM replicator.copy", at).Scan(&again, &lacking); err != nil {
		t.Fatal(err)
	}
	if again != before || lacking != 0 {
		t.Errorf("%d tables kept their copy, want %d; %d statements are left", again, before, lacking)
	}
}

// Setting up and copying a table takes few round trips to either server, which may be far: each of them is waited for.
func TestRoundTripsOfATable(t *testing.T) {
	const most = 12.0
	trips := func(tables int) (source, target int) {
		f := newFixture(t)
		f.capture = Logical
		var b strings.Builder
		for i := range tables {
			fmt.Fprintf(&b, "CREATE TABLE t%d (id bigserial PRIMARY KEY, v text UNIQUE, at timestamptz); INSERT INTO t%[1]d (v) VALUES ('a'), ('b'); CREATE INDEX ON t%[1]d (at);", i)
		}
		pgtest.Exec(t, f.source, b.String())
		var a, z *pgtest.Cutter
		a, f.source = pgtest.NewCutter(t, f.source)
		z, f.target = pgtest.NewCutter(t, f.target)
		f.start(false)
		f.streaming()
		f.stop()
		return a.Turns(), z.Turns()
	}
	fewSource, fewTarget := trips(5)
	manySource, manyTarget := trips(25)
	source, target := float64(manySource-fewSource)/20, float64(manyTarget-fewTarget)/20
	t.Logf("round trips a table: source %.2f, target %.2f; without any about %.0f and %.0f", source, target, float64(fewSource)-5*source, float64(fewTarget)-5*target)
	if source > most || target > most {
		t.Errorf("round trips a table: source %.2f, target %.2f, at most %v are allowed", source, target, most)
	}
}
