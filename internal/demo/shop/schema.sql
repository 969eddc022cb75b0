-- The shop's schema: the ordinary features of an application's database, each at least once.

CREATE TYPE order_status AS ENUM ('placed', 'paid', 'cancelled');
CREATE DOMAIN email_address AS text CHECK (VALUE ~ '^[^@[:space:]]+@[^@[:space:]]+$');
CREATE DOMAIN cents AS bigint CHECK (VALUE >= 0);
CREATE SEQUENCE invoice_numbers START 100000 INCREMENT 5;

CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END $$;

CREATE TABLE users (
    id          bigserial PRIMARY KEY,
    email       email_address NOT NULL UNIQUE,
    name        text NOT NULL,
    tags        text[] NOT NULL DEFAULT '{}',
    preferences jsonb NOT NULL DEFAULT '{}',
    birthday    date,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX users_tags ON users USING gin (tags);
CREATE TRIGGER users_touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch();

CREATE TABLE products (
    id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku         varchar(20) NOT NULL UNIQUE,
    name        text NOT NULL,
    description text NOT NULL,
    price       cents NOT NULL,
    stock       integer NOT NULL CHECK (stock >= 0),
    received    bigint NOT NULL,
    dimensions  numeric(8,2)[],
    picture     bytea,
    search      tsvector GENERATED ALWAYS AS (to_tsvector('simple', name || ' ' || description)) STORED,
    updated_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN products.received IS 'all that was ever received: stock plus what lies in orders that were not cancelled';
CREATE INDEX products_search ON products USING gin (search);
CREATE TRIGGER products_touch BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION touch();

CREATE TABLE orders (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    number     bigint NOT NULL UNIQUE DEFAULT nextval('invoice_numbers'),
    user_id    bigint NOT NULL REFERENCES users,
    status     order_status NOT NULL DEFAULT 'placed',
    total      cents NOT NULL,
    note       text,
    placed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX orders_by_status ON orders (status, placed_at);
CREATE INDEX orders_by_user ON orders (user_id);
CREATE TRIGGER orders_touch BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION touch();

CREATE TABLE order_lines (
    order_id   uuid NOT NULL REFERENCES orders ON DELETE CASCADE,
    line       smallint NOT NULL,
    product_id integer NOT NULL REFERENCES products,
    quantity   integer NOT NULL CHECK (quantity > 0),
    unit_price cents NOT NULL,
    amount     bigint GENERATED ALWAYS AS (quantity * unit_price) STORED,
    PRIMARY KEY (order_id, line)
);
CREATE INDEX order_lines_by_product ON order_lines (product_id);

CREATE TABLE order_history (
    id         bigserial PRIMARY KEY,
    order_id   uuid NOT NULL,
    old_status order_status,
    new_status order_status,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION note_order_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO order_history (order_id, old_status, new_status) VALUES (NEW.id, OLD.status, NEW.status);
    RETURN NULL;
END $$;
CREATE TRIGGER orders_history AFTER UPDATE OF status ON orders
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION note_order_status();

-- Double entry: the balances of all accounts sum to zero at every transaction boundary.
CREATE TABLE accounts (
    id         integer PRIMARY KEY,
    name       text NOT NULL,
    balance    bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER accounts_touch BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION touch();

CREATE TABLE payments (
    id          bigserial PRIMARY KEY,
    order_id    uuid NOT NULL,
    amount      bigint NOT NULL,
    debit       integer NOT NULL REFERENCES accounts,
    credit      integer NOT NULL REFERENCES accounts,
    method      text NOT NULL CHECK (method IN ('card', 'transfer', 'voucher')),
    captured_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX payments_by_order ON payments (order_id);

CREATE TABLE events (
    id          bigserial,
    user_id     bigint,
    kind        text NOT NULL,
    body        jsonb NOT NULL,
    write_id    text,
    occurred_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (id)
) PARTITION BY HASH (id);
CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 4, REMAINDER 0);
CREATE TABLE events_1 PARTITION OF events FOR VALUES WITH (MODULUS 4, REMAINDER 1);
CREATE TABLE events_2 PARTITION OF events FOR VALUES WITH (MODULUS 4, REMAINDER 2);
CREATE TABLE events_3 PARTITION OF events FOR VALUES WITH (MODULUS 4, REMAINDER 3);
CREATE INDEX events_by_write ON events (write_id) WHERE write_id IS NOT NULL;

-- The application's ledger inside the database: one row for each write that it has ever committed, one counter for each worker.
CREATE TABLE ledger_entries (
    write_id   text PRIMARY KEY,
    worker     integer NOT NULL,
    sequence   bigint NOT NULL,
    kind       text NOT NULL,
    payload    jsonb NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE ledger_totals (
    worker integer PRIMARY KEY,
    writes bigint NOT NULL
);

CREATE MATERIALIZED VIEW product_sales AS
    SELECT product_id, sum(quantity) AS sold, sum(amount) AS turnover FROM order_lines GROUP BY product_id;
CREATE UNIQUE INDEX product_sales_key ON product_sales (product_id);

CREATE VIEW open_orders AS SELECT o.id, o.number, u.email, o.total FROM orders o JOIN users u ON u.id = o.user_id WHERE o.status = 'placed';
