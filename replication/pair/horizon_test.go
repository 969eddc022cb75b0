package pair

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"replicator/internal/pgtest"
	"replicator/internal/preflight"
)

// Who keeps the change log from being emptied can be measured; a slot has its own figure, what it retains.
func TestHorizonIsMeasured(t *testing.T) { everyCapture(t, horizonIsMeasured) }

func horizonIsMeasured(t *testing.T, f *fixture) {
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	commit := f.openTransaction()
	began := time.Now()
	f.until("sight of the open transaction", 20*time.Second, func(s Status) bool {
		if f.capture == Logical {
			return time.Since(began) > 2*time.Second
		}
		h := f.pair.reading().HorizonSeconds
		return h != nil && *h > 1
	})
	if h := f.pair.reading().HorizonSeconds; f.capture == Logical && h != nil {
		t.Errorf("logical capture has no log to empty, and says %v s", *h)
	}
	if err := commit(); err != nil {
		t.Fatal(err)
	}
	if f.capture == Trigger {
		f.until("an end of it", 20*time.Second, func(Status) bool {
			h := f.pair.reading().HorizonSeconds
			return h != nil && *h < 1
		})
	}
}

// Who holds the log for long is a problem with pid, age and statement, told once in the log, and none of the statement's values is shown.
func TestHorizonIsNamed(t *testing.T) {
	s := pgtest.Shared(t)
	for _, c := range []struct {
		name, shape, hint, end string
		begin                  []string
	}{
		{"writer", "UPDATE t SET v = ? || ? WHERE id = ?", "pg_terminate_backend", "COMMIT", []string{"BEGIN", "UPDATE t SET v = 's3cret' || $a$s3cret$a$ WHERE id = 1"}},
		{"reader of the log", "SELECT ?", "pg_terminate_backend", "COMMIT", []string{"BEGIN", `DO $$ DECLARE x text; BEGIN
			FOR x IN SELECT relname FROM pg_class WHERE relname ~ '^capture_[0-9]+_[01]$' LOOP EXECUTE 'LOCK TABLE replicator.' || x || ' IN ACCESS SHARE MODE'; END LOOP; END $$`, "SELECT 's3cret'"}},
		{"prepared", "prepared transaction 'horizon'", "ROLLBACK PREPARED", "ROLLBACK PREPARED 'horizon'", []string{"BEGIN", "UPDATE t SET v = 's3cret' WHERE id = 1", "PREPARE TRANSACTION 'horizon'"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			log := &lines{}
			f := &fixture{t: t, source: s.HerokuOwner(t, s.Database(t)), target: s.RDSMaster(t, s.Database(t)), migration: newMigration(), capture: Trigger, watch: time.Second,
				log: slog.New(slog.NewTextHandler(log, nil)), horizon: time.Second}
			pgtest.Exec(t, f.source, smallSchema)
			f.start(false)
			f.streaming()
			conn := pgtest.Connect(t, f.source)
			for _, sql := range c.begin {
				if _, err := conn.Exec(f.ctx(), sql); err != nil {
					t.Fatal(err)
				}
			}
			var problem preflight.Finding
			f.until("the problem", 30*time.Second, func(s Status) bool {
				for _, x := range s.Problems {
					if x.Code == "horizon-held" {
						problem = x
						return true
					}
				}
				return false
			})
			if c.name != "prepared" && !strings.Contains(problem.Message, "pid "+ask[string](f, f.source, "SELECT $1::text", conn.PgConn().PID())+" (") {
				t.Errorf("no pid: %s", problem.Message)
			}
			if !strings.Contains(problem.Message, ", open for ") || !strings.Contains(problem.Message, c.shape) || !strings.Contains(problem.Hint, c.hint) {
				t.Errorf("the problem is %q, %q; want %q, %q", problem.Message, problem.Hint, c.shape, c.hint)
			}
			if h := f.pair.reading().HorizonSeconds; h == nil || *h <= 1 {
				t.Errorf("the metric says %v", h)
			}
			f.until("more looks", 30*time.Second, func(Status) bool { h := f.pair.reading().HorizonSeconds; return h != nil && *h > 4 })
			if _, err := conn.Exec(f.ctx(), c.end); err != nil {
				t.Fatal(err)
			}
			f.until("its end", 30*time.Second, func(s Status) bool { return len(s.Problems) == 0 })
			f.stop()
			if begun, ended := log.count("keeps the change log from being emptied"), log.count("the change log can be emptied again"); begun != 1 || ended != 1 {
				t.Errorf("the log tells %d times that it began, %d times that it ended: %s", begun, ended, log.all.String())
			}
			if strings.Contains(problem.Message, "s3cret") || log.count("s3cret") != 0 {
				t.Errorf("a value is shown: %s", problem.Message)
			}
		})
	}
}
