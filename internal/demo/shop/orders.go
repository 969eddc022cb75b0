package shop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"replicator/internal/demo/ledger"
)

// transaction is one kind of Postgres write. make fixes all its parameters, so that every attempt is the same logical write.
type transaction struct {
	kind   string
	weight int
	make   func(r *rand.Rand, size Size) func(*pgx.Batch)
}

var transactions = []transaction{
	{"order", 400, placeOrder},
	{"pay", 150, pay},
	{"cancel", 120, cancel},
	{"restock", 100, restock},
	{"profile", 100, changeProfile},
	{"purge-orders", 50, purgeOrders},
	{"purge-events", 40, purgeEvents},
	{"renumber", 30, renumber},
	{"import", 4, importEvents},
}

func pick(r *rand.Rand) transaction {
	total := 0
	for _, t := range transactions {
		total += t.weight
	}
	n := r.IntN(total)
	for _, t := range transactions {
		if n -= t.weight; n < 0 {
			return t
		}
	}
	return transactions[0]
}

const (
	insertOrder = `
INSERT INTO orders (id, user_id, total, note)
SELECT $1, $2, sum(p.price * l.quantity), $5
FROM unnest($3::int[], $4::int[]) l(product, quantity) JOIN products p ON p.id = l.product`
	insertLines = `
INSERT INTO order_lines (order_id, line, product_id, quantity, unit_price)
SELECT $1, l.line, p.id, l.quantity, p.price
FROM unnest($2::int[], $3::int[]) WITH ORDINALITY l(product, quantity, line) JOIN products p ON p.id = l.product`
	takeStock = `UPDATE products SET stock = stock - $2 WHERE id = $1`
	payOrder  = `
WITH o AS (
    UPDATE orders SET status = 'paid' WHERE id = $1 AND status = 'placed' RETURNING id, total
), p AS (
    INSERT INTO payments (order_id, amount, debit, credit, method) SELECT id, total, $2, $3, $4 FROM o RETURNING amount
)
UPDATE accounts a SET balance = balance + CASE WHEN a.id = $2 THEN -p.amount ELSE p.amount END
FROM p WHERE a.id IN ($2, $3)`
	payOldest = `
WITH open AS (
    SELECT id FROM orders WHERE status = 'placed' ORDER BY placed_at LIMIT 1 FOR UPDATE SKIP LOCKED
), o AS (
    UPDATE orders SET status = 'paid' FROM open WHERE orders.id = open.id RETURNING orders.id, total
), p AS (
    INSERT INTO payments (order_id, amount, debit, credit, method) SELECT id, total, $1, $2, $3 FROM o RETURNING amount
)
UPDATE accounts a SET balance = balance + CASE WHEN a.id = $1 THEN -p.amount ELSE p.amount END
FROM p WHERE a.id IN ($1, $2)`
	cancelNewest = `
WITH open AS (
    SELECT id FROM orders WHERE status = 'placed' ORDER BY placed_at DESC LIMIT 1 FOR UPDATE SKIP LOCKED
), o AS (
    UPDATE orders SET status = 'cancelled' FROM open WHERE orders.id = open.id RETURNING orders.id
), l AS (
    SELECT product_id, sum(quantity) AS quantity FROM order_lines JOIN o ON o.id = order_id GROUP BY product_id
)
UPDATE products SET stock = stock + l.quantity FROM l WHERE id = l.product_id`
	purgeCancelled = `
DELETE FROM orders WHERE id = (
    SELECT id FROM orders WHERE status = 'cancelled' ORDER BY placed_at LIMIT 1 FOR UPDATE SKIP LOCKED)`
	purgeOldest = `DELETE FROM events WHERE id IN (SELECT id FROM events WHERE write_id IS NULL ORDER BY id LIMIT 8)`
	// The first line of an order becomes its last: the primary key changes.
	moveLine = `
UPDATE order_lines SET line = (SELECT max(line) + 1 FROM order_lines m WHERE m.order_id = order_lines.order_id)
WHERE (order_id, line) = (
    SELECT l.order_id, min(l.line) FROM order_lines l
    WHERE l.order_id = (SELECT id FROM orders WHERE status = $1 ORDER BY placed_at DESC LIMIT 1 FOR UPDATE SKIP LOCKED)
    GROUP BY l.order_id)`
	bulkEvents = `
INSERT INTO events (user_id, kind, body)
SELECT 1 + (n % $2), 'import', jsonb_build_object('n', n, 'text', repeat('x', n)) FROM generate_series(1, $1) n`
)

