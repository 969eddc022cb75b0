SET check_function_bodies = on;
SET search_path = public;

CREATE SCHEMA app;
CREATE SCHEMA "Odd ""Schema""";
COMMENT ON SCHEMA app IS 'the shop''s own; Type: TABLE; Schema: x; Owner: y';

-- Types of every kind.
CREATE TYPE app.mood AS ENUM ('sad', 'so-so', 'it''s "fine"', 'Grüße');
CREATE TYPE app.address AS (street text, zip character varying(10), country app.mood);
CREATE DOMAIN app.email AS text COLLATE "C" DEFAULT 'nobody@example.com' CONSTRAINT has_at CHECK (VALUE ~ '^[^@]+@[^@]+$');
CREATE DOMAIN app.cents AS bigint NOT NULL DEFAULT 0 CONSTRAINT not_negative CHECK (VALUE >= 0);
CREATE TYPE app.span AS RANGE (subtype = timestamp with time zone);
COMMENT ON TYPE app.mood IS E'first\nsecond\t''line'' \\ backslash';

-- Functions whose bodies look like the headings and psql commands of a dump.
CREATE FUNCTION app.hostile() RETURNS text LANGUAGE sql IMMUTABLE AS $body$
SELECT '
--
-- Name: fake; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.fake (i integer);
\connect elsewhere
SET default_table_access_method = nothing;
'::text;
$body$;
CREATE FUNCTION app.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- Name: not a heading; Type: TRIGGER; Schema: -; Owner: -
  NEW.updated_at := now();
  RETURN NEW;
