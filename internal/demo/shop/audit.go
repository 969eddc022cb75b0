package shop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"replicator/internal/demo/ledger"
)

// Audit compares the ledger with what a side holds, the writers being at rest, and checks the balances. Every fault is counted in
// the report; the error says only that it couldn't look.
func Audit(ctx context.Context, l *ledger.Ledger, at Endpoint) (ledger.Report, error) {
	var r ledger.Report
	if at.PostgresURL != "" {
		part, err := auditPostgres(ctx, l, at.PostgresURL)
		if err != nil {
			return r, fmt.Errorf("audit the %s Postgres: %w", at.Name, err)
		}
		r.Add(part)
	}
	if at.RedisURL != "" {
		part, err := auditRedis(ctx, l, at.RedisURL)
		if err != nil {
			return r, fmt.Errorf("audit the %s Redis: %w", at.Name, err)
		}
		r.Add(part)
	}
	return r, nil
}

func auditPostgres(ctx context.Context, l *ledger.Ledger, url string) (r ledger.Report, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return r, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	entries, err := counts(ctx, tx, "SELECT write_id, count(*) FROM ledger_entries GROUP BY write_id")
	if err != nil {
		return r, err
	}
	r.Add(l.Check(kindOrders, entries))

	// The effects of each write, told apart from its entry: one event, one step of the worker's counter.
	events, err := counts(ctx, tx, "SELECT write_id, count(*) FROM events WHERE write_id IS NOT NULL GROUP BY write_id")
	if err != nil {
		return r, err
	}
	for id := range entries {
		if events[id] == 0 {
			r.Lost++
			r.Note("the event of %s is lost", id)
		}
	}
	for id, n := range events {
		switch {
		case entries[id] == 0:
			r.Phantom++
			r.Note("there is an event of %s but no entry", id)
		case n > 1:
			r.Duplicated += int64(n - 1)
			r.Note("the event of %s is there %d times", id, n)
		}
	}
	totals, err := counts(ctx, tx, `
SELECT coalesce(e.worker, t.worker)::text, coalesce(t.writes, 0) - coalesce(e.writes, 0)
FROM (SELECT worker, count(*) AS writes FROM ledger_entries GROUP BY worker) e FULL JOIN ledger_totals t USING (worker)`)
	if err != nil {
		return r, err
	}
	for worker, surplus := range totals {
		switch {
		case surplus > 0:
			r.Duplicated += int64(surplus)
			r.Note("worker %s counted %d writes too many", worker, surplus)
		case surplus < 0:
			r.Lost += int64(-surplus)
			r.Note("worker %s counted %d writes too few", worker, -surplus)
		}
	}
	broken, err := invariants(ctx, tx)
	for _, b := range broken {
		r.Phantom++
		r.Note("%s", b)
	}
	return r, err
}

func counts(ctx context.Context, tx pgx.Tx, query string) (map[string]int, error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	found := map[string]int{}
	var id string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&id, &n}, func() error {
		found[id] = n
		return nil
	})
	return found, err
}

