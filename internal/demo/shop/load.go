package shop

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

//go:embed schema.sql
var schema string

// Size says how much Load fills in.
type Size struct {
	Users, Products, Orders, Events int
	// Keys is about the number of Redis keys.
	Keys int
	// Seed makes the contents repeatable.
	Seed uint64
}

// Small fits a test: about 4,000 rows and 500 keys.
var Small = Size{Users: 300, Products: 60, Orders: 700, Events: 500, Keys: 500, Seed: 1}

// Medium fits the demo on two cores: about 160,000 rows and 30,000 keys.
var Medium = Size{Users: 10_000, Products: 2_000, Orders: 25_000, Events: 30_000, Keys: 30_000, Seed: 1}

const (
	customerAccounts = 20  // 1 …
	firstTill        = 101 // the shop's own accounts
	tills            = 5
)

// Endpoint is one side: the databases that the application uses together. Either may be empty.
type Endpoint struct {
	Name, PostgresURL, RedisURL string
}

// Load creates the shop on a side whose databases are empty, and fills it. It returns the numbers of rows and keys.
func Load(ctx context.Context, at Endpoint, size Size) (rows, keys int64, err error) {
	if at.PostgresURL != "" {
		if rows, err = loadPostgres(ctx, at.PostgresURL, size); err != nil {
			return 0, 0, fmt.Errorf("load the shop's Postgres: %w", err)
		}
	}
	if at.RedisURL != "" {
		if keys, err = loadRedis(ctx, at.RedisURL, size); err != nil {
			return 0, 0, fmt.Errorf("load the shop's Redis: %w", err)
		}
	}
	return rows, keys, nil
}

