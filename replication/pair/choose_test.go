package pair

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication"
	"replicator/replication/probe"
	"replicator/replication/schema"
	"replicator/replication/trigger"
)

// probed is what `check` says of a code on a side.
func probed(f *fixture, o probe.Options, side, code string) (found preflight.Finding) {
	f.t.Helper()
	o.Pair, o.SourceURL, o.TargetURL, o.Copy = "main", f.source, f.target, "full"
	o.Catalog, o.ID = schema.Catalog{PgDump: pgtest.PgDump(15)}, postgres.Identity{Migration: f.migration, Pair: "main"}
	o.Triggers = func(ctx context.Context, conn *pgx.Conn, tables []replication.Table) ([]preflight.Finding, error) {
		return trigger.Check(ctx, conn, tables)
	}
	all := probe.Run(f.ctx(), o)
	for _, x := range all {
		if x.Side == side && x.Code == code {
			found = x
		}
	}
	if found.Code == "" {
		f.t.Fatalf("no finding %s/%s among %+v", side, code, all)
	}
	return found
}

// chosen is what a pair that begins chooses.
func chosen(f *fixture, reverse bool) (capture, reason string) {
	f.t.Helper()
	lead := f.lead(f.ctx())
	defer lead.Release(context.Background())
	p := f.pair
	defer p.disconnect()
	if err := p.connect(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	if err := p.open(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	if err := p.choose(f.ctx(), reverse); err != nil {
		f.t.Fatal(err)
	}
	settings, err := p.stored.Settings(f.ctx())
	if err != nil {
		f.t.Fatal(err)
	}
	origin, _ := p.ends(reverse)
	return settings[settingCapture+origin.name], settings[settingReason+origin.name]
}

// `check` and a pair that begins choose alike, and give the same reason, whatever stands against logical capture.
func TestCheckAndStartChooseAlike(t *testing.T) {
	few := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"max_replication_slots": "1", "max_wal_senders": "1"}})
	replica := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_level": "replica"}})
	for _, c := range []struct {
		name, capture, reason string
		source                func(t *testing.T) string
	}{
		{"nothing", Logical, "the source grants logical replication", func(t *testing.T) string { s := pgtest.Shared(t); return s.LogicalOwner(t, s.Database(t)) }},
		{"role", Trigger, "no logical replication: the role has no REPLICATION attribute", func(t *testing.T) string { s := pgtest.Shared(t); return s.HerokuOwner(t, s.Database(t)) }},
		{"level", Trigger, "no logical replication: wal_level is replica", func(t *testing.T) string { return replica.LogicalOwner(t, replica.Database(t)) }},
		{"room", Logical, "the source grants logical replication", func(t *testing.T) string { return few.LogicalOwner(t, few.Database(t)) }},
		{"slots", Trigger, "no logical replication: all 1 replication slots are taken", func(t *testing.T) string {
			other := few.Database(t)
			pgtest.Exec(t, other, "SELECT pg_create_logical_replication_slot('somebodys', 'pgoutput')")
			t.Cleanup(func() { pgtest.Exec(t, other, "SELECT pg_drop_replication_slot('somebodys')") })
			return few.LogicalOwner(t, few.Database(t))
		}},
		{"senders", Trigger, "no logical replication: all 1 walsenders are in use", func(t *testing.T) string {
			db := few.Database(t)
			conn, err := postgres.ConnectReplication(t.Context(), db, postgres.Identity{Migration: "other", Pair: "other"}, "stream")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close(context.Background()) })
			return few.LogicalOwner(t, db)
		}},
		{"both", Trigger, "no logical replication: the role has no REPLICATION attribute; wal_level is replica", func(t *testing.T) string { return replica.HerokuOwner(t, replica.Database(t)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := pgtest.Shared(t)
			f := &fixture{t: t, target: s.RDSMaster(t, s.Database(t)), migration: newMigration(), capture: "auto", source: c.source(t)}
			pgtest.Exec(t, f.source, smallSchema)
			found := probed(f, probe.Options{Capture: "auto"}, "source", "capture")
			if found.Severity != preflight.Info || !strings.HasSuffix(found.Message, ", because: "+c.reason) {
				t.Errorf("check says %v %q, want the reason %q where it is seen", found.Severity, found.Message, c.reason)
			}
			if by := map[string]string{Logical: "logical decoding", Trigger: "triggers"}[c.capture]; !strings.Contains(found.Message, "captured by "+by) {
				t.Errorf("check says %q, want %s", found.Message, c.capture)
			}
			if capture, reason := chosen(f, false); capture != c.capture || reason != c.reason {
				t.Errorf("the pair takes %q, %q; want %q, %q", capture, reason, c.capture, c.reason)
			}
			// A pair that begins with triggers for want of a slot stays with them, and check says so once it has.
			again := probed(f, probe.Options{Capture: "auto", Resuming: true, Chosen: Trigger, ChosenReason: "some reason"}, "source", "capture")
			if !strings.HasSuffix(again.Message, "triggers that keep a change log, because: some reason") {
				t.Errorf("of a pair that has begun check says %q", again.Message)
			}
		})
	}
}