END $$;
CREATE FUNCTION app.audit() RETURNS trigger LANGUAGE plpgsql AS $fn$
BEGIN
  INSERT INTO app.audit_log (what, body) VALUES (TG_OP || ' ' || TG_TABLE_NAME, $q$it's; "quoted" $x$ $q$);
  RETURN NULL;
END $fn$;
CREATE PROCEDURE app.clear_audit(keep interval DEFAULT '30 days') LANGUAGE plpgsql AS $$ BEGIN DELETE FROM app.audit_log WHERE at < now() - keep; END $$;
CREATE FUNCTION app.initials(name text) RETURNS text LANGUAGE sql IMMUTABLE STRICT AS $$ SELECT upper(left(name, 1)) $$;
CREATE FUNCTION app.longest(state text, next text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT CASE WHEN length(next) > length(coalesce(state, '')) THEN next ELSE state END $$;
CREATE AGGREGATE app.longest(text) (SFUNC = app.longest, STYPE = text);
CREATE FUNCTION app.same_initial(a text, b text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$ SELECT app.initials(a) = app.initials(b) $$;
CREATE OPERATOR app.=~= (LEFTARG = text, RIGHTARG = text, FUNCTION = app.same_initial);
CREATE COLLATION app.german (provider = icu, locale = 'de-x-icu');
CREATE TEXT SEARCH CONFIGURATION app.plain (COPY = pg_catalog.simple);
CREATE CAST (app.address AS text) WITH INOUT;

-- Tables.
CREATE TABLE app.users (
  id bigint GENERATED ALWAYS AS IDENTITY (START WITH 1000 INCREMENT BY 2) PRIMARY KEY,
  email app.email NOT NULL,
  name text COLLATE app.german NOT NULL,
  mood app.mood DEFAULT 'so-so',
  home app.address,
  tags text[] NOT NULL DEFAULT '{}',
  moods app.mood[],
  settings jsonb NOT NULL DEFAULT '{"theme": "dark"}',
  photo bytea,
  balance numeric(12,2) NOT NULL DEFAULT 0,
  ratio double precision DEFAULT 'NaN',
  seen inet,
  born date,
  wakes time with time zone,
  every interval,
  token uuid,
  bits bit varying(9),
  place point,
  initials text GENERATED ALWAYS AS (app.initials(name)) STORED,
  search tsvector,
  created_at timestamp with time zone NOT NULL DEFAULT now(),
  updated_at timestamp without time zone,
  gone integer,
  CONSTRAINT users_email_key UNIQUE (email),
  CONSTRAINT users_balance_check CHECK (balance > -1000)
);
ALTER TABLE app.users ADD CONSTRAINT users_unchecked CHECK (length(name) < 1000) NOT VALID;
ALTER TABLE app.users DROP COLUMN gone;
ALTER TABLE app.users ALTER COLUMN photo SET STORAGE EXTERNAL;
ALTER TABLE app.users ALTER COLUMN email SET STATISTICS 500;
CREATE INDEX users_lower_name ON app.users (lower(name) text_pattern_ops DESC NULLS LAST);
CREATE INDEX users_search ON app.users USING gin (search);
CREATE INDEX users_settings ON app.users USING gin (settings jsonb_path_ops) WITH (fastupdate = off);
CREATE UNIQUE INDEX users_token ON app.users (token) INCLUDE (name) WHERE token IS NOT NULL;
ALTER TABLE app.users CLUSTER ON users_pkey;
CREATE STATISTICS app.users_name_mood (dependencies, ndistinct) ON name, mood FROM app.users;
COMMENT ON COLUMN app.users.email IS 'may hold ; and '' and
a new line, -- and /* too';
CREATE TRIGGER users_touch BEFORE UPDATE ON app.users FOR EACH ROW WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION app.touch();
CREATE TRIGGER users_search BEFORE INSERT OR UPDATE ON app.users FOR EACH ROW EXECUTE FUNCTION tsvector_update_trigger(search, 'pg_catalog.simple', name);
COMMENT ON TRIGGER users_touch ON app.users IS 'keeps updated_at';

CREATE TABLE app.products (
  sku character(8) NOT NULL,
  "Variant" integer NOT NULL DEFAULT 0,
  price app.cents,
  parent character(8),
  parent_variant integer,
  valid tstzrange,
  CONSTRAINT products_pkey PRIMARY KEY (sku, "Variant"),
  CONSTRAINT products_parent FOREIGN KEY (parent, parent_variant) REFERENCES app.products (sku, "Variant") ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE app.bookings (
  room integer NOT NULL,
  during tstzrange NOT NULL,
  CONSTRAINT bookings_no_overlap EXCLUDE USING gist (during WITH &&) WHERE (room > 0)
);
CREATE TABLE app.audit_log (at timestamp with time zone DEFAULT clock_timestamp(), what text, body text);
CREATE TABLE app.deferred (id integer NOT NULL, n integer, CONSTRAINT deferred_pkey PRIMARY KEY (id) DEFERRABLE INITIALLY IMMEDIATE);
CREATE TABLE app.unique_only (code text NOT NULL, other integer);
CREATE UNIQUE INDEX unique_only_code ON app.unique_only (code);
ALTER TABLE app.unique_only REPLICA IDENTITY USING INDEX unique_only_code;
CREATE TABLE app.no_columns ();
CREATE UNLOGGED TABLE app.scratch (id serial PRIMARY KEY, note text);

-- Partitions: list over range, with keys, an index, a trigger and foreign keys from and to them.
CREATE TABLE app.orders (
  id bigint NOT NULL,
  region text NOT NULL,
  placed date NOT NULL,
  user_id bigint REFERENCES app.users (id) ON DELETE CASCADE,
  note text,
  total app.cents,
  PRIMARY KEY (id, region, placed)
) PARTITION BY LIST (region);
CREATE SEQUENCE app.orders_id_seq AS bigint START 5 CACHE 10 OWNED BY app.orders.id;
ALTER TABLE app.orders ALTER COLUMN id SET DEFAULT nextval('app.orders_id_seq');
CREATE TABLE app.orders_eu PARTITION OF app.orders FOR VALUES IN ('de', 'fr') PARTITION BY RANGE (placed);
CREATE TABLE app.orders_eu_old PARTITION OF app.orders_eu FOR VALUES FROM (MINVALUE) TO ('2024-01-01');
CREATE TABLE app.orders_eu_new PARTITION OF app.orders_eu FOR VALUES FROM ('2024-01-01') TO (MAXVALUE);
CREATE TABLE app.orders_rest (note text, total app.cents, id bigint NOT NULL, region text NOT NULL, placed date NOT NULL, user_id bigint);
ALTER TABLE app.orders ATTACH PARTITION app.orders_rest DEFAULT;
CREATE INDEX orders_user ON app.orders (user_id, placed DESC);
CREATE INDEX orders_rest_only ON app.orders_rest (note);
CREATE TRIGGER orders_audit AFTER INSERT OR DELETE ON app.orders FOR EACH ROW EXECUTE FUNCTION app.audit();
ALTER TABLE app.orders_eu_old DISABLE TRIGGER orders_audit;
CREATE TABLE app.order_lines (
  order_id bigint NOT NULL,
  region text NOT NULL,
  placed date NOT NULL,
  line smallint NOT NULL,
  sku character(8),
  variant integer,
  quantity integer CHECK (quantity > 0),
  PRIMARY KEY (order_id, line),
  CONSTRAINT order_lines_order FOREIGN KEY (order_id, region, placed) REFERENCES app.orders (id, region, placed) ON UPDATE CASCADE,
  CONSTRAINT order_lines_product FOREIGN KEY (sku, variant) REFERENCES app.products (sku, "Variant") MATCH FULL
);
ALTER TABLE app.order_lines ADD CONSTRAINT order_lines_sku_unchecked FOREIGN KEY (sku, variant) REFERENCES app.products (sku, "Variant") NOT VALID;

-- Plain inheritance.
CREATE TABLE app.animals (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE app.dogs (barks boolean DEFAULT true, PRIMARY KEY (id)) INHERITS (app.animals);

-- Names with everything in them.
CREATE TABLE "Odd ""Schema"""."weird
name; Type: TABLE; Schema: x; Owner: y" (
  "Id; with 'quotes'" integer GENERATED BY DEFAULT AS IDENTITY CONSTRAINT "pk $$ ""x""" PRIMARY KEY,
  "Größe -- no comment" text DEFAULT '-- Name: x; Type: TABLE; Schema: y; Owner: -',
  "/* open" integer CONSTRAINT "fk
to itself" REFERENCES "Odd ""Schema"""."weird
name; Type: TABLE; Schema: x; Owner: y"
);
CREATE INDEX "an index, with; everything" ON "Odd ""Schema"""."weird
name; Type: TABLE; Schema: x; Owner: y" ("Größe -- no comment");
CREATE TABLE public."schema.dot" ("select" integer PRIMARY KEY, "order" text);

-- Sequences of every temper.
CREATE SEQUENCE app.downward INCREMENT BY -5 MINVALUE -1000 MAXVALUE 100 START WITH 100;
CREATE SEQUENCE app.circle AS smallint MINVALUE 1 MAXVALUE 10 CYCLE;
CREATE SEQUENCE app.untouched;

-- Views, one on a primary key, materialized ones on top of one another.
CREATE VIEW app.spenders AS SELECT u.id, u.name, app.initials(u.name) AS i, sum(o.total) AS spent FROM app.users u LEFT JOIN app.orders o ON o.user_id = u.id GROUP BY u.id;
CREATE VIEW app.rich WITH (security_barrier = true) AS SELECT * FROM app.spenders WHERE spent > 100;
CREATE VIEW app.cheap AS SELECT sku, price FROM app.products WHERE price < 100 WITH CASCADED CHECK OPTION;
CREATE MATERIALIZED VIEW app.totals AS SELECT region, count(*) AS n, sum(total) AS total FROM app.orders GROUP BY region WITH DATA;
CREATE UNIQUE INDEX totals_region ON app.totals (region);
CREATE MATERIALIZED VIEW app.aaa_grand_total AS SELECT sum(total) AS total FROM app.totals WITH DATA;
CREATE MATERIALIZED VIEW app.never_filled AS SELECT 1 AS one WITH NO DATA;
CREATE RULE animals_no_delete AS ON DELETE TO app.animals DO INSTEAD NOTHING;

-- Row security.
ALTER TABLE app.products ENABLE ROW LEVEL SECURITY;
CREATE POLICY visible ON app.products FOR SELECT USING (price < 100000);
CREATE POLICY everything ON app.products USING (true) WITH CHECK (sku <> 'x; y');
