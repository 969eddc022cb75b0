package pair

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication/state"
)

// captureOnly takes a pair to where its tables are captured and none is copied; then its process dies.
func (f *fixture) captureOnly() {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p, die := f.byHand(ctx)
	defer die()
	stored, err := p.stored.Load(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, s := range []struct {
		next state.Step
		do   func(context.Context, *state.Pair) error
	}{{state.StepDumped, p.dump}, {state.StepTables, p.makeTables}, {state.StepCapture, p.startCapture}} {
		if err := s.do(ctx, &stored); err != nil {
			f.t.Fatal(err)
		}
		stored.Step = s.next
		if err := p.stored.Save(ctx, stored); err != nil {
			f.t.Fatal(err)
		}
	}
}

// A source that fails over to a standby which lagged behind, while its tables are being copied, may have lost commits that a copy has seen, and
// gives their transaction ids and places in the log to others. Those copies are made again, and nothing differs.
func TestCopiesOfLostCommitsAreMadeAgain(t *testing.T) {
	for _, capture := range []string{Logical, Trigger} {
		t.Run(capture, func(t *testing.T) {
			t.Parallel()
			s, there := pgtest.Start(t, pgtest.Options{}), pgtest.Shared(t)
			f := &fixture{t: t, source: s.Database(t), target: there.Database(t), migration: newMigration(), capture: capture}
			if capture == Trigger {
				f.source, f.target = s.HerokuOwner(t, f.source), there.RDSMaster(t, f.target)
			} else {
				f.source, f.target = s.LogicalOwner(t, f.source), there.LogicalOwner(t, f.target)
			}
			pgtest.Exec(t, f.source, smallSchema)
			saved := t.TempDir() + "/data"
			move := func(from, to string) {
				t.Helper()
				if err := s.Stop(f.ctx()); err != nil {
					t.Fatal(err)
				}
				if err := os.RemoveAll(to); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if err := s.Start(f.ctx()); err != nil {
					t.Fatal(err)
				}
			}
			f.captureOnly()
			move(s.DataDir(), saved)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			for range 20 {
				pgtest.Exec(t, f.source, "INSERT INTO t SELECT max(id) + 1, 'lost' FROM t")
			}
			p, die := f.byHand(ctx)
			stored, err := p.stored.Load(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.copyAndIndex(ctx, &stored); err != nil {
				t.Fatal(err)
			}
			stored.Step = state.StepIndexed
			if err := p.stored.Save(ctx, stored); err != nil {
				t.Fatal(err)
			}
			die()
			move(saved, s.DataDir())
			for range 10 {
				pgtest.Exec(t, f.source, "UPDATE other SET v = v || '+' WHERE id < 5; DELETE FROM t WHERE id = (SELECT min(id) FROM t)")
			}
			f.start(false)
			f.streaming()
			f.caughtUp()
			f.equal()
			if n := ask[int](f, f.target, "SELECT count(*) FROM replicator.copy WHERE witness <> ''") + ask[int](f, f.source, "SELECT count(*) FROM replicator.witness WHERE beat = 0"); n != 0 {
				t.Errorf("%d witnesses are kept though every seam has been passed", n)
			}
		})
	}
}