// The right to publish is the database's and the tables': a role that may replicate and lacks it is told, and auto doesn't take what would fail.
func TestPublicationRights(t *testing.T) {
	s := pgtest.Shared(t)
	db := s.Database(t)
	f := &fixture{t: t, source: s.LogicalOwner(t, db), target: s.RDSMaster(t, s.Database(t)), migration: newMigration(), capture: "auto"}
	pgtest.Exec(t, f.source, smallSchema)
	pgtest.Exec(t, db, "ALTER TABLE public.t OWNER TO postgres; GRANT SELECT ON public.t TO PUBLIC")
	const reason = "the role may not publish tables that it doesn't own: public.t"
	if found := probed(f, probe.Options{Capture: "auto"}, "source", "publication-privilege"); found.Severity != preflight.Error || found.Message != reason {
		t.Errorf("check says %+v", found)
	}
	if capture, why := chosen(f, false); capture != Trigger || why != "no logical replication: "+reason {
		t.Errorf("the pair takes %q, %q", capture, why)
	}
	if found := probed(f, probe.Options{Capture: "logical"}, "source", "capture"); found.Severity != preflight.Error {
		t.Errorf("of logical capture, configured, check says %+v", found)
	}
	pgtest.Exec(t, f.source, "REVOKE CREATE ON DATABASE "+databaseOf(t, f.source)+" FROM "+ask[string](f, f.source, "SELECT quote_ident(current_user)"))
	if found := probed(f, probe.Options{Capture: "auto"}, "source", "publication-privilege"); found.Message != "the role may not create publications in the database" {
		t.Errorf("check says %+v", found)
	}
}

func databaseOf(t *testing.T, url string) string {
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return pgx.Identifier{c.Database}.Sanitize()
}

// What check says of the way back is what a pair does when it makes it.
func TestCheckAndReverseChooseAlike(t *testing.T) {
	s := pgtest.Shared(t)
	for _, c := range []struct {
		name, capture, reason string
		severity              preflight.Severity
		target                func(db string) string
	}{
		{"rds", Trigger, "no logical replication: the role has no REPLICATION attribute", preflight.Info, func(db string) string { return s.RDSMaster(t, db) }},
		{"logical", Logical, "the target grants logical replication", preflight.OK, func(db string) string { return s.LogicalOwner(t, db) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fixture{t: t, source: s.HerokuOwner(t, s.Database(t)), target: c.target(s.Database(t)), migration: newMigration(), capture: "auto"}
			pgtest.Exec(t, f.source, smallSchema)
			found := probed(f, probe.Options{Capture: "auto"}, "target", "rollback-capture")
			if found.Severity != c.severity || !strings.HasPrefix(found.Message, "rollback is possible") || !strings.HasSuffix(found.Message, "because: "+c.reason) {
				t.Errorf("check says %v %q", found.Severity, found.Message)
			}
			if capture, reason := chosen(f, true); capture != c.capture || reason != c.reason {
				t.Errorf("the pair takes %q, %q; want %q, %q", capture, reason, c.capture, c.reason)
			}
		})
	}
}

// lines gathers a log.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.all.String(), text)
}

// A pair that is left to choose tells in status and log what it took and why, and a later process tells the same.
func TestAutoOnHeroku(t *testing.T) {
	s := pgtest.Shared(t)
	log := &lines{}
	f := &fixture{t: t, source: s.HerokuOwner(t, s.Database(t)), target: s.RDSMaster(t, s.Database(t)), migration: newMigration(), capture: "auto", watch: time.Second, log: slog.New(slog.NewTextHandler(log, nil))}
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	const reason = "no logical replication: the role has no REPLICATION attribute"
	said := func() {
		t.Helper()
		if s := f.pair.Status(); s.Capture != Trigger || s.CaptureReason != reason {
			t.Errorf("status says %q, %q", s.Capture, s.CaptureReason)
		}
	}
	said()
	if n := log.count(`capture=trigger reason="` + reason); n != 1 {
		t.Errorf("the log says %d times why", n)
	}
	f.stop()
	f.start(false)
	f.streaming()
	said()
}
