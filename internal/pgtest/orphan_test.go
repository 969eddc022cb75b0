package pgtest_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"replicator/internal/pgtest"
)

// TestNothingOutlivesAKilledProcess runs this test binary again, lets it start two servers and kills it without warning.
func TestNothingOutlivesAKilledProcess(t *testing.T) {
	if os.Getenv("PGTEST_ORPHAN") != "" {
		own := pgtest.Start(t, pgtest.Options{})
		all := pgtest.Shared(t)
		fmt.Printf("\norphans %d %s %d %s\n", own.Pid(), own.DataDir(), all.Pid(), all.DataDir())
		select {}
	}
	t.Parallel()
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingOutlivesAKilledProcess$")
	cmd.Env = append(os.Environ(), "PGTEST_ORPHAN=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var words []string
	for lines := bufio.NewScanner(out); len(words) != 5 && lines.Scan(); {
		if words = strings.Fields(lines.Text()); len(words) != 5 || words[0] != "orphans" {
			words = nil
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if words == nil {
		t.Fatal("the child didn't start its servers")
	}
	for _, w := range []string{words[1], words[3]} {
		pid, err := strconv.Atoi(w)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the server "+w+" ends", func() bool { return syscall.Kill(pid, 0) != nil })
	}
	for _, data := range []string{words[2], words[4]} {
		dir := filepath.Dir(data)
		eventually(t, dir+" is removed", func() bool { _, err := os.Stat(dir); return os.IsNotExist(err) })
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("waited 20 s in vain until %s", what)
		case <-tick.C:
		}
	}
}