func placeOrder(r *rand.Rand, size Size) func(*pgx.Batch) {
	var id [16]byte
	for i := range id {
		id[i] = byte(rand.Uint32()) // not r: writers that start again with the same seed need other orders
	}
	user := 1 + r.IntN(size.Users)
	var products, quantities []int32
	for range 1 + r.IntN(4) {
		p := 1 + r.Int32N(int32(size.Products))
		if r.IntN(4) == 0 {
			p = 1 + r.Int32N(min(10, int32(size.Products))) // the hot ones
		}
		if !slices.Contains(products, p) {
			products = append(products, p)
		}
	}
	slices.Sort(products) // everyone locks in this order
	for range products {
		quantities = append(quantities, 1+r.Int32N(3))
	}
	var note *string
	if r.IntN(3) == 0 {
		s := "please ring"
		note = &s
	}
	paid, tried := r.IntN(10) < 6, r.IntN(10) == 0
	debit, credit := account(r)
	return func(b *pgx.Batch) {
		b.Queue(insertOrder, id, user, products, quantities, note)
		if tried { // a part that is taken back
			b.Queue("SAVEPOINT attempt")
			b.Queue(insertLines, id, []int32{1}, []int32{99})
			b.Queue("ROLLBACK TO SAVEPOINT attempt")
		}
		b.Queue(insertLines, id, products, quantities)
		for i, p := range products {
			b.Queue(takeStock, p, quantities[i])
		}
		if paid {
			b.Queue(payOrder, id, debit, credit, "card")
		}
	}
}

func account(r *rand.Rand) (debit, credit int32) {
	return 1 + r.Int32N(customerAccounts), firstTill + r.Int32N(tills)
}

func pay(r *rand.Rand, _ Size) func(*pgx.Batch) {
	debit, credit := account(r)
	return func(b *pgx.Batch) { b.Queue(payOldest, debit, credit, "transfer") }
}

func cancel(*rand.Rand, Size) func(*pgx.Batch) {
	return func(b *pgx.Batch) { b.Queue(cancelNewest) }
}

func restock(r *rand.Rand, size Size) func(*pgx.Batch) {
	product, quantity := 1+r.IntN(min(10, size.Products)), 1+r.IntN(50)
	return func(b *pgx.Batch) {
		b.Queue("UPDATE products SET stock = stock + $2, received = received + $2 WHERE id = $1", product, quantity)
	}
}

func changeProfile(r *rand.Rand, size Size) func(*pgx.Batch) {
	user, n, mail := 1+r.IntN(size.Users), r.IntN(1000), r.IntN(3) == 0
	return func(b *pgx.Batch) {
		if mail {
			b.Queue("UPDATE users SET email = format('user%s+%s@example.com', id, $2::int) WHERE id = $1", user, n)
			return
		}
		b.Queue(`UPDATE users SET tags = tags[1:2] || $2::text, preferences = preferences || jsonb_build_object('seen', $3::int) WHERE id = $1`,
			user, words[n%len(words)], n)
	}
}

func purgeOrders(*rand.Rand, Size) func(*pgx.Batch) {
	return func(b *pgx.Batch) { b.Queue(purgeCancelled) }
}

func purgeEvents(*rand.Rand, Size) func(*pgx.Batch) {
	return func(b *pgx.Batch) { b.Queue(purgeOldest) }
}

func renumber(r *rand.Rand, _ Size) func(*pgx.Batch) {
	status := []string{"placed", "paid"}[r.IntN(2)]
	return func(b *pgx.Batch) { b.Queue(moveLine, status) }
}

func importEvents(r *rand.Rand, size Size) func(*pgx.Batch) {
	rows := 100 + r.IntN(400)
	return func(b *pgx.Batch) { b.Queue(bulkEvents, rows, size.Users) }
}

const (
	signEntry = `INSERT INTO ledger_entries (write_id, worker, sequence, kind, payload) VALUES ($1, $2, $3, $4, jsonb_build_object('kind', $4::text))`
	signEvent = `INSERT INTO events (kind, body, write_id) VALUES ($1, jsonb_build_object('write', $2::text), $2)`
	signTotal = `INSERT INTO ledger_totals (worker, writes) VALUES ($1, 1) ON CONFLICT (worker) DO UPDATE SET writes = ledger_totals.writes + 1`
)

// transact runs one attempt of a write in one transaction. nil means committed, now or by an earlier attempt.
func (c *clients) transact(ctx context.Context, w *ledger.Write, kind string, body func(*pgx.Batch)) error {
	tx, err := c.pool.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	var b pgx.Batch
	b.Queue(signEntry, w.ID, w.Worker.Number, w.Sequence, kind)
	body(&b)
	b.Queue(signEvent, kind, w.ID)
	b.Queue(signTotal, w.Worker.Number)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		_ = tx.Rollback(ctx) // the first error says more
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == "ledger_entries_pkey" {
			return nil
		}
		return fmt.Errorf("%s: %w", kind, err)
	}
	if err := commitOutcome(tx.Commit(ctx)); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
