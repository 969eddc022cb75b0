SET search_path = public;
CREATE FUNCTION app.order_total(which bigint) RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT count(*) FROM app.audit_log WHERE audit_log.what = '
--
-- Name: fake; Type: TABLE; Schema: public; Owner: -
--
';
  SELECT sum(o.total) AS sum FROM app.orders o WHERE o.id = which;
END;
CREATE VIEW app.totals_of AS SELECT u.id, app.order_total(u.id) AS total FROM app.users u;
CREATE FUNCTION app.per_user(at_least bigint) RETURNS SETOF text LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT u.name FROM app.users u JOIN app.orders o ON o.user_id = u.id GROUP BY u.id HAVING count(*) > at_least;
END;
CREATE TABLE app.ranges (id integer PRIMARY KEY, many int4multirange NOT NULL DEFAULT '{[1,3),[5,7)}', zipped text COMPRESSION pglz);
