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
	check(t, options(src, s.RDSMaster(t, dst)), "target/extension-missing=error", "target/extension-privilege=warning", "target/rollback-capture=warning")
}
