package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/demo"
	"replicator/internal/pgtest"
)

// TestRealData moves the Chinook database, beside the shop, while both are written to.
func TestRealData(t *testing.T) { everyCapture(t, realData) }

func realData(t *testing.T, o demo.ServersOptions) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	w := newWorld(t, o, 2)
	pgtest.LoadChinook(t, w.servers.Source.PostgresURL)
	writing, stop := context.WithCancel(ctx)
	music := make(chan error, 1)
	go func() { music <- w.writeChinook(writing) }()

	w.start()
	w.awaitPairs(ctx, "streaming")
	w.keepsWriting(ctx)
	w.run(ctx, 0, "cutover", "start", "--wait")
	w.keepsWriting(ctx)
	stop()
	if err := <-music; err != nil {
		t.Fatal(err)
	}
	w.rest()
	w.prove(ctx, w.servers.Target)
	var sold int
	if err := pgtest.Connect(t, w.servers.Target.PostgresURL).QueryRow(ctx, "SELECT count(*) FROM invoice WHERE invoice_id > 1000000").Scan(&sold); err != nil || sold == 0 {
		t.Errorf("nothing was written to Chinook: %v", err)
	}
}

// writeChinook changes rows of every kind of Chinook's tables on the side in use until ctx ends.
func (w *world) writeChinook(ctx context.Context) error {
	r := rand.New(rand.NewPCG(2, 2))
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}()
	at := ""
	for n := 1_000_001; ctx.Err() == nil; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(10 * time.Millisecond):
		}
		if side := w.writers.At(); side.Name != at || conn == nil || conn.IsClosed() {
			next, err := pgx.Connect(ctx, side.PostgresURL)
			if err != nil {
				continue
			}
			if conn != nil {
				_ = conn.Close(ctx)
			}
			conn, at = next, side.Name
		}
		track, customer := 1+r.IntN(3503), 1+r.IntN(59)
		statements := [][]any{
			{"UPDATE track SET unit_price = unit_price + 0.01, composer = $2 WHERE track_id = $1", track, "Édith " + strconv.Itoa(n)},
			{"UPDATE customer SET company = $2, support_rep_id = 3 + $1 % 3 WHERE customer_id = $1", customer, "Søn & Ćo"},
			{"INSERT INTO invoice (invoice_id, customer_id, invoice_date, total) VALUES ($1, $2, now(), 1.98)", n, customer},
			{"INSERT INTO invoice_line (invoice_line_id, invoice_id, track_id, unit_price, quantity) VALUES ($1, $1, $2, 0.99, 2)", n, track},
			{"DELETE FROM invoice_line WHERE invoice_id = $1", n - 50},
			{"DELETE FROM invoice WHERE invoice_id = $1", n - 50},
			{"UPDATE playlist_track SET playlist_id = 2 WHERE playlist_id = 1 AND track_id = $1", track}, // a part of the key
		}
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, s := range statements {
				if _, err := tx.Exec(ctx, s[0].(string), s[1:]...); err != nil {
					return err
				}
			}
			return nil
		})
		var state interface{ SQLState() string }
		if errors.As(err, &state) && state.SQLState() != "25006" {
			return fmt.Errorf("write to Chinook: %w", err)
		}
	}
	return nil
}

// TestOldestAndNewestSource moves the shop from the oldest and from the newest Postgres that are supported, each with one of the captures, which
// one follows from the seed; with REPLICATOR_SOAK each with both.
func TestOldestAndNewestSource(t *testing.T) {
	first := int(pgtest.Seed(t) % 2)
	moves := []demo.ServersOptions{
		{Capture: captures[first], SourceVersion: 13, TargetVersion: 15},
		{Capture: captures[1-first], SourceVersion: 18, TargetVersion: 18},
	}
	if soak() {
		moves = append(moves, demo.ServersOptions{Capture: captures[1-first], SourceVersion: 13, TargetVersion: 15}, demo.ServersOptions{Capture: captures[first], SourceVersion: 18, TargetVersion: 18})
	}
	for _, versions := range moves {
		t.Run(fmt.Sprintf("%s/%d_to_%d", versions.Capture, versions.SourceVersion, versions.TargetVersion), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			w := newWorld(t, versions, 3)
			w.run(ctx, 0, "check", "--config", w.config.Path)
			w.start()
			w.awaitPairs(ctx, "streaming")
			w.keepsWriting(ctx)
			w.run(ctx, 0, "cutover", "start", "--wait")
			w.keepsWriting(ctx)
			w.rest()
			w.prove(ctx, w.servers.Target)
		})
	}
}

// maxResident bounds the daemon's memory whatever the size of a transaction.
const maxResident = 300 << 20

// TestLargeTransaction streams one transaction of many rows: five million in the long run of make soak.
func TestLargeTransaction(t *testing.T) { everyCapture(t, largeTransaction) }

func largeTransaction(t *testing.T, o demo.ServersOptions) {
	t.Parallel()
	rows := 300_000
	if soak() {
		rows = 5_000_000
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rows)*150*time.Microsecond+2*time.Minute)
	defer cancel()
	w := newWorld(t, o, 4)
	w.start()
	w.awaitPairs(ctx, "streaming")
	w.keepsWriting(ctx)
	w.rest() // the shop would purge some of the rows that are counted below
	source := pgtest.Connect(t, w.servers.Source.PostgresURL)
	const bulk = `INSERT INTO events (user_id, kind, body) SELECT n % 2000, 'bulk', jsonb_build_object('n', n, 'text', md5(n::text)) FROM generate_series(1, $1::int) n`
	if _, err := source.Exec(ctx, bulk, rows); err != nil {
		t.Fatal(err)
	}
	w.run(ctx, 0, "wait", "caught-up", "--timeout", "30m")
	var arrived int
	if err := pgtest.Connect(t, w.servers.Target.PostgresURL).QueryRow(ctx, "SELECT count(*) FROM events WHERE kind = 'bulk'").Scan(&arrived); err != nil || arrived != rows {
		t.Errorf("%d of %d rows arrived: %v", arrived, rows, err)
	}
	resident := peakResident(t, w.daemon.Pid())
	t.Logf("the daemon's largest resident size was %d MB", resident>>20)
	if resident > maxResident {
		t.Errorf("that is more than %d MB", maxResident>>20)
	}
	w.prove(ctx, w.servers.Source)
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakResident returns the largest resident size that a process has had, in bytes (proc(5)).
func peakResident(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := highWater.FindSubmatch(text)
	if found == nil {
		t.Fatalf("no VmHWM in\n%s", text)
	}
	kilobytes, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kilobytes << 10
}
