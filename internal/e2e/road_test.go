package e2e

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"replicator/internal/demo"
	"replicator/internal/pgtest"
)

// TestWholeRoad goes the operator's way by the commands alone, under load: check, run, wait, verify, a dry run, a cutover, a
// rollback, finish. Afterwards the source's schema is what it was, and nothing named replicator is left on either side.
func TestWholeRoad(t *testing.T) { everyCapture(t, wholeRoad) }

func wholeRoad(t *testing.T, o demo.ServersOptions) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	w := newWorld(t, o, 1)
	schemaBefore := pgtest.DumpSchema(t, w.servers.SourcePostgres.URL("shop"))

	w.run(ctx, 0, "check", "--config", w.config.Path)
	w.run(ctx, 3, "status")
	w.start()
	w.run(ctx, 0, "wait", "phase=streaming", "--timeout", "90s")
	w.run(ctx, 0, "wait", "caught-up", "--timeout", "60s")
	w.holds(ctx)
	w.staysPaused(ctx)

	var status struct {
		Migration, Phase string
		Postgres, Redis  []map[string]any
		Cutover          struct {
			Phase                  string
			PredictedFreezeSeconds *float64 `json:"predicted_freeze_seconds"`
		}
	}
	if err := json.Unmarshal([]byte(w.run(ctx, 0, "status", "--json")), &status); err != nil {
		t.Fatalf("the status is no document: %v", err)
	}
	if status.Migration != "shop" || status.Phase != "streaming" || len(status.Postgres) != 1 || len(status.Redis) != 1 || status.Cutover.Phase != "idle" {
		t.Errorf("the status says %+v", status)
	}
	w.refusesWrites(ctx, w.servers.Target.PostgresURL)

	w.run(ctx, 0, "cutover", "start", "--dry-run", "--wait")
	if at := w.writers.At().Name; at != "source" {
		t.Fatalf("a dry run moved the application to the %s", at)
	}
	if err := json.Unmarshal([]byte(w.run(ctx, 0, "status", "--json")), &status); err != nil {
		t.Fatal(err)
	} else if p := status.Cutover.PredictedFreezeSeconds; p == nil || *p <= 0 {
		t.Errorf("the dry run predicted no freeze: %+v", status.Cutover)
	}
	w.awaitPairs(ctx, "streaming")

	w.run(ctx, 0, "cutover", "start", "--wait")
	w.keepsWriting(ctx)
	if at := w.writers.At().Name; at != "target" {
		t.Errorf("after the cutover the application writes to the %s", at)
	}
	w.refusesWrites(ctx, w.servers.Source.PostgresURL)
	w.awaitPairs(ctx, "reversed")

	w.run(ctx, 0, "rollback", "--wait")
	w.keepsWriting(ctx)
	w.refusesWrites(ctx, w.servers.Target.PostgresURL)
	w.awaitPairs(ctx, "streaming")

	w.run(ctx, 0, "cutover", "start", "--wait")
	w.keepsWriting(ctx)
	w.rest()
	w.prove(ctx, w.servers.Target)
	w.run(ctx, 0, "verify", "--wait")

	w.run(ctx, 0, "finish", "--yes")
	if after := pgtest.DumpSchema(t, w.servers.SourcePostgres.URL("shop")); after != schemaBefore {
		t.Errorf("the source's schema isn't what it was: %s", firstDifference(schemaBefore, after))
	}
	if after := pgtest.DumpSchema(t, w.servers.TargetPostgres.URL("shop")); strings.Contains(after, "replicator") {
		t.Error("something named replicator is left in the target's schema")
	}
	for _, side := range []string{w.servers.SourcePostgres.URL("shop"), w.servers.TargetPostgres.URL("shop")} {
		var slots, publications int
		err := pgtest.Connect(t, side).QueryRow(ctx, "SELECT (SELECT count(*) FROM pg_replication_slots), (SELECT count(*) FROM pg_publication)").Scan(&slots, &publications)
		if err != nil || slots+publications > 0 {
			t.Errorf("after finish there are %d slots and %d publications: %v", slots, publications, err)
		}
	}
}

// run runs a client command, demands its exit status and returns its output.
func (w *world) run(ctx context.Context, want int, args ...string) string {
	w.t.Helper()
	out, status := w.command(ctx, args...)
	if status != want {
		w.t.Fatalf("replicator %s ended with status %d, want %d", strings.Join(args, " "), status, want)
	}
	return out
}

// staysPaused demands that a pause outlives the process that was asked for it, and ends with resume.
func (w *world) staysPaused(ctx context.Context) {
	w.t.Helper()
	w.run(ctx, 0, "pause")
	if err := w.daemon.Kill(); err != nil {
		w.t.Fatal(err)
	}
	w.start()
	w.await(ctx, "every pair is stopped", func(s demo.Status) bool { return pairsIn(s, "stopped") })
	w.run(ctx, 3, "wait", "caught-up", "--timeout", "1s")
	w.run(ctx, 0, "resume")
	w.awaitPairs(ctx, "streaming")
	w.run(ctx, 0, "wait", "caught-up", "--timeout", "60s")
}

// refusesWrites demands that a side's gate is shut for the application.
func (w *world) refusesWrites(ctx context.Context, url string) {
	w.t.Helper()
	for _, statement := range []string{
		"UPDATE accounts SET balance = balance WHERE id = 1",
		"INSERT INTO ledger_totals VALUES (9999, 0)",
		"DELETE FROM events WHERE id = 1",
		"TRUNCATE ledger_totals",
	} {
		_, err := pgtest.Connect(w.t, url).Exec(ctx, statement)
		if err == nil || !strings.Contains(err.Error(), "25006") {
			w.t.Errorf("%s: %v, want SQLSTATE 25006", statement, err)
		}
	}
}

// keepsWriting waits until the application has had writes acknowledged in both stores after now.
func (w *world) keepsWriting(ctx context.Context) {
	w.t.Helper()
	before := w.ledger.Totals()
	for {
		now := w.ledger.Totals()
		if now["postgres"].Acknowledged > before["postgres"].Acknowledged+20 && now["redis"].Acknowledged > before["redis"].Acknowledged+20 {
			return
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("the application can't write: %+v, then %+v", before, now)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return x[i] + "\nbecame\n" + y[i]
		}
	}
	if len(x) < len(y) {
		return "added: " + strings.Join(y[len(x):], "\n")
	}
	return "gone: " + strings.Join(x[len(y):], "\n")
}