// balances are statements that each return one line of text for every violation. They hold at every transaction boundary.
var balances = []string{
	`SELECT format('account %s has %s, its payments say %s', a.id, a.balance, p.sum) FROM accounts a
	 LEFT JOIN LATERAL (SELECT coalesce(sum(CASE WHEN credit = a.id THEN amount ELSE -amount END), 0) AS sum
	                    FROM payments WHERE a.id IN (debit, credit)) p ON true
	 WHERE a.balance <> p.sum`,
	`SELECT format('all accounts together have %s', sum(balance)) FROM accounts HAVING sum(balance) <> 0`,
	`SELECT format('order %s has total %s, its lines %s', o.id, o.total, l.sum) FROM orders o
	 LEFT JOIN (SELECT order_id, sum(amount) FROM order_lines GROUP BY order_id) l ON l.order_id = o.id
	 WHERE o.total IS DISTINCT FROM l.sum`,
	`SELECT format('order %s has lines but is gone', order_id) FROM order_lines WHERE order_id NOT IN (SELECT id FROM orders)`,
	`SELECT format('product %s received %s, but %s are accounted for', p.id, p.received, p.stock + coalesce(l.sum, 0)) FROM products p
	 LEFT JOIN (SELECT product_id, sum(quantity) FROM order_lines JOIN orders o ON o.id = order_id WHERE status <> 'cancelled' GROUP BY product_id) l
	 ON l.product_id = p.id
	 WHERE p.received <> p.stock + coalesce(l.sum, 0)`,
	`SELECT format('order %s is %s, its payments number %s', o.id, o.status, count(p.id)) FROM orders o LEFT JOIN payments p ON p.order_id = o.id
	 GROUP BY o.id HAVING count(p.id) <> CASE WHEN o.status = 'paid' THEN 1 ELSE 0 END`,
}

// Invariants returns the violations of the balances that a side's Postgres holds at every transaction boundary, read in one
// snapshot. It may be called while writers run, on either side.
func Invariants(ctx context.Context, url string) (broken []string, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	return invariants(ctx, tx)
}

func invariants(ctx context.Context, tx pgx.Tx) (broken []string, err error) {
	for _, query := range balances {
		rows, err := tx.Query(ctx, query+" LIMIT 10")
		if err != nil {
			return nil, err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, err
		}
		broken = append(broken, lines...)
	}
	return broken, nil
}

func auditRedis(ctx context.Context, l *ledger.Ledger, url string) (r ledger.Report, err error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return r, err
	}
	c := redis.NewClient(options)
	defer func() { err = errors.Join(err, c.Close()) }()

	jobs := map[string]int{}
	lists := []string{"queue:default"}
	done, err := scan(ctx, c, "done:*")
	if err != nil {
		return r, err
	}
	for _, key := range append(lists, done...) {
		items, err := c.LRange(ctx, key, 0, -1).Result()
		if err != nil {
			return r, err
		}
		countJobs(jobs, items)
	}
	scheduled, err := c.ZRange(ctx, "schedule", 0, -1).Result()
	if err != nil {
		return r, err
	}
	countJobs(jobs, scheduled)
	r.Add(l.Check(kindJobs, jobs))

	activity := map[string]int{}
	streams, err := scan(ctx, c, "activity:*")
	if err != nil {
		return r, err
	}
	for _, key := range streams {
		entries, err := c.XRange(ctx, key, "-", "+").Result()
		if err != nil {
			return r, err
		}
		for _, e := range entries {
			id, _ := e.Values["write"].(string)
			activity[id]++
		}
	}
	r.Add(l.Check(kindActivity, activity))

	for _, w := range l.Workers(kindViews) {
		text, err := c.Get(ctx, viewsKey(w.Number)).Result()
		if ignoreNil(err) != nil {
			return r, err
		}
		value, err := strconv.ParseInt("0"+text, 10, 64)
		if err != nil {
			return r, fmt.Errorf("read %s: %w", viewsKey(w.Number), err)
		}
		r.Add(l.CheckCount(w, value))
	}
	return r, nil
}

// countJobs counts jobs by id. The jobs that Load put there have none.
func countJobs(into map[string]int, items []string) {
	for _, item := range items {
		var job struct {
			Class, JID string
		}
		if err := json.Unmarshal([]byte(item), &job); err == nil && job.Class == "ShipOrder" {
			into[job.JID]++
		}
	}
}

// scan returns the keys that match a pattern.
func scan(ctx context.Context, c *redis.Client, pattern string) ([]string, error) {
	seen := map[string]bool{}
	var keys []string
	it := c.Scan(ctx, 0, pattern, 1000).Iterator()
	for it.Next(ctx) {
		if k := it.Val(); !seen[k] {
			seen[k] = true
			keys = append(keys, k)
		}
	}
	return keys, it.Err()
}
