package probe

import (
	"testing"

	"replicator/internal/pgtest"
)

func TestExtensions(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, "CREATE TABLE public.t (id integer PRIMARY KEY); CREATE SCHEMA heroku_ext; CREATE EXTENSION hstore WITH SCHEMA heroku_ext; CREATE EXTENSION citext")
	check(t, options(src, dst), "target/heroku-ext=warning")
	pgtest.Exec(t, dst, "CREATE EXTENSION hstore; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, heroku_ext', current_database()); END $$")
	check(t, options(src, dst), "target/extension-schema=error")
	// What the finding says to do mends it.
	pgtest.Exec(t, dst, "CREATE SCHEMA IF NOT EXISTS heroku_ext; ALTER EXTENSION hstore SET SCHEMA heroku_ext")
	check(t, options(src, dst))
}

func TestExtensionsThatTheTargetLacks(t *testing.T) {
	s := pgtest.Shared(t)
	src, dst := s.Database(t), s.Database(t)
	pgtest.Exec(t, src, `CREATE TABLE public.t (id integer PRIMARY KEY); CREATE EXTENSION pageinspect; CREATE EXTENSION pgcrypto;
		UPDATE pg_extension SET extname = 'timescale_nowhere' WHERE extname = 'pgcrypto'`)
	check(t, options(src, s.RDSMaster(t, dst)), "target/extension-missing=error", "target/extension-privilege=warning")
}

func TestRolesThatTheSchemaNeeds(t *testing.T) {
	s, other := pgtest.Shared(t), pgtest.Start(t, pgtest.Options{})
	src, dst := s.Database(t), other.Database(t)
	pgtest.Exec(t, src, `CREATE TABLE public.t (id integer PRIMARY KEY); ALTER TABLE public.t ENABLE ROW LEVEL SECURITY; CREATE ROLE policy_reader;
		CREATE POLICY p ON public.t TO policy_reader USING (true);
		CREATE FUNCTION public.e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER e ON sql_drop EXECUTE FUNCTION public.e();
		CREATE EXTENSION postgres_fdw; CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw; CREATE USER MAPPING FOR policy_reader SERVER far OPTIONS (password 's3cret')`)
	t.Cleanup(func() { pgtest.Exec(t, src, "DROP OWNED BY policy_reader", "DROP ROLE policy_reader") })
	check(t, options(src, dst), "target/policy-roles=error", "source/user-mappings=warning")
	pgtest.Exec(t, dst, "CREATE ROLE policy_reader")
	check(t, options(src, other.RDSMaster(t, dst)), "source/user-mappings=warning", "target/event-triggers=error", "target/extension-privilege=warning")
}
