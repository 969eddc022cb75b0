package gate

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"replicator/internal/pgtest"
)

// namesakes are objects by which a session would open the gate for itself, if the function took them for the server's: the deadline has passed, the
// token is right, and any two values are equal.
var namesakes = []string{
	`CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''infinity''::timestamptz'`,
	`CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE sql AS 'SELECT ''secret'''`,
	`CREATE FUNCTION evil.convert_to(text, name) RETURNS bytea LANGUAGE sql AS 'SELECT pg_catalog.convert_to(''secret'', $2)'`,
	`CREATE FUNCTION evil.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT pg_catalog.sha256(''secret''::bytea)'`,
	`CREATE FUNCTION evil.encode(bytea, text) RETURNS text LANGUAGE sql AS 'SELECT pg_catalog.encode(pg_catalog.sha256(''secret''::bytea), ''hex'')'`,
	`CREATE FUNCTION evil.yes(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT true'`,
	`CREATE FUNCTION evil.yes(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT true'`,
	`CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.yes)`,
	`CREATE OPERATOR evil.= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.yes)`,
	`CREATE OPERATOR evil.>= (LEFTARG = timestamptz, RIGHTARG = timestamptz, FUNCTION = evil.yes)`,
	`CREATE OPERATOR evil.>= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.yes)`,
	`CREATE DOMAIN evil.timestamptz AS pg_catalog.text`,
	`CREATE FUNCTION pg_temp.clock_timestamp() RETURNS pg_catalog.timestamptz LANGUAGE sql AS 'SELECT ''infinity''::pg_catalog.timestamptz'`,
	`CREATE FUNCTION pg_temp.current_setting(pg_catalog.text, boolean) RETURNS pg_catalog.text LANGUAGE sql AS 'SELECT ''secret'''`,
	`CREATE OPERATOR pg_temp.= (LEFTARG = pg_catalog.text, RIGHTARG = pg_catalog.text, FUNCTION = evil.yes)`,
	`CREATE DOMAIN pg_temp.timestamptz AS pg_catalog.text`,
	`CREATE DOMAIN pg_temp.text AS pg_catalog.text`,
	`CREATE TEMP TABLE pg_proc (prosrc pg_catalog.text)`,
}

// A session can't take the function's place by objects in its own search_path or temporary schema, whoever it is.
func TestSearchPathCannotOpenTheGate(t *testing.T) {
	f := newFixture(t)
	f.install(t)
	f.arm(t, "secret", time.Minute)
	pgtest.Exec(t, f.super, `CREATE SCHEMA evil AUTHORIZATION `+roleOf(t, f.app))
	app, owner := pgtest.Connect(t, f.app), pgtest.Connect(t, f.owner)
	for _, sql := range namesakes {
		mustExec(t, app, sql)
	}
	pgtest.Exec(t, f.app, `GRANT USAGE ON SCHEMA evil TO PUBLIC`)
	for _, permanent := range []bool{false, true} {
		if permanent {
			f.arm(t, "secret", 0)
		}
		for _, path := range []string{"evil, pg_catalog, public", "evil, pg_temp, pg_catalog", "pg_temp, evil, pg_catalog", "pg_temp, public", "''"} {
			for _, session := range []*pgx.Conn{app, owner} {
				mustExec(t, session, `SET search_path = `+path)
				wantRefused(t, session, `UPDATE public.accounts SET balance = 1`)
				wantRefused(t, session, `DELETE FROM public.accounts`)
			}
		}
		// Nor does a session's date style change what the deadline means.
		mustExec(t, app, `SET datestyle = 'German, DMY'`)
		mustExec(t, app, `SET timezone = 'Pacific/Auckland'`)
		wantRefused(t, app, `UPDATE public.accounts SET balance = 1`)
	}
}
