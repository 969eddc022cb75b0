package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Versions are the servers that `scripts/install-tools redisversions` puts aside, beside the system's redis-server (7.0), which is "".
var Versions = []string{"redis-6.0", "", "redis-8.0", "valkey-8.0", "valkey-8.1", "valkey-9.1"}

// program returns the server program of a version.
func program(version string) (string, error) {
	if version == "" {
		return "redis-server", nil
	}
	dir := os.Getenv("REPLICATOR_TOOLS_DIR")
	if dir == "" {
		_, file, _, ok := runtime.Caller(0)
		if !ok {
			return "", fmt.Errorf("find %s: set REPLICATOR_TOOLS_DIR", version)
		}
		dir = filepath.Join(filepath.Dir(file), "..", "..", ".tools")
	}
	path := filepath.Join(dir, "redis", version, "bin", "server")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s: %w: run scripts/install-tools redisversions", version, err)
	}
	return path, nil
}