func loadPostgres(ctx context.Context, url string, size Size) (rows int64, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	if _, err := conn.Exec(ctx, schema); err != nil {
		return 0, fmt.Errorf("create the schema: %w", err)
	}
	status, err := conn.LoadType(ctx, "order_status")
	if err != nil {
		return 0, err
	}
	conn.TypeMap().RegisterType(status)

	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for _, t := range newContents(size).tables() {
		n, err := tx.CopyFrom(ctx, pgx.Identifier{t.name}, t.columns, pgx.CopyFromSlice(t.rows, t.row))
		if err != nil {
			return 0, fmt.Errorf("fill %s: %w", t.name, err)
		}
		rows += n
	}
	if _, err := tx.Exec(ctx, advanceSequences); err != nil {
		return 0, fmt.Errorf("advance the sequences: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, err
	}
	_, err = conn.Exec(ctx, "REFRESH MATERIALIZED VIEW product_sales; ANALYZE")
	return rows, err
}

// advanceSequences moves the sequences past the loaded rows, which brought their own numbers.
const advanceSequences = `
SELECT setval('users_id_seq', (SELECT max(id) FROM users)),
       setval('products_id_seq', (SELECT max(id) FROM products)),
       setval('payments_id_seq', (SELECT max(id) FROM payments)),
       setval('events_id_seq', (SELECT max(id) FROM events)),
       setval('invoice_numbers', (SELECT max(number) FROM orders))`

type table struct {
	name    string
	columns []string
	rows    int
	row     func(i int) ([]any, error)
}

type order struct {
	id     [16]byte
	user   int64
	status string
	total  int64
	at     time.Time
}

type line struct {
	order    int
	number   int16
	product  int
	quantity int32
	price    int64
}

type payment struct {
	order         int
	amount        int64
	debit, credit int32
}

// contents is a consistent shop, made up in memory.
type contents struct {
	size     Size
	random   *rand.Rand
	start    time.Time
	prices   []int64
	sold     []int64
	orders   []order
	lines    []line
	payments []payment
	balances map[int32]int64
}

func newContents(size Size) *contents {
	c := &contents{
		size: size, random: rand.New(rand.NewPCG(size.Seed, 1)),
		start:    time.Now().AddDate(0, -3, 0).Truncate(time.Second),
		balances: map[int32]int64{}, prices: make([]int64, size.Products), sold: make([]int64, size.Products),
	}
	for i := range c.prices {
		c.prices[i] = 99 + c.random.Int64N(20_000)
	}
	for o := range size.Orders {
		c.order(o)
	}
	return c
}

func (c *contents) order(o int) {
	r := c.random
	next := order{user: 1 + r.Int64N(int64(c.size.Users)), status: "paid", at: c.start.Add(time.Duration(o) * time.Second)}
	for i := range next.id {
		next.id[i] = byte(r.Uint32())
	}
	next.id[6], next.id[8] = next.id[6]&0x0f|0x40, next.id[8]&0x3f|0x80
	switch n := r.IntN(10); {
	case n == 0:
		next.status = "placed"
	case n <= 2:
		next.status = "cancelled"
	}
	for n := range 1 + r.IntN(5) {
		l := line{order: o, number: int16(n + 1), product: r.IntN(c.size.Products), quantity: 1 + r.Int32N(4)}
		l.price = c.prices[l.product]
		next.total += int64(l.quantity) * l.price
		if next.status != "cancelled" {
			c.sold[l.product] += int64(l.quantity)
		}
		c.lines = append(c.lines, l)
	}
	if next.status == "paid" {
		p := payment{order: o, amount: next.total, debit: 1 + r.Int32N(customerAccounts), credit: firstTill + r.Int32N(tills)}
		c.balances[p.debit] -= p.amount
		c.balances[p.credit] += p.amount
		c.payments = append(c.payments, p)
	}
	c.orders = append(c.orders, next)
}

var words = []string{"blue", "small", "wooden", "steel", "kettle", "chair", "lamp", "garden", "kitchen", "ceramic", "bowl", "büro", "naïve", "茶碗"}

func (c *contents) text(n int) string {
	s := ""
	for range n {
		s += " " + words[c.random.IntN(len(words))]
	}
	return s[1:]
}

func (c *contents) tables() []table {
	r := c.random
	return []table{
		{"users", []string{"id", "email", "name", "tags", "preferences", "birthday"}, c.size.Users, func(i int) ([]any, error) {
			var birthday pgtype.Date
			if i%3 > 0 {
				birthday = pgtype.Date{Time: time.Date(1950+i%60, time.Month(1+i%12), 1+i%28, 0, 0, 0, 0, time.UTC), Valid: true}
			}
			preferences := map[string]any{"newsletter": i%2 == 0, "language": []string{"de", "en", "fr"}[i%3], "limits": []int{i, i * 2}}
			return []any{i + 1, fmt.Sprintf("user%d@example.com", i+1), c.text(2), []string{words[i%len(words)], "tag, with \"quotes\""}[:i%3], preferences, birthday}, nil
		}},
		{"products", []string{"id", "sku", "name", "description", "price", "stock", "received", "dimensions", "picture"}, c.size.Products, func(i int) ([]any, error) {
			var picture []byte
			if i%10 == 0 { // large enough to be stored out of line
				picture = make([]byte, 3000+r.IntN(6000))
				for b := range picture {
					picture[b] = byte(r.Uint32())
				}
			}
			stock := int64(100_000)
			dimensions := []pgtype.Numeric{}
			for range i % 4 {
				dimensions = append(dimensions, numeric(r.Int64N(100_000)))
			}
			return []any{i + 1, fmt.Sprintf("SKU-%06d", i+1), c.text(2), c.text(12), c.prices[i], stock, stock + c.sold[i], dimensions, picture}, nil
		}},
		{"orders", []string{"id", "number", "user_id", "status", "total", "note", "placed_at"}, len(c.orders), func(i int) ([]any, error) {
			o := c.orders[i]
			var note *string
			if i%5 == 0 {
				s := c.text(6) + "\n\ttab and \\ backslash"
				note = &s
			}
			return []any{o.id, 5 * (i + 1), o.user, o.status, o.total, note, o.at}, nil
		}},
		{"order_lines", []string{"order_id", "line", "product_id", "quantity", "unit_price"}, len(c.lines), func(i int) ([]any, error) {
			l := c.lines[i]
			return []any{c.orders[l.order].id, l.number, l.product + 1, l.quantity, l.price}, nil
		}},
		{"accounts", []string{"id", "name", "balance"}, customerAccounts + tills, func(i int) ([]any, error) {
			id, name := int32(i+1), "customers"
			if i >= customerAccounts {
				id, name = int32(firstTill+i-customerAccounts), "till"
			}
			return []any{id, name, c.balances[id]}, nil
		}},
		{"payments", []string{"id", "order_id", "amount", "debit", "credit", "method", "captured_at"}, len(c.payments), func(i int) ([]any, error) {
			p := c.payments[i]
			o := c.orders[p.order]
			return []any{i + 1, o.id, p.amount, p.debit, p.credit, []string{"card", "transfer", "voucher"}[i%3], o.at.Add(time.Minute)}, nil
		}},
		{"events", []string{"id", "user_id", "kind", "body", "occurred_at"}, c.size.Events, func(i int) ([]any, error) {
			body := map[string]any{"path": fmt.Sprintf("/products/%d", r.IntN(c.size.Products)+1), "referrer": nil, "ms": r.Float64() * 100, "agent": c.text(8)}
			return []any{i + 1, 1 + r.Int64N(int64(c.size.Users)), "view", body, c.start.Add(time.Duration(i) * time.Second)}, nil
		}},
	}
}

// numeric makes a numeric of two decimals.
func numeric(hundredths int64) pgtype.Numeric {
	var n pgtype.Numeric
	_ = n.Scan(fmt.Sprintf("%d.%02d", hundredths/100, hundredths%100)) // such a number always parses
	return n
}
