package schema

import (
	"fmt"
	"testing"

	"replicator/internal/pgtest"
	"replicator/replication/schema/schematest"
)

// From the oldest and the newest supported version to the newest.
func TestVersions(t *testing.T) {
	recent := pgtest.Start(t, pgtest.Options{Version: 18})
	for _, s := range []*pgtest.Server{pgtest.Start(t, pgtest.Options{Version: 13}), recent} {
		t.Run(fmt.Sprint(s.Version()), func(t *testing.T) {
			tellsRewrites(t, s)
			source, target := s.Database(t), recent.Database(t)
			pgtest.Exec(t, source, schematest.Everything, schematest.Rows)
			pgtest.Exec(t, source, schematest.Since(s.Version())...)
			p := NewPlan(mustDump(t, source, 18))
			conn := connect(t, target)
			for range 2 {
				apply(t, conn, p.Pre, p.Keys, p.Indexes, p.Foreign, p.Validate, p.Last)
			}
			if s == recent {
				if want, got := pgtest.DumpSchema(t, source), pgtest.DumpSchema(t, target); want != got {
					t.Errorf("the dumps differ:\n%s", firstDifference(want, got))
				}
			}
			from := connect(t, source)
			if d := mustFingerprint(t, from, Filter{}).Diff(mustFingerprint(t, conn, Filter{})); len(d) != 0 {
				t.Errorf("differences: %+v", d)
			}
			origin, err := ReadSequences(testContext(t), from)
			if err != nil {
				t.Fatal(err)
			}
			if err := SetSequences(testContext(t), conn, origin, 10); err != nil {
				t.Error(err)
			}
			list, err := Tables(testContext(t), from, Filter{})
			if err != nil || len(list) < 15 {
				t.Errorf("%d tables, %v", len(list), err)
			}
		})
	}
}

// Heroku's owner is dumped and RDS's master builds it, with an extension in heroku_ext and nobody a superuser.
func TestHerokuToRDS(t *testing.T) {
	s := pgtest.Shared(t)
	sourceDB, targetDB := s.Database(t), s.Database(t)
	source, target := s.HerokuOwner(t, sourceDB), s.RDSMaster(t, targetDB)
	pgtest.Exec(t, source, "CREATE SCHEMA heroku_ext; CREATE EXTENSION citext WITH SCHEMA heroku_ext", schematest.Everything,
		"CREATE TABLE public.accounts (login heroku_ext.citext PRIMARY KEY)", schematest.Rows)
	pgtest.Exec(t, sourceDB, "CREATE SCHEMA _heroku; CREATE FUNCTION _heroku.log() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER log_create_ext ON ddl_command_end EXECUTE FUNCTION _heroku.log(); GRANT USAGE ON SCHEMA _heroku TO PUBLIC")
	p := NewPlan(mustDump(t, source, 15))
	conn := connect(t, target)
	for range 2 {
		apply(t, conn, p.Pre, p.Keys, p.Indexes, p.Foreign, p.Validate, p.Last)
	}
	if d := mustFingerprint(t, connect(t, source), Filter{}).Diff(mustFingerprint(t, conn, Filter{})); len(d) != 0 {
		t.Errorf("differences: %+v", d)
	}
	list, err := Tables(testContext(t), conn, Filter{Include: []string{"public.accounts"}})
	if err != nil || len(list) != 1 || list[0].Columns[0].Type != "heroku_ext.citext" {
		t.Errorf("%+v, %v", list, err)
	}
}
