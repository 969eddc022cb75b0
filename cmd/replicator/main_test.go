package main

import (
	"bufio"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestMain lets the test binary be the program itself, as a child process that can be sent signals.
func TestMain(m *testing.M) {
	if os.Getenv("REPLICATOR_TEST_PROGRAM") != "" {
		os.Exit(runMain())
	}
	os.Exit(m.Run())
}

// TestSignalsEndInOrder sends what a terminal and Kubernetes send.
func TestSignalsEndInOrder(t *testing.T) {
	s := newSession(t)
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "status", "--watch", "--json")
		cmd.Env = append(append(os.Environ(), s.env...), "REPLICATOR_TEST_PROGRAM=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it is up
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %v: %v, want status 0", sig, err)
		}
	}
}
