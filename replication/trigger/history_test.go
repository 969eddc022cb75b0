package trigger_test

import (
	"os"
	"os/exec"
	"testing"

	"replicator/internal/pgtest"
)

// rewinder puts a server back to where it was, as a failover to a standby that lagged behind does.
type rewinder struct {
	f     *fixture
	saved string
}

func (f *fixture) save() *rewinder {
	f.t.Helper()
	r := &rewinder{f: f, saved: f.t.TempDir() + "/data"}
	f.halt()
	r.copy(f.server.DataDir(), r.saved)
	f.resume()
	return r
}

func (r *rewinder) rewind() {
	r.f.t.Helper()
	r.f.halt()
	if err := os.RemoveAll(r.f.server.DataDir()); err != nil {
		r.f.t.Fatal(err)
	}
	r.copy(r.saved, r.f.server.DataDir())
	r.f.resume()
}

func (r *rewinder) copy(from, to string) {
	r.f.t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		r.f.t.Fatalf("%v: %s", err, out)
	}
}

func (f *fixture) halt() {
	f.t.Helper()
	f.pool.Reset()
	if err := f.server.Stop(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) resume() {
	f.t.Helper()
	if err := f.server.Start(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
}

// A copy that has seen commits which the server then lost counts others as seen that get the same transaction ids. It is named before anything
// is delivered, though the position itself is from before the loss.
func TestACopyOfLostCommitsIsNamed(t *testing.T) {
	f := newFixtureOn(t, pgtest.Start(t, pgtest.Options{}), few)
	f.install()
	f.note()
	r := f.save()
	f.exec(`INSERT INTO parent VALUES (96, 'lost')`)
	f.copy(f.tables)
	r.rewind()
	f.exec(`UPDATE plain SET v = 'under the id that the copy has seen' WHERE id = 1`)
	wantCode(t, f.start(nil).failure(), "commits-lost", "lost commits", "public.parent")
}

// Whoever else counts on the server after the loss doesn't hide it: another pair on the same database counts past what was lost.
func TestOthersDoNotHideALoss(t *testing.T) {
	f := newFixtureOn(t, pgtest.Start(t, pgtest.Options{}), few)
	f.begin()
	r := f.save()
	run := f.start(nil)
	f.exec(`INSERT INTO parent VALUES (97)`)
	run.caughtUp()
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	r.rewind()
	other := f.id
	other.Pair = "other"
	for range 20 {
		f.beginAs(other)
	}
	f.exec(`INSERT INTO parent VALUES (99)`)
	wantCode(t, f.start(nil).failure(), "commits-lost", "lost commits", "resync")
}
