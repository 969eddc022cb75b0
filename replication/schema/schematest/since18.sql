SET search_path = public;
CREATE TABLE app.newest (id integer CONSTRAINT own_name NOT NULL, n integer, twice integer GENERATED ALWAYS AS (n * 2) VIRTUAL, during tstzrange NOT NULL,
  CONSTRAINT newest_pkey PRIMARY KEY (id), CONSTRAINT unchecked CHECK (n > 0) NOT ENFORCED);
ALTER TABLE app.newest ADD CONSTRAINT n_given NOT NULL n NOT VALID;
ALTER TABLE app.newest ADD CONSTRAINT newest_unenforced FOREIGN KEY (n) REFERENCES app.newest (id) NOT ENFORCED;
