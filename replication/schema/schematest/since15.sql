SET search_path = public;
CREATE TABLE app.nulls (a integer, b text, CONSTRAINT nulls_one UNIQUE NULLS NOT DISTINCT (a, b));
CREATE TABLE app.set_null (id integer PRIMARY KEY, sku character(8), variant integer,
  CONSTRAINT set_null_some FOREIGN KEY (sku, variant) REFERENCES app.products (sku, "Variant") ON DELETE SET NULL (variant));
