package pair

import (
	"strings"
	"testing"

	"replicator/internal/pgtest"
	"replicator/internal/postgres"
	"replicator/replication/schema"
	"replicator/replication/trigger"
)

// earlierLog lays the log of table t out as the version before bothKeys did, with what a stopped daemon of that version would find in it.
const earlierLog = `DO $do$
DECLARE n oid := 't'::regclass; comment text;
BEGIN
  SELECT substring(prosrc from '-- replicator capture: [^\n]*') INTO STRICT comment FROM pg_proc WHERE proname = 'capture_' || n;
  FOR slot IN 0..1 LOOP
    EXECUTE format('DROP TABLE replicator.capture_%s_%s', n, slot);
    EXECUTE format('CREATE TABLE replicator.capture_%s_%s (xid xid8 NOT NULL, op "char" NOT NULL, k0 integer NOT NULL)', n, slot);
  END LOOP;
  EXECUTE format('CREATE OR REPLACE FUNCTION replicator.capture_%s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L', n,
    replace(comment, ',"form":2', '') || E'\n' || format('BEGIN
  IF TG_OP <> ''INSERT'' THEN INSERT INTO replicator.capture_%1$s_SLOT VALUES (pg_current_xact_id(), ''D'', OLD.id); END IF;
  IF TG_OP <> ''DELETE'' THEN INSERT INTO replicator.capture_%1$s_SLOT VALUES (pg_current_xact_id(), ''I'', NEW.id); END IF;
  RETURN NULL;
END', n));
END $do$`

// A daemon that starts over the change log of an earlier version goes on with it, and copies nothing again.
func TestAnEarlierLogGoesOn(t *testing.T) {
	f := newFixture(t)
	f.capture = Trigger
	pgtest.Exec(t, f.source, smallSchema)
	f.start(false)
	f.streaming()
	f.caughtUp()
	f.stop()
	slot := ask[string](f, f.source, `SELECT substring(prosrc from '"slot":(.)') FROM pg_proc WHERE proname = 'capture_' || 't'::regclass::oid`)
	copied := ask[string](f, f.target, `SELECT snapshot FROM replicator.copy WHERE table_name = 't'`)
	pgtest.Exec(t, f.source, strings.ReplaceAll(earlierLog, "SLOT", slot), `INSERT INTO t VALUES (1000, 'before'); UPDATE t SET v = 'before' WHERE id = 2; DELETE FROM t WHERE id = 3`)
	f.start(false)
	f.streaming()
	pgtest.Exec(t, f.source, `UPDATE t SET v = 'after' WHERE id IN (4, 1000)`)
	f.caughtUp()
	f.equal()
	if now := ask[string](f, f.target, `SELECT snapshot FROM replicator.copy WHERE table_name = 't'`); now != copied {
		t.Errorf("the table was copied again: %s, before %s", now, copied)
	}
}

// A process that died just after it had put a change log in place again, before it could note that the copies from before are void, is followed by one
// that finds out.
func TestALogYoungerThanTheCopyVoidsIt(t *testing.T) {
	f := newFixture(t)
	f.capture = Trigger
	pgtest.Exec(t, f.source, smallSchema, `CREATE TABLE calm (id int PRIMARY KEY, v text)`)
	f.start(false)
	f.streaming()
	f.stop()
	copied := func(table string) string {
		t.Helper()
		return ask[string](f, f.target, `SELECT snapshot FROM replicator.copy WHERE table_name = $1`, table)
	}
	calm := copied("calm")
	pgtest.Exec(t, f.source, `ALTER TABLE t DISABLE TRIGGER ALL; ALTER TABLE other DISABLE TRIGGER ALL`,
		`UPDATE t SET v = 'unseen' WHERE id = 1; DELETE FROM other WHERE id = 2; INSERT INTO other VALUES (1000, 'unseen')`)
	// What recapture does for a resync of t, up to where the process dies.
	pool, err := postgres.Pool(f.ctx(), f.source, postgres.Identity{Migration: f.migration}, "test", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	tables, err := schema.Tables(f.ctx(), pool, schema.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	if made, err := trigger.Install(f.ctx(), pool, nil, tables); err != nil || len(made) != 2 {
		t.Fatalf("Install: %v %v", made, err)
	}
	f.start(false)
	f.streaming()
	pgtest.Exec(t, f.source, `UPDATE t SET v = 'seen' WHERE id = 3`)
	f.caughtUp()
	f.equal()
	if now := copied("calm"); now != calm {
		t.Errorf("a table whose log stood all the time was copied again: %s, before %s", now, calm)
	}
}
