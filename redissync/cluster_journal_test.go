package redissync

import (
	"errors"
	"strings"
	"testing"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/redistest"
)

// TestJournalOnACluster keeps lead and journal on a cluster, through a failover of the primary that has them, and through a rollback's freeze.
func TestJournalOnACluster(t *testing.T) {
	t.Parallel()
	c := threeNodes(t)
	r := newClusterRig(t, nil, c)
	ctx := r.ctx()
	at := slotOf(r.o.stateKey()) * 3 / slotCount
	heir := c.AddReplica(t, c.Primaries[at], redistest.Options{})
	j := NewJournal(r.o)
	epoch, err := j.Lead(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.o.Epoch = epoch
	r.a.do("SET", "k", "v")
	p := r.run(false)
	r.caughtUp()
	save := func(j *Journal, record string) {
		t.Helper()
		if err := j.Save(ctx, []byte(record)); err != nil {
			t.Fatal(err)
		}
		if got, err := NewJournal(r.o).Load(ctx); err != nil || string(got) != record {
			t.Fatalf("loaded %q, %v, want %q", got, err, record)
		}
	}
	save(j, "one")
	upToArm(t, ctx, p, false)
	save(j, "two")
	switchOver(t, ctx, p, false)
	save(j, "three")
	retire(t, ctx, p, false)
	r.caughtUp()
	if err := p.Freeze(ctx, true, time.Now().Add(20*time.Second)); err != nil {
		t.Fatal(err)
	}
	save(j, "held on the target") // every primary of the target holds writes
	if err := p.Thaw(ctx, true); err != nil {
		t.Fatal(err)
	}
	save(j, "thawed")
	if _, err := c.Primaries[at].Do(ctx, "WAIT", "1", "5000"); err != nil {
		t.Fatal(err)
	}
	if err := c.Primaries[at].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitPromotion(ctx, heir); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the journal is found again", func() bool { return j.Save(ctx, []byte("after the failover")) == nil })
	second := NewJournal(r.o)
	if r.target == c.Primaries[at] { // the address that was given is gone
		second.pair.target.endpoint = j.pair.target.endpoint
	}
	if _, err := second.Lead(ctx); err != nil {
		t.Fatal(err)
	}
	if err := j.Save(ctx, []byte("late")); !errors.Is(err, ErrNotLeader) {
		t.Errorf("the deposed one saved: %v", err)
	}
	if got, err := second.Load(ctx); err != nil || string(got) != "after the failover" {
		t.Errorf("the successor loads %q, %v", got, err)
	}
	r.stop()
	if err := second.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	r.lookAgain()
	err = scanAll(ctx, r.b.s, 0, func(keys []string) error {
		for _, k := range keys {
			if strings.HasPrefix(k, ownPrefix) {
				t.Errorf("left behind: %q", k)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestClusterOverTLS goes into a cluster that speaks TLS and asks for a password, as a managed one does.
func TestClusterOverTLS(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t, 3, redistest.Options{TLS: true, Password: "s3cret"})
	r := newClusterRig(t, nil, c)
	fillCluster(r.a)
	if fs := codes(Check(r.ctx(), r.o), preflight.Error); len(fs) > 0 { // errors
		t.Errorf("check: %v", fs)
	}
	p := r.run(false)
	r.caughtUp()
	r.equal()
	upToArm(t, r.ctx(), p, false)
	if err := p.Thaw(r.ctx(), false); err != nil {
		t.Fatal(err)
	}
}
