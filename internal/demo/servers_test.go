package demo

import (
	"os"
	"testing"

	"replicator/internal/pgtest"
)

// serversDir makes a directory that the user which runs the servers can enter, which t.TempDir's isn't for root.
func serversDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "replicator-demo-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func role(t *testing.T, url string) (super, replicates bool) {
	t.Helper()
	err := pgtest.Connect(t, url).QueryRow(t.Context(), "SELECT rolsuper, rolreplication FROM pg_roles WHERE rolname = current_user").Scan(&super, &replicates)
	if err != nil {
		t.Fatal(err)
	}
	return super, replicates
}
