package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication/pair"
	"replicator/replication/state"
)

const orphanSchema = `
CREATE TABLE parent (id int PRIMARY KEY, v text);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, v text);
INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 50) i;
INSERT INTO child SELECT i, i, 'c' FROM generate_series(1, 50) i`

// migration is one that the environment describes, led in this process.
type migration struct {
	*session
	source, target string
	before         string // the source's schema
	stop           func()
}

func newMigration(t *testing.T) *migration {
	s := pgtest.Shared(t)
	m := &migration{session: &session{t: t, out: &buffer{}, err: &buffer{}}}
	m.source, m.target = s.HerokuOwner(t, s.Database(t)), s.RDSMaster(t, s.Database(t))
	m.env = []string{"SOURCE_DATABASE_URL=" + m.source, "TARGET_DATABASE_URL=" + m.target}
	pgtest.Exec(t, m.source, orphanSchema)
	m.before = pgtest.DumpSchema(t, m.source)
	cfg, err := loadConfig("", fakeEnv(m.env...))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	pool, err := postgres.Pool(ctx, m.target, postgres.Identity{Migration: cfg.Migration}, "test", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := state.Ensure(ctx, pool); err != nil {
		t.Fatal(err)
	}
	lead, err := state.TakeLead(ctx, m.target, cfg.Migration, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := pair.New(pair.Options{Migration: cfg.Migration, Name: cfg.Postgres[0].Name, SourceURL: m.source, TargetURL: m.target, Epoch: lead.Epoch, Capture: "auto", PgDump: pgtest.PgDump(15)})
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx, false) }()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		lead.Release(context.Background())
	}
	t.Cleanup(m.stop)
	for deadline := time.Now().Add(time.Minute); p.Status().Phase != pair.Streaming; {
		if time.Now().After(deadline) {
			t.Fatalf("no streaming: %+v", p.Status())
		}
		<-time.After(20 * time.Millisecond)
	}
	return m
}

// ours tells whether anything of ours is on the source.
func (m *migration) ours() bool {
	m.t.Helper()
	return strings.Contains(pgtest.DumpSchema(m.t, m.source), "replicator")
}

// restored wants the source as it was.
func (m *migration) restored() {
	m.t.Helper()
	if after := pgtest.DumpSchema(m.t, m.source); after != m.before {
		m.t.Errorf("the source's schema is not what it was:\n%s", after)
	}
}

func TestUninstall(t *testing.T) {
	m := newMigration(t)
	m.want(m.run("uninstall"), 2, "", "--yes")
	m.want(m.run("uninstall", "--yes"), 1, "", "a daemon leads this migration: use `replicator finish`")
	m.want(m.run("uninstall", "--source-only", "--yes"), 1, "", "a daemon leads this migration: use `replicator finish`")
	if !m.ours() {
		t.Fatal("refused, it has done something all the same")
	}
	m.stop()
	m.want(m.run("uninstall", "--yes"), 0, "", "nothing of replicator is left on either side")
	m.restored()
	if after := pgtest.DumpSchema(t, m.target); strings.Contains(after, "replicator") || !strings.Contains(after, "parent") {
		t.Errorf("the target is left with\n%s", after)
	}
	m.want(m.run("uninstall", "--yes"), 0, "", "nothing of replicator is left on either side")
	m.restored()
}

// A target that is gone for good keeps nobody from cleaning the source, if that is meant; and never beside a daemon.
func TestUninstallWithoutTheTarget(t *testing.T) {
	m := newMigration(t)
	m.stop()
	pgtest.Exec(t, m.source, "ALTER TABLE child DISABLE TRIGGER replicator_capture; ALTER TABLE parent REPLICA IDENTITY FULL")
	gone := strings.Replace(m.target, "/test_", "/no_longer_there_", 1)
	if gone == m.target {
		t.Fatalf("the target's name isn't known: %s", postgres.Redact(m.target))
	}
	m.env[1] = "TARGET_DATABASE_URL=" + gone
	m.want(m.run("uninstall", "--yes"), 1, "", "replicator uninstall --source-only")
	if !m.ours() {
		t.Fatal("refused, it has done something all the same")
	}
	daemon, err := postgres.Connect(t.Context(), m.source, postgres.Identity{Migration: "default", Pair: "x", Epoch: 3}, "control")
	if err != nil {
		t.Fatal(err)
	}
	m.want(m.run("uninstall", "--source-only", "--yes"), 1, "", "a daemon of this migration has 1 sessions on the source: stop the daemon first")
	if !m.ours() {
		t.Fatal("refused, it has done something all the same")
	}
	if err := daemon.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.want(m.run("uninstall", "--source-only", "--yes"), 0, "", "table public.parent has REPLICA IDENTITY FULL")
	if m.ours() {
		t.Error("something of ours is left on the source")
	}
	pgtest.Exec(t, m.source, "ALTER TABLE parent REPLICA IDENTITY DEFAULT; INSERT INTO child VALUES (100, 1, 'x')")
	m.restored()
	m.want(m.run("uninstall", "--source-only", "--yes"), 0, "", "nothing of replicator is left on the sources")
}
