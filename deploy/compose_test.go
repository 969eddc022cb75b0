package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCompose holds the compose file together by structure: what it mounts exists, what it names is declared, ports are published on
// this machine only, and the variables that the configuration needs are set. It is not run.
func TestCompose(t *testing.T) {
	var compose struct {
		Services map[string]struct {
			Image       string
			Build       *struct{ Context string }
			Environment map[string]string
			Ports       []string
			Volumes     []string
			DependsOn   any `yaml:"depends_on"`
		}
		Volumes map[string]any
	}
	readYAML(t, "compose/compose.yaml", &compose)
	if len(compose.Services) == 0 {
		t.Fatal("no services")
	}
	for name, s := range compose.Services {
		if s.Image == "" {
			t.Errorf("%s has no image", name)
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s publishes %s to everyone", name, p)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(from, ".") {
				if info, err := os.Stat(filepath.Join("compose", from)); err != nil || !info.Mode().IsRegular() {
					t.Errorf("%s mounts %s, which is no file (%v)", name, from, err)
				}
			} else if _, declared := compose.Volumes[from]; !declared {
				t.Errorf("%s uses the volume %s, which is not declared", name, from)
			}
		}
		for _, other := range dependencies(s.DependsOn) {
			if _, ok := compose.Services[other]; !ok {
				t.Errorf("%s depends on %s, which is no service", name, other)
			}
		}
	}
	daemon := compose.Services["replicator"]
	if daemon.Build == nil {
		t.Fatal("replicator is not built")
	}
	if _, err := os.Stat(filepath.Join("compose", daemon.Build.Context, "Dockerfile")); err != nil {
		t.Error(err)
	}
	config, err := os.ReadFile("compose/replicator.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\$\{(\w+)\}`).FindAllStringSubmatch(string(config), -1) {
		if daemon.Environment[m[1]] == "" {
			t.Errorf("replicator.yml needs %s, which the service doesn't set", m[1])
		}
	}
}

// dependencies returns the names in either form of depends_on.
func dependencies(v any) []string {
	var names []string
	switch v := v.(type) {
	case []any:
		for _, n := range v {
			names = append(names, n.(string))
		}
	case map[string]any:
		for n := range v {
			names = append(names, n)
		}
	}
	return names
}
