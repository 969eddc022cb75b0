package redistest

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// clockSource is a library that shifts the clock of the process it is loaded into. It lies in a directory of its own, since the go
// command would otherwise want cgo for this package.
//
//go:embed clock/ahead.c
var clockSource []byte

// clockEnvironment builds the library in dir and returns what makes a process load it. It takes a C compiler, as the race detector does.
func clockEnvironment(dir string, ahead time.Duration) ([]string, error) {
	source, library := filepath.Join(dir, "ahead.c"), filepath.Join(dir, "ahead.so")
	if err := os.WriteFile(source, clockSource, 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-O1", "-o", library, source).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the library that shifts a server's clock: %w: %s", err, out)
	}
	return append(os.Environ(), "LD_PRELOAD="+library, fmt.Sprintf("REDISTEST_CLOCK_AHEAD_MS=%d", ahead.Milliseconds())), nil
}
