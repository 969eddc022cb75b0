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
	words := strings.Fields(os.Getenv("REPLICATOR_TEST_DAEMON"))
	if len(words) != 3 {
		return
	}
	reverse := words[2] == "reverse"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	o := Options{Migration: "shop", Name: "cache", SourceURL: words[0], TargetURL: words[1], Epoch: 1, Lease: 3 * time.Second}
	j := NewJournal(o)
	var err error
	if o.Epoch, err = j.Lead(ctx); err != nil {
		t.Fatal(err)
	}
	p := New(o)
	go p.Run(ctx, reverse)
	if err := p.CaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(ctx, reverse, time.Now().Add(freezeFor)); err != nil {
		t.Fatal(err)
	}
	if err := j.Save(ctx, []byte("in the freeze")); err != nil {
		t.Fatal(err)
	}
	fmt.Println("frozen")
	for { // renewed as the coordinator does, so that only the death ends it
		if err := p.Renew(ctx, reverse, time.Now().Add(freezeFor)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAKilledDaemonsFreezeEnds kills a process with SIGKILL while it holds the origin's writes, in a cutover and in a rollback: they run by
// themselves when the last deadline passes, not earlier and not much later, and the next process finds the journal and goes on.
func TestAKilledDaemonsFreezeEnds(t *testing.T) {
	t.Parallel()
	for _, reverse := range []bool{false, true} {
		t.Run(direction(reverse), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, redistest.Options{}, redistest.Options{})
			ctx := r.ctx()
			r.a.do("SET", "k", "1")
			origin, at := r.source, r.a
			if reverse {
				origin, at = r.target, r.b
				p := r.run(false)
				r.caughtUp()
				upToArm(t, ctx, p, false)
				switchOver(t, ctx, p, false)
				retire(t, ctx, p, false)
				r.stop()
			}
			killInAFreeze(t, r, origin, at, reverse)
			j := NewJournal(r.o)
			epoch, err := j.Lead(ctx) // once the dead one's lease has run out
			if err != nil {
				t.Fatal(err)
			}
			if record, err := j.Load(ctx); err != nil || string(record) != "in the freeze" {
				t.Errorf("the journal says %q, %v", record, err)
			}
			r.o.Epoch = epoch
			p := r.run(reverse)
			r.a.s.close()
			r.b.s.close()
			if err := p.Thaw(ctx, reverse); err != nil {
				t.Fatal(err)
			}
			r.caughtUp()
			r.equal()
			if !reverse {
				return
			}
			upToArm(t, ctx, p, true) // the rollback can be made after all
			switchOver(t, ctx, p, true)
			retire(t, ctx, p, true)
			r.a.s.close()
			r.b.s.close()
			r.a.do("SET", "after", "the rollback")
			r.caughtUp()
			r.equal()
		})
	}
}

func killInAFreeze(t *testing.T, r *rig, origin *redistest.Server, at *client, reverse bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDaemonToBeKilled$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("REPLICATOR_TEST_DAEMON=%s %s %s", r.source.URL(), r.target.URL(), direction(reverse)))
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
	at.s.close()
	go func() { _, err := at.try("SET", "held", "1"); written <- err }()
	watcher := dialServer(t, origin)
	eventually(t, "the write is held", func() bool { return !strings.Contains(watcher.do("INFO", "clients").str, "blocked_clients:0") })
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
}
