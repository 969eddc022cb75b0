package shop

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"replicator/internal/demo/ledger"
	"replicator/internal/pgtest"
)

// startPostgres loads a small shop into a database of its own.
func startPostgres(t *testing.T) Endpoint {
	t.Helper()
	at := Endpoint{Name: "source", PostgresURL: pgtest.Shared(t).Database(t)}
	if _, _, err := Load(t.Context(), at, Small); err != nil {
		t.Fatal(err)
	}
	return at
}

// run runs writers until n writes of the store are acknowledged in all.
func run(t *testing.T, w *Writers, l *ledger.Ledger, store string, n int64, acknowledged <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	for l.Totals()[store].Acknowledged < n {
		select {
		case <-acknowledged:
		case <-ctx.Done():
			t.Fatalf("only %+v", l.Totals())
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func signalled(o WritersOptions) (WritersOptions, <-chan struct{}) {
	c := make(chan struct{}, 1)
	o.Acknowledged = func(string, string) {
		select {
		case c <- struct{}{}:
		default:
		}
	}
	return o, c
}

func audit(t *testing.T, l *ledger.Ledger, at Endpoint) ledger.Report {
	t.Helper()
	r, err := Audit(t.Context(), l, at)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestWritersKeepTheBooksInPostgres(t *testing.T) {
	at := startPostgres(t)
	if broken, err := Invariants(t.Context(), at.PostgresURL); err != nil || len(broken) > 0 {
		t.Fatalf("the loaded shop is out of balance: %v %v", broken, err)
	}
	l := ledger.New("t1")
	o, acknowledged := signalled(WritersOptions{At: at, Ledger: l, Size: Small, Rate: 1000, Seed: 7, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	w := NewWriters(o)
	run(t, w, l, "postgres", 500, acknowledged)
	run(t, w, l, "postgres", 600, acknowledged) // the writers can rest in between

	totals := l.Totals()["postgres"]
	if totals.Failed > 0 || totals.Attempted != totals.Acknowledged+totals.Abandoned {
		t.Errorf("writes ended badly: %+v", totals)
	}
	if r := audit(t, l, at); !r.Good() || r.Acknowledged != totals.Acknowledged {
		t.Errorf("the audit of an untouched shop says %v", r)
	}

	// Each of these is a fault that a migration could commit; the audit has to see it.
	faults := []struct {
		name, sql string
		seen      func(ledger.Report) bool
	}{
		{"a lost transaction's entry", "DELETE FROM ledger_entries WHERE write_id = (SELECT max(write_id) FROM ledger_entries)", func(r ledger.Report) bool { return r.Lost > 0 }},
		{"a lost event", "DELETE FROM events WHERE id = (SELECT max(id) FROM events WHERE write_id IS NOT NULL)", func(r ledger.Report) bool { return r.Lost == 1 }},
		{"an event applied twice", "INSERT INTO events (kind, body, write_id) SELECT kind, body, write_id FROM events WHERE write_id IS NOT NULL LIMIT 1", func(r ledger.Report) bool { return r.Duplicated == 1 }},
		{"a counter stepped twice", "UPDATE ledger_totals SET writes = writes + 1 WHERE worker = 0", func(r ledger.Report) bool { return r.Duplicated == 1 }},
		{"a counter's lost update", "UPDATE ledger_totals SET writes = writes - 2 WHERE worker = 1", func(r ledger.Report) bool { return r.Lost == 2 }},
		{"a write of nobody's", "INSERT INTO ledger_entries (write_id, worker, sequence, kind, payload) VALUES ('x', 0, 1, 'order', '{}')", func(r ledger.Report) bool { return r.Phantom > 0 }},
		{"half a payment", "UPDATE accounts SET balance = balance + 1 WHERE id = 1", func(r ledger.Report) bool { return r.Phantom > 0 }},
		{"a lost order line", "DELETE FROM order_lines WHERE order_id = (SELECT id FROM orders WHERE status = 'paid' LIMIT 1)", func(r ledger.Report) bool { return r.Phantom > 0 }},
		{"a lost payment", "DELETE FROM payments WHERE id = (SELECT max(id) FROM payments)", func(r ledger.Report) bool { return r.Phantom > 0 }},
	}
	conn := pgtest.Connect(t, at.PostgresURL)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			// The audit reads by its own session, so the fault is committed, and mended from a copy afterwards.
			tables := []string{"ledger_entries", "ledger_totals", "events", "accounts", "order_lines", "payments"}
			var save, mend strings.Builder
			mend.WriteString("SET session_replication_role = replica;")
			for _, table := range tables {
				save.WriteString("CREATE TABLE saved_" + table + " AS TABLE " + table + ";")
				mend.WriteString("DELETE FROM " + table + ";")
				if table == "order_lines" {
					mend.WriteString("INSERT INTO order_lines SELECT order_id, line, product_id, quantity, unit_price FROM saved_order_lines;")
				} else {
					mend.WriteString("INSERT INTO " + table + " TABLE saved_" + table + ";")
				}
				mend.WriteString("DROP TABLE saved_" + table + ";")
			}
			mend.WriteString("RESET session_replication_role")
			for _, sql := range []string{save.String(), f.sql} {
				if _, err := conn.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			if r := audit(t, l, at); !f.seen(r) {
				t.Errorf("the audit missed it: %v", r)
			}
			if _, err := conn.Exec(t.Context(), mend.String()); err != nil {
				t.Fatal(err)
			}
		})
	}
	if r := audit(t, l, at); !r.Good() {
		t.Errorf("after mending the audit still says %v", r)
	}
}

func TestComparePostgres(t *testing.T) {
	a, b := startPostgres(t), startPostgres(t)
	b.Name = "target"
	// Load fixes the seed, but not the times.
	for _, at := range []Endpoint{a, b} {
		pgtest.Exec(t, at.PostgresURL, `SET session_replication_role = replica;
UPDATE users SET created_at = 'epoch', updated_at = 'epoch'; UPDATE products SET updated_at = 'epoch'; UPDATE accounts SET updated_at = 'epoch';
UPDATE orders SET placed_at = 'epoch', updated_at = 'epoch'; UPDATE payments SET captured_at = 'epoch'; UPDATE events SET occurred_at = 'epoch'`)
	}
	if d, err := Compare(t.Context(), a, b); err != nil || len(d) > 0 {
		t.Fatalf("equal shops differ: %v %v", d, err)
	}
	for _, sql := range []string{
		"UPDATE users SET name = name || ' ' WHERE id = 3",
		"DELETE FROM events WHERE id = 17",
		"INSERT INTO ledger_totals VALUES (99, 1)",
		"UPDATE products SET picture = NULL WHERE id = 1",
	} {
		pgtest.Exec(t, b.PostgresURL, "SET session_replication_role = replica; "+sql)
		d, err := Compare(t.Context(), a, b)
		if err != nil || len(d) == 0 {
			t.Errorf("%s went unseen: %v", sql, err)
		}
		pgtest.Exec(t, a.PostgresURL, "SET session_replication_role = replica; "+sql)
		if d, err := Compare(t.Context(), a, b); err != nil || len(d) > 0 {
			t.Errorf("after the same on both sides: %v %v", d, err)
		}
	}
}

func TestWritersRideOutBrokenConnections(t *testing.T) {
	at := startPostgres(t)
	l := ledger.New("t2")
	o, acknowledged := signalled(WritersOptions{At: at, Ledger: l, Size: Small, Rate: 1000, Seed: 8})
	w := NewWriters(o)
	conn := pgtest.Connect(t, at.PostgresURL)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	for killed := int64(1); killed <= 10; killed++ {
		for l.Totals()["postgres"].Acknowledged < killed*50 {
			<-acknowledged
		}
		if _, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'shop' AND datname = current_database()"); err != nil {
			t.Fatal(err)
		}
	}
	for l.Totals()["postgres"].Acknowledged < 600 {
		<-acknowledged
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if totals := l.Totals()["postgres"]; totals.Failed > 0 {
		t.Errorf("writes failed: %+v", totals)
	}
	if r := audit(t, l, at); !r.Good() {
		t.Errorf("after broken connections: %v", r)
	}
}
