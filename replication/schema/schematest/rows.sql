SET search_path = public;
INSERT INTO app.users (email, name, mood, home, tags, moods, photo, balance, seen, born, wakes, every, token, bits, place)
SELECT 'u' || g || '@example.com', 'Ünal ' || g, 'it''s "fine"', ROW('Straße ' || g, '0' || g, 'sad')::app.address, ARRAY['a', NULL, '"q"', 'ü,{}'],
       ARRAY['sad', NULL]::app.mood[], decode(repeat('00ff5c27', 1 + g % 700), 'hex'), g / 3.0, '10.0.0.1/8', 'infinity', '07:00:00+02', '1 mon -2 days 03:04:05.678',
       md5(g::text)::uuid, '10110', point(g, -1.5)
FROM generate_series(1, 300) g;
INSERT INTO app.products (sku, "Variant", price, parent, parent_variant, valid)
SELECT lpad(g::text, 8, '0'), 0, g * 10, CASE WHEN g > 1 THEN lpad((g - 1)::text, 8, '0') END, CASE WHEN g > 1 THEN 0 END, tstzrange('2020-01-01Z', NULL) FROM generate_series(1, 100) g;
INSERT INTO app.bookings SELECT g, tstzrange('2024-01-01Z'::timestamptz + g * interval '1 hour', '2024-01-01Z'::timestamptz + (g + 1) * interval '1 hour') FROM generate_series(1, 50) g;
INSERT INTO app.deferred SELECT g, g FROM generate_series(1, 20) g;
INSERT INTO app.unique_only SELECT 'c' || g, g FROM generate_series(1, 20) g;
INSERT INTO app.orders (region, placed, user_id, note, total)
SELECT (ARRAY['de', 'fr', 'us', 'jp'])[1 + g % 4], '2023-01-01'::date + g, 1000 + 2 * (g % 300), CASE WHEN g % 7 = 0 THEN repeat('long ', 2000) END, g FROM generate_series(1, 600) g;
INSERT INTO app.order_lines SELECT id, region, placed, 1, lpad((1 + id % 100)::text, 8, '0'), 0, 1 + id % 5 FROM app.orders;
INSERT INTO app.animals (name) SELECT 'cat ' || g FROM generate_series(1, 10) g;
INSERT INTO app.dogs (name) SELECT 'dog ' || g FROM generate_series(1, 10) g;
INSERT INTO "Odd ""Schema"""."weird
name; Type: TABLE; Schema: x; Owner: y" ("/* open") SELECT CASE WHEN g > 1 THEN g - 1 END FROM generate_series(1, 5) g;
INSERT INTO public."schema.dot" VALUES (1, E'tab\t newline\n backslash \\ \\.');
INSERT INTO app.no_columns DEFAULT VALUES;
SELECT nextval('app.downward'), nextval('app.circle'), nextval('app.downward');
REFRESH MATERIALIZED VIEW app.totals;
REFRESH MATERIALIZED VIEW app.aaa_grand_total;
