package redissync

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// freezeFor is the deadline that the killed process had set.
const freezeFor = 1500 * time.Millisecond

// TestDaemonToBeKilled is no test of its own: it is what TestAKilledDaemonsFreezeEnds starts and kills.
func TestDaemonToBeKilled(t *testing.T) {
	source, target, ok := strings.Cut(os.Getenv("REPLICATOR_TEST_DAEMON"), " ")
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p := New(Options{Migration: "shop", Name: "cache", SourceURL: source, TargetURL: target, Epoch: 1})
	go p.Run(ctx, false)
	if err := p.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(ctx, false, time.Now().Add(freezeFor)); err != nil {
		t.Fatal(err)
	}
	fmt.Println("frozen")
	for { // renewed as the coordinator does, so that only the death ends it
		if err := p.Renew(ctx, false, time.Now().Add(freezeFor)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAKilledDaemonsFreezeEnds kills a process with SIGKILL while it holds the source's writes: they run by themselves when the last
// deadline passes, not earlier and not much later, and the next process goes on.
func TestAKilledDaemonsFreezeEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{}, redistest.Options{})
	r.a.do("SET", "k", "1")
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDaemonToBeKilled$")
	cmd.Env = append(os.Environ(), "REPLICATOR_TEST_DAEMON="+r.source.URL()+" "+r.target.URL())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "frozen\n" {
		t.Fatalf("the daemon said %q, %v", line, err)
	}
	written := make(chan error, 1)
	go func() { _, err := r.a.try("SET", "held", "1"); written <- err }()
	watcher := dialServer(t, r.source)
	eventually(t, "the write is held", func() bool { return strings.Contains(watcher.do("INFO", "clients").str, "blocked_clients:1") })
	killed := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	took := time.Since(killed)
	t.Logf("writes ran again %v after the kill; the deadline was %v", took.Round(time.Millisecond), freezeFor)
	if took < freezeFor/2 || took > freezeFor+time.Second {
		t.Errorf("writes ran again %v after the kill, the deadline was %v", took, freezeFor)
	}
	r.o.Epoch = 2
	r.run(false)
	r.caughtUp()
	r.equal()
}
