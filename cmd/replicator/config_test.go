package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"replicator/internal/strictyaml"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected messages beside the fixtures")

func fakeEnv(pairs ...string) environ {
	m := map[string]string{}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		m[k] = v
	}
	return func(name string) (string, bool) { v, ok := m[name]; return v, ok }
}

const password = `p@ss: "w" #{ord}`

func TestGoodFiles(t *testing.T) {
	files, _ := filepath.Glob("testdata/config/*.good.yml")
	if len(files) == 0 {
		t.Fatal("no fixtures")
	}
	for _, f := range files {
		if _, err := loadConfig(f, fakeEnv("PASSWORD="+password, "ENCODED=p%40ss")); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestReferences(t *testing.T) {
	cfg, err := loadConfig("testdata/config/references.good.yml", fakeEnv("PASSWORD="+password, "ENCODED=p%40ss"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := cfg.Cutover.Hooks[0].Exec.Command, []string{"/bin/echo", "${HOME}", password}; !reflect.DeepEqual(got, want) {
		t.Errorf("command %q, want %q", got, want)
	}
	if got := cfg.Postgres[0].Source.URL.Reveal(); got != "postgres://app:p%40ss@source/app" {
		t.Errorf("source %q", got)
	}
	if got := cfg.Postgres[0].Target.URL.Reveal(); got != "postgres://app:x@target/app" {
		t.Errorf("target %q: want the file's content without its line break", got)
	}
}

// TestBadFiles compares everything that is said about each *.bad.yml with the .txt beside it; -rewrite writes them.
func TestBadFiles(t *testing.T) {
	files, _ := filepath.Glob("testdata/config/*.bad.yml")
	if len(files) == 0 {
		t.Fatal("no fixtures")
	}
	for _, f := range files {
		_, err := loadConfig(f, fakeEnv("PASSWORD=hunter2"))
		var ce *configError
		if !errors.As(err, &ce) {
			t.Errorf("%s: %v, want a configError", f, err)
			continue
		}
		golden := strings.TrimSuffix(f, ".yml") + ".txt"
		got := err.Error() + "\n"
		if strings.Contains(got, "hunter2") {
			t.Errorf("%s: the messages show a secret:\n%s", f, got)
		}
		if *rewrite {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", f, got, want)
		}
	}
}

// TestShippedFiles loads the configuration that the compose file mounts.
func TestShippedFiles(t *testing.T) {
	env := fakeEnv("SOURCE_DATABASE_URL=postgres://a/x", "TARGET_DATABASE_URL=postgres://b/x", "SOURCE_REDIS_URL=redis://a", "TARGET_REDIS_URL=redis://b",
		"HOOK_SECRET=s", "REPLICATOR_TOKEN=t")
	if _, err := loadConfig("../../deploy/compose/replicator.yml", env); err != nil {
		t.Error(err)
	}
}

const exampleFile = "../../docs/replicator.example.yml"

// TestExampleIsTheDefaults loads the annotated example and compares every value in it, other than the required ones, with the
// defaults; and every key that exists must be in it.
func TestExampleIsTheDefaults(t *testing.T) {
	env := fakeEnv("SOURCE_DATABASE_URL=postgres://a/x", "TARGET_DATABASE_URL=postgres://b/x", "SOURCE_REDIS_URL=redis://a", "TARGET_REDIS_URL=redis://b",
		"HOOK_SECRET=s", "REPLICATOR_TOKEN=t")
	cfg, err := loadConfig(exampleFile, env)
	if err != nil {
		t.Fatal(err)
	}
	pg, rd := cfg.Postgres[0], cfg.Redis[0]
	want := defaults()
	wantPg, wantRd := defaultPostgres(), defaultRedis()
	wantPg.Name, wantPg.Source.URL, wantPg.Target.URL = pg.Name, pg.Source.URL, pg.Target.URL
	wantRd.Name, wantRd.Source.URL, wantRd.Target.URL = rd.Name, rd.Source.URL, rd.Target.URL
	want.Migration, want.Postgres, want.Redis = cfg.Migration, []PostgresConfig{wantPg}, []RedisConfig{wantRd}
	want.Admin.Tokens.Operator = cfg.Admin.Tokens.Operator
	want.Cutover.Hooks = []HookConfig{
		{At: "switch", Webhook: &WebhookConfig{URL: NewSecret("http://127.0.0.1:9000/switch"), Secret: NewSecret("s"), Timeout: elementDefaults("cutover.hooks.webhook").(WebhookConfig).Timeout}},
		{At: "after", Exec: &ExecConfig{Command: []string{"/etc/replicator/notify.sh"}, Timeout: elementDefaults("cutover.hooks.exec").(ExecConfig).Timeout}},
	}
	// An empty list means the same as none.
	if got, want := fmt.Sprintf("%+v", dropEmpty(reflect.ValueOf(cfg))), fmt.Sprintf("%+v", dropEmpty(reflect.ValueOf(want))); got != want {
		t.Errorf("the example says\n%s\nthe defaults are\n%s", got, want)
	}

	src, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	lines, problems := strictyaml.Decode(src, new(Config), nil, nil)
	_ = problems // references are not expanded here; only the keys matter
	given := map[string]bool{}
	for path := range lines {
		given[indexes.ReplaceAllString(path, "")] = true
	}
	for _, key := range allKeys(reflect.TypeFor[Config](), "") {
		if !given[key] {
			t.Errorf("the example lacks %s", key)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	cfg, err := loadConfig("", fakeEnv("SOURCE_DATABASE_URL=postgres://a/x", "TARGET_DATABASE_URL=postgres://b/x", "REPLICATOR_CAPTURE=trigger",
		"REPLICATOR_LISTEN=:1", "REPLICATOR_METRICS_LISTEN=:2", "REPLICATOR_LOG=json", "REPLICATOR_TOKEN=t", "SOURCE_REDIS_URL="))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Postgres) != 1 || len(cfg.Redis) != 0 || cfg.Postgres[0].Capture != "trigger" || cfg.Admin.Listen != ":1" || cfg.Metrics.Listen != ":2" ||
		cfg.Log.Format != "json" || cfg.Admin.Tokens.Operator.Reveal() != "t" || cfg.Cutover.FreezeBudget != 30*time.Second {
		t.Errorf("got %+v", cfg)
	}
	_, err = loadConfig("", fakeEnv("SOURCE_DATABASE_URL=postgres://a/x", "REPLICATOR_CAPTURE=magic", "TARGET_DATABASE_URL=host=b", "SOURCE_REDIS_URL=http://x", "TARGET_REDIS_URL=redis://x"))
	want := `REPLICATOR_CAPTURE: "magic" is not known here: use auto, logical or trigger
TARGET_DATABASE_URL: not a URL: write postgres://USER:PASSWORD@HOST:PORT/DATABASE
SOURCE_REDIS_URL: begins with "http:": use redis:// or rediss://`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if _, err = loadConfig("", fakeEnv()); err == nil || !strings.Contains(err.Error(), "set SOURCE_DATABASE_URL and TARGET_DATABASE_URL") {
		t.Errorf("an empty environment: %v", err)
	}
}

func TestSecretsAreNeverShown(t *testing.T) {
	const secret = "hunter2"
	type hidden struct{ inner Secret }
	cfg := Config{Postgres: []PostgresConfig{{Source: Endpoint{URL: NewSecret("postgres://u:" + secret + "@h/db")}}}}
	cfg.Admin.Tokens.Operator = NewSecret(secret)
	js, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
		slog.New(h).Info("start", "config", cfg, "token", cfg.Admin.Tokens.Operator)
	}
	h := hidden{NewSecret(secret)}
	for _, shown := range []string{string(js), logged.String(), fmt.Sprint(cfg), fmt.Sprintf("%+v %#v %v %s", cfg, cfg, &cfg, cfg.Admin.Tokens),
		fmt.Sprintf("%v %+v %#v", h, h, h), fmt.Errorf("x: %v", cfg.Admin.Tokens).Error()} {
		if strings.Contains(shown, secret) {
			t.Errorf("a secret is shown: %s", shown)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "12": 12, "8GiB": 8 << 30, "500 MB": 5e8, "1kB": 1000} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q is %d (%v), want %d", text, s, err, want)
		}
		var back Size
		if err := back.UnmarshalText([]byte(s.String())); err != nil || back != s {
			t.Errorf("%d prints as %q, which reads as %d (%v)", s, s.String(), back, err)
		}
	}
	for _, text := range []string{"", "-1", "1.5GiB", "9999999999999TiB", "GiB"} {
		if err := new(Size).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for a size", text)
		}
	}
}

func TestPostgresURL(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	for _, c := range []struct {
		url  string
		tls  TLSConfig
		want string
	}{
		{"postgres://h/db", TLSConfig{}, "postgres://h/db?sslmode=require"},
		{"postgres://h/db?sslmode=disable", TLSConfig{}, "postgres://h/db?sslmode=disable"},
		{"postgres://localhost/db", TLSConfig{}, "postgres://localhost/db"},
		{"postgres://[::1]:5/db", TLSConfig{}, "postgres://[::1]:5/db"},
		{"postgres:///db?host=/run/postgresql", TLSConfig{}, "postgres:///db?host=/run/postgresql"},
		{"postgres://h/db?sslmode=disable", TLSConfig{CAFile: "/ca.pem"}, "postgres://h/db?sslmode=verify-full&sslrootcert=%2Fca.pem"},
		{"postgres://h/db", TLSConfig{Verify: "ca", CAFile: "/ca.pem"}, "postgres://h/db?sslmode=verify-ca&sslrootcert=%2Fca.pem"},
		{"postgres://localhost/db", TLSConfig{Verify: "none"}, "postgres://localhost/db?sslmode=require"},
	} {
		if got := (Endpoint{URL: NewSecret(c.url), TLS: c.tls}).PostgresURL(); got != c.want {
			t.Errorf("%s with %+v is %s, want %s", c.url, c.tls, got, c.want)
		}
	}
}

// One pair moves a database; what would have two pairs share a source is told before anything is connected to.
func TestPairsOfOneSource(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"postgres://u:p@db/shop", "postgres://u:p@db/shop", true},
		{"postgres://u:p@DB:5432/shop?sslmode=require", "postgresql://other@db/shop", true},
		{"postgres://shop@db", "postgres://x@db/shop", true},
		{"postgres://u@db/shop", "postgres://u@db/blog", false},
		{"postgres://u@db:5433/shop", "postgres://u@db/shop", false},
		{"postgres://u@db1/shop", "postgres://u@db2/shop", false},
	} {
		cfg := defaults()
		cfg.Migration = "m"
		for i, text := range []string{c.a, c.b} {
			p := defaultPostgres()
			p.Name = fmt.Sprintf("p%d", i)
			p.Source.URL, p.Target.URL = NewSecret(text), NewSecret(fmt.Sprintf("postgres://u@t/t%d", i))
			cfg.Postgres = append(cfg.Postgres, p)
		}
		var found string
		for _, p := range validate(cfg) {
			found += p.Path + ": " + p.Message + "\n"
		}
		want := ""
		if c.same {
			want = "postgres[1].source.url: leads to the same database as that of postgres[0]: one pair moves a database; name all its tables there\n"
		}
		if found != want {
			t.Errorf("%s and %s: %q, want %q", c.a, c.b, found, want)
		}
	}
}
