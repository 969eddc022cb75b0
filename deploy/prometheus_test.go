package deploy

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"replicator/metrics"
)

// TestEveryExpressionFindsASeries lets a real Prometheus scrape the program's own metrics and load the alert rules, and requires that every
// expression of the dashboard returns something: a wrong label, or a join that matches nothing, would be an empty panel.
func TestEveryExpressionFindsASeries(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	one := 1.0
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	pg := metrics.NewPostgres(reg, "main", func() metrics.PostgresReading {
		return metrics.PostgresReading{LagBytes: &one, LagSeconds: &one, RetainedBytes: &one, HorizonSeconds: &one}
	})
	redis := metrics.NewRedis(reg, "sidekiq", func() metrics.RedisReading {
		return metrics.RedisReading{LagSeconds: &one, DirtyKeys: &one, MemoryHeadroomBytes: &one, FeedBufferBytes: &one, FeedBufferLimitBytes: &one}
	})
	cutover := metrics.NewCutover(reg)
	metrics.NewLeader(reg).Set(true)
	metrics.NewBuild(reg, "v1", "go1")
	// An alert without delay: something for the panels that show alerts.
	pg.VerifyMismatches(3)
	cutover.SetFreezeSeconds(1)
	cutover.SetPhase("freeze")

	serve := promhttp.HandlerFor(reg, promhttp.HandlerOpts{})
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Each scrape finds that work has been done, so that rates are above zero.
		pg.Applied("insert", 10)
		pg.AppliedTransactions(2)
		pg.Copied(5, 500)
		redis.Copied(3)
		redis.Gap()
		serve.ServeHTTP(w, r)
	}))
	defer daemon.Close()
	api := startPrometheus(ctx, t, strings.TrimPrefix(daemon.URL, "http://"))

	d := readDashboard(t)
	now, atSwitch := expressions(t, d), map[string]string{}
	for name, query := range now {
		if strings.Contains(query, `phase="switch"`) {
			atSwitch[name] = query
			delete(now, name)
		}
	}
	findsSeries := func(query string) bool {
		var answer struct{ Result []json.RawMessage }
		return api.get(ctx, "/api/v1/query?query="+url.QueryEscape(query), &answer) == nil && len(answer.Result) > 0
	}
	untilNone(ctx, t, now, "expressions without a series", findsSeries)
	cutover.SetPhase("switch")
	untilNone(ctx, t, atSwitch, "expressions without a series", findsSeries)

	variables := map[string]string{}
	for _, v := range d.Templating.List {
		if inner, ok := strings.CutPrefix(v.Definition, "label_values("); ok {
			at := strings.LastIndex(inner, ",")
			label := strings.TrimSpace(strings.TrimSuffix(inner[at+1:], ")"))
			match := strings.ReplaceAll(inner[:at], "$migration", ".*")
			variables[v.Name] = "/api/v1/label/" + label + "/values?match[]=" + url.QueryEscape(match)
		}
	}
	if len(variables) != 2 {
		t.Errorf("the dashboard has the label variables %v, want migration and pair", variables)
	}
	untilNone(ctx, t, variables, "variables without a value", func(path string) bool {
		var values []string
		return api.get(ctx, path, &values) == nil && len(values) > 0
	})

	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := api.get(ctx, "/api/v1/rules", &rules); err != nil || len(rules.Groups) == 0 {
		t.Fatalf("no rules are loaded: %v", err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Health != "ok" {
				t.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
			}
		}
	}
}

// untilNone asks for each of pending, by name, until all are answered or the context ends.
func untilNone(ctx context.Context, t *testing.T, pending map[string]string, what string, answered func(string) bool) {
	t.Helper()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for len(pending) > 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, pending)
		case <-tick.C:
		}
		for name, query := range pending {
			if answered(query) {
				delete(pending, name)
			}
		}
	}
}

type prometheusAPI string

// get asks Prometheus and decodes the data of its answer.
func (a prometheusAPI) get(ctx context.Context, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, string(a)+path, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus: %s", answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// startPrometheus runs a Prometheus server that scrapes the address every second with the label migration, and evaluates our rules.
func startPrometheus(ctx context.Context, t *testing.T, scrape string) prometheusAPI {
	t.Helper()
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		t.Fatalf("%v: run scripts/install-tools prometheus", err)
	}
	rules, err := filepath.Abs("alerts/replicator.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: replicator
    static_configs: [{targets: [%q], labels: {migration: shop}}]
`, rules, scrape)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	output := &strings.Builder{}
	cmd := exec.CommandContext(ctx, binary, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
		_ = cmd.Wait()                          // its status after a signal says nothing
		if t.Failed() {
			t.Logf("prometheus said:\n%s", output)
		}
	})
	return prometheusAPI("http://" + address)
}
