package pair

import (
	"context"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
	"replicator/replication/trigger"
)

// Two migrations can't share a source's change log: the second is refused, by check and when it starts or ends, and the first loses nothing.
func TestAChangeLogHasOneOwner(t *testing.T) {
	s := pgtest.Shared(t)
	first := &fixture{t: t, source: s.HerokuOwner(t, s.Database(t)), target: s.RDSMaster(t, s.Database(t)), migration: newMigration(), capture: Trigger, watch: time.Second}
	pgtest.Exec(t, first.source, smallSchema)
	first.start(false)
	first.streaming()
	second := &fixture{t: t, source: first.source, target: s.RDSMaster(t, s.Database(t)), migration: newMigration(), capture: Trigger, watch: time.Second}
	second.start(false)
	var problem preflight.Finding
	second.until("refusal", time.Minute, func(s Status) bool {
		for _, x := range s.Problems {
			if x.Code == "capture-owned" {
				problem = x
				return true
			}
		}
		return false
	})
	if !strings.Contains(problem.Message, first.migration+"/main") || !strings.Contains(problem.Hint, "replicator finish") {
		t.Errorf("the problem is %+v", problem)
	}
	pool := second.pair.source.pool
	if f, err := trigger.OwnerFinding(second.ctx(), pool, second.migration+"/main"); err != nil || f == nil || f.Code != "capture-owned" || f.Severity != preflight.Error {
		t.Errorf("check says %+v, %v", f, err)
	}
	if f, err := trigger.OwnerFinding(second.ctx(), pool, first.migration+"/main"); err != nil || f != nil {
		t.Errorf("of the owner check says %+v, %v", f, err)
	}
	if err := second.pair.Finish(second.ctx()); err == nil || !strings.Contains(err.Error(), "belongs to another migration's pair") {
		t.Errorf("finishing the second ends with %v", err)
	}
	second.stop()
	pgtest.Exec(t, first.source, "UPDATE t SET v = 'still captured' WHERE id = 1")
	first.caughtUp()
	first.equal()
	// A later process of the owner's goes on, also with a log of a version that left no mark.
	first.stop()
	pgtest.Exec(t, first.source, "COMMENT ON TABLE replicator.capture IS NULL")
	first.start(false)
	first.streaming()
	first.caughtUp()
	if mark := ask[string](first, first.source, "SELECT coalesce(obj_description('replicator.capture'::regclass), '')"); !strings.HasSuffix(mark, first.migration+"/main") {
		t.Errorf("the mark is %q", mark)
	}
	if err := first.pair.Finish(first.ctx()); err != nil {
		t.Fatal(err)
	}
	second.start(false)
	second.streaming()
	if err := second.pair.Finish(context.Background()); err != nil {
		t.Fatal(err)
	}
}
