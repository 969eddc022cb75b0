package metrics

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

func ptr(v float64) *float64 { return &v }

func TestPostgres(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	now := PostgresReading{LagBytes: ptr(1024), RetainedBytes: ptr(4096)}
	p := NewPostgres(reg, "main", func() PostgresReading { return now })
	NewPostgres(reg, "billing", func() PostgresReading { return PostgresReading{} })
	p.Applied("insert", 3)
	p.Applied("update", 0)
	p.Applied("truncate", 1)
	p.AppliedTransactions(2)
	p.Copied(10, 2000)
	p.VerifyMismatches(0)

	want := `
# HELP replicator_postgres_applied_rows_total Row changes streamed from the source and applied to the target, by operation.
# TYPE replicator_postgres_applied_rows_total counter
replicator_postgres_applied_rows_total{op="delete",pair="billing"} 0
replicator_postgres_applied_rows_total{op="insert",pair="billing"} 0
replicator_postgres_applied_rows_total{op="truncate",pair="billing"} 0
replicator_postgres_applied_rows_total{op="update",pair="billing"} 0
replicator_postgres_applied_rows_total{op="delete",pair="main"} 0
replicator_postgres_applied_rows_total{op="insert",pair="main"} 3
replicator_postgres_applied_rows_total{op="truncate",pair="main"} 1
replicator_postgres_applied_rows_total{op="update",pair="main"} 0
# HELP replicator_postgres_lag_bytes Write-ahead log that the source has written and the target has not yet made durable.
# TYPE replicator_postgres_lag_bytes gauge
replicator_postgres_lag_bytes{pair="main"} 1024
# HELP replicator_verify_mismatches Rows or keys that differed between the sides in the last finished verification; absent until there was one.
# TYPE replicator_verify_mismatches gauge
replicator_verify_mismatches{pair="main"} 0
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want),
		"replicator_postgres_applied_rows_total", "replicator_postgres_lag_bytes", "replicator_postgres_lag_seconds", "replicator_verify_mismatches"); err != nil {
		t.Error(err)
	}

	// The reading is taken at the scrape, not when it was last reported.
	now.LagSeconds = ptr(12.5)
	if n, err := testutil.GatherAndCount(reg, "replicator_postgres_lag_seconds"); err != nil || n != 1 {
		t.Errorf("lag_seconds appears %d times (%v), want once: only the pair that knows it", n, err)
	}
}

func TestPairBuiltAnewReplacesItself(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	NewPostgres(reg, "main", nil).AppliedTransactions(5)
	NewPostgres(reg, "main", nil).AppliedTransactions(1)
	want := `
# HELP replicator_postgres_applied_transactions_total Source transactions applied to the target by the stream.
# TYPE replicator_postgres_applied_transactions_total counter
replicator_postgres_applied_transactions_total{pair="main"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "replicator_postgres_applied_transactions_total"); err != nil {
		t.Error(err)
	}
}

func TestCutoverShowsOnePhase(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	c := NewCutover(reg)
	for _, phase := range CutoverPhases {
		c.SetPhase(phase)
		var set []string
		for _, m := range family(t, reg, "replicator_cutover_phase").GetMetric() {
			if m.GetGauge().GetValue() == 1 {
				set = append(set, m.GetLabel()[0].GetValue())
			}
		}
		if !slices.Equal(set, []string{phase}) {
			t.Errorf("after SetPhase(%q) the gauge is 1 for %v", phase, set)
		}
	}
	if n, _ := testutil.GatherAndCount(reg, "replicator_cutover_freeze_seconds"); n != 0 {
		t.Error("freeze seconds are shown before any freeze")
	}
	c.SetFreezeSeconds(0.75)
	c.Finished("done")
	c.Finished("rolled_back")
	want := `
# HELP replicator_cutover_freeze_seconds How long the last cutover attempt kept the application from writing; absent until one did.
# TYPE replicator_cutover_freeze_seconds gauge
replicator_cutover_freeze_seconds 0.75
# HELP replicator_cutover_total Cutover attempts that have ended, by outcome (a rollback that went through counts as rolled_back).
# TYPE replicator_cutover_total counter
replicator_cutover_total{outcome="aborted"} 0
replicator_cutover_total{outcome="done"} 1
replicator_cutover_total{outcome="rolled_back"} 1
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "replicator_cutover_freeze_seconds", "replicator_cutover_total"); err != nil {
		t.Error(err)
	}
}

func TestNilReceivers(t *testing.T) {
	var (
		p *Postgres
		r *Redis
		c *Cutover
		l *Leader
	)
	p.Applied("insert", 1)
	p.AppliedTransactions(1)
	p.Copied(1, 1)
	p.VerifyMismatches(1)
	r.Copied(1)
	r.Gap()
	r.VerifyMismatches(1)
	c.SetPhase("freeze")
	c.SetFreezeSeconds(1)
	c.Finished("done")
	l.Set(true)
	NewPostgres(nil, "main", nil).Applied("insert", 1)
}

// everything registers all components with every value known.
func everything() *prometheus.Registry {
	reg := prometheus.NewPedanticRegistry()
	NewPostgres(reg, "main", func() PostgresReading {
		return PostgresReading{LagBytes: ptr(1), LagSeconds: ptr(1), RetainedBytes: ptr(1), HorizonSeconds: ptr(1)}
	}).VerifyMismatches(0)
	r := NewRedis(reg, "sidekiq", func() RedisReading {
		return RedisReading{LagSeconds: ptr(0), DirtyKeys: ptr(3), MemoryHeadroomBytes: ptr(1), FeedBufferBytes: ptr(1), FeedBufferLimitBytes: ptr(1)}
	})
	r.Copied(2)
	r.Gap()
	r.VerifyMismatches(1)
	NewCutover(reg).SetFreezeSeconds(1)
	NewLeader(reg).Set(true)
	NewBuild(reg, "v0", "go0")
	return reg
}

func TestNamesAreInGoodForm(t *testing.T) {
	problems, err := testutil.GatherAndLint(everything())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestDocumented compares what is exported with the table of docs/metrics.md: name, type and labels, in both directions.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(replicator_\\w+)` \\| (\\w+) \\|([^|]*)\\|").FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2] + " " + strings.ReplaceAll(strings.TrimSpace(m[3]), "`", "")
	}
	families, err := everything().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		labels := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		got := strings.TrimSpace(strings.ToLower(f.GetType().String()) + " " + strings.Join(sorted(labels), ", "))
		if want, ok := documented[f.GetName()]; !ok || strings.TrimSpace(want) != got {
			t.Errorf("%s is a %q; docs/metrics.md says %q", f.GetName(), got, want)
		}
		delete(documented, f.GetName())
	}
	for name := range documented {
		t.Errorf("docs/metrics.md documents %s, which is not exported", name)
	}
}

func sorted(set map[string]bool) []string {
	var out []string
	for k := range set {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func family(t *testing.T, g prometheus.Gatherer, name string) *dto.MetricFamily {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f
		}
	}
	t.Fatalf("no metric %s", name)
	return nil
}
