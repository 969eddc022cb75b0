package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"replicator/internal/demo"
)

// TestDemo runs the demo as make demo does, and demands what its table promises and that it cleans up.
func TestDemo(t *testing.T) { everyCapture(t, runDemo) }

func runDemo(t *testing.T, o demo.ServersOptions) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	tmp := t.TempDir()
	if err := os.Chmod(tmp, 0o755); err != nil { // root runs the servers as another user
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(tmp), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, binary, "demo", "--auto", "--json", "--duration", "3s", "--capture", o.Capture)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err := cmd.Run(); err != nil {
		t.Fatalf("the demo: %v\n%s%s", err, out.String(), progress.String())
	}
	var r map[string]any
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("the result is no document: %v\n%s", err, out.String())
	}
	for _, name := range []string{"failed_writes", "lost_writes", "duplicated_writes", "phantom_writes", "mismatches"} {
		if n, ok := r[name].(float64); !ok || n != 0 {
			t.Errorf("%s is %v", name, r[name])
		}
	}
	for _, name := range []string{"rows_copied", "keys_copied", "transactions", "redis_writes", "freeze_seconds"} {
		if n, ok := r[name].(float64); !ok || n <= 0 {
			t.Errorf("%s is %v", name, r[name])
		}
	}
	if r["capture"] != o.Capture {
		t.Errorf("capture is %v", r["capture"])
	}
	if left, err := filepath.Glob(filepath.Join(tmp, "replicator-demo-*")); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v behind: %v", left, err)
	}
	t.Logf("%s", out.String())
}
