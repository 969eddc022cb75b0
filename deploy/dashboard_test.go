package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"replicator/metrics"
)

type dashboard struct {
	Title, UID  string
	Panels      []panel
	Annotations struct {
		List []struct{ Name, Expr string }
	}
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
}

type panel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               struct{ UID string }
	Targets                  []struct{ RefID, Expr string }
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	text, err := os.ReadFile("grafana/replicator.json")
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	if len(d.Panels) == 0 {
		t.Fatal("the dashboard has no panels")
	}
	return d
}

func TestDashboardStructure(t *testing.T) {
	d := readDashboard(t)
	type cell struct{ x, y int }
	ids, cells := map[int]string{}, map[cell]string{}
	for _, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] != "" {
			t.Errorf("panel %q has the id %d, taken by %q", p.Title, p.ID, ids[p.ID])
		}
		ids[p.ID] = p.Title
		g := p.GridPos
		if g.X < 0 || g.Y < 0 || g.W < 1 || g.H < 1 || g.X+g.W > 24 {
			t.Errorf("panel %q lies outside the grid: %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := cells[cell{x, y}]; other != "" {
					t.Fatalf("panels %q and %q overlap", other, p.Title)
				}
				cells[cell{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Description == "" {
			t.Errorf("panel %q has no description", p.Title)
		}
		if p.Datasource.UID != "${datasource}" {
			t.Errorf("panel %q is bound to the data source %q: use the variable", p.Title, p.Datasource.UID)
		}
		refs := map[string]bool{}
		for _, target := range p.Targets {
			if target.Expr == "" || target.RefID == "" || refs[target.RefID] {
				t.Errorf("panel %q has an empty or doubled query %q", p.Title, target.RefID)
			}
			refs[target.RefID] = true
		}
		if len(p.Targets) == 0 {
			t.Errorf("panel %q asks nothing", p.Title)
		}
	}
	var names []string
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
	}
	if got := strings.Join(names, " "); got != "datasource migration pair" {
		t.Errorf("the variables are %q", got)
	}
}

// expressions returns every PromQL expression of the dashboard, by where it stands, with Grafana's variables filled in.
func expressions(t *testing.T, d dashboard) map[string]string {
	t.Helper()
	fill := strings.NewReplacer("$__rate_interval", "5m", "$migration", ".*", "$pair", ".*")
	found := map[string]string{}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			found[fmt.Sprintf("panel_%d_%s", p.ID, target.RefID)] = fill.Replace(target.Expr)
		}
	}
	for i, a := range d.Annotations.List {
		if a.Expr != "" {
			found[fmt.Sprintf("annotation_%d", i)] = fill.Replace(a.Expr)
		}
	}
	for name, e := range found {
		if strings.Contains(e, "$") {
			t.Errorf("%s has an unknown variable: %s", name, e)
		}
	}
	return found
}

// TestExpressions writes the expressions as rules to the file that REPLICATOR_EXPRESSIONS names, for check.sh to have them parsed.
func TestExpressions(t *testing.T) {
	type rule struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var rules []rule
	for name, e := range expressions(t, readDashboard(t)) {
		rules = append(rules, rule{"dashboard:" + name, e})
	}
	if file := os.Getenv("REPLICATOR_EXPRESSIONS"); file != "" {
		group := map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}}
		text, err := json.Marshal(group) // JSON is YAML
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// exported returns the names of all metrics that the program can export, each component with every value known.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	one := 1.0
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics.NewPostgres(reg, "main", func() metrics.PostgresReading {
		return metrics.PostgresReading{LagBytes: &one, LagSeconds: &one, RetainedBytes: &one, HorizonSeconds: &one}
	}).VerifyMismatches(0)
	metrics.NewRedis(reg, "cache", func() metrics.RedisReading {
		return metrics.RedisReading{LagSeconds: &one, DirtyKeys: &one, MemoryHeadroomBytes: &one, FeedBufferBytes: &one, FeedBufferLimitBytes: &one}
	})
	metrics.NewCutover(reg).SetFreezeSeconds(1)
	metrics.NewLeader(reg)
	metrics.NewBuild(reg, "v", "go")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
	}
	return names
}

var metricName = regexp.MustCompile(`\b(?:replicator|go|process)_[a-z0-9_]+`)

func TestMetricsExist(t *testing.T) {
	known := exported(t)
	d := readDashboard(t)
	texts := expressions(t, d)
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			texts["variable "+v.Name] = v.Definition
		}
	}
	rules, err := os.ReadFile("alerts/replicator.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	texts["the alerts"] = string(rules)
	used := 0
	for where, text := range texts {
		for _, name := range metricName.FindAllString(text, -1) {
			used++
			if !known[name] {
				t.Errorf("%s uses %s, which replicator does not export", where, name)
			}
		}
	}
	if used == 0 {
		t.Error("no metric is used anywhere")
	}
}
