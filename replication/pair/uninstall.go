package pair

import (
	"context"
	"errors"
	"fmt"
	"time"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication/state"
)

// TargetGone tells whether the target can't be reached, nil if it can.
func (p *Pair) TargetGone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := postgres.Connect(ctx, p.target.url, p.id, "uninstall")
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	closeConn(ctx, conn)
	return nil
}

// liveSQL finds sessions of a leader: those of whoever leads carry its epoch.
const liveSQL = `SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, $1) AND application_name ~ '/e[1-9][0-9]*$'`

// SourceUnled refuses where a daemon of the migration has sessions on the source.
func (p *Pair) SourceUnled(ctx context.Context) error {
	conn, err := postgres.Connect(ctx, p.source.url, p.id, "uninstall")
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	defer closeConn(ctx, conn)
	var live int
	if err := conn.QueryRow(ctx, liveSQL, p.id.ApplicationPrefix()).Scan(&live); err != nil {
		return fmt.Errorf("source: look for a daemon's sessions: %w", err)
	}
	if live > 0 {
		return &preflight.Hinted{Code: "daemon-running", Err: fmt.Errorf("a daemon of this migration has %d sessions on the source", live), Hint: "stop the daemon first"}
	}
	return nil
}

// UninstallSource does what Uninstall does, on the source alone, for a target that is gone for good with the notes that it held. What those
// would have put back stays as it is: left names what can be seen of it. It refuses while a daemon of the migration has sessions on the
// source, by which alone one can be known there. It may be repeated until it succeeds.
func (p *Pair) UninstallSource(ctx context.Context) (left []string, err error) {
	defer p.disconnect()
	if err := p.connect(ctx); err != nil {
		return nil, err
	}
	s := p.source
	if err := p.SourceUnled(ctx); err != nil {
		return nil, err
	}
	if left, err = p.notPutBack(ctx); err != nil {
		return nil, err
	}
	for _, c := range []capture{logicalCapture{p, false}, triggerCapture{p, false}} {
		if err := c.end(ctx); err != nil {
			return left, err
		}
	}
	if err := s.gate.Uninstall(ctx); err != nil {
		return left, fmt.Errorf("source: %w", err)
	}
	if err := state.Drop(ctx, s.pool); err != nil {
		return left, fmt.Errorf("source: %w", err)
	}
	return left, nil
}

// lostNotesSQL lists what may be changed by us and is the application's: it can't be told from what the application itself made so.
const lostNotesSQL = `
SELECT format('trigger %I of table %I.%I is disabled: if it shouldn''t be, ALTER TABLE %2$I.%3$I ENABLE TRIGGER %1$I (or ENABLE ALWAYS TRIGGER, if it was so)', t.tgname, n.nspname, c.relname)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgenabled = 'D' AND t.tgname NOT LIKE 'replicator\_%' AND n.nspname !~ '^pg_'
UNION ALL
SELECT format('table %I.%I has REPLICA IDENTITY FULL: if the application didn''t have it so, ALTER TABLE ONLY %1$I.%2$I REPLICA IDENTITY DEFAULT', n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND c.relreplident = 'f' AND n.nspname !~ '^pg_'
ORDER BY 1`

// notPutBack names what only the target's notes could have put back on the source.
func (p *Pair) notPutBack(ctx context.Context) ([]string, error) {
	s := p.source
	rows, err := s.pool.Query(ctx, lostNotesSQL)
	if err != nil {
		return nil, fmt.Errorf("source: look for what was changed: %w", err)
	}
	var left []string
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return nil, errors.Join(err, rows.Err())
		}
		left = append(left, text)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("source: look for what was changed: %w", err)
	}
	st, err := s.gate.State(ctx)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if !st.Armed || !st.Permanent {
		return left, nil
	}
	left = append(left, "the application had been switched to the target: the source lacks what was written there since, unless the stream back had brought it, and takes writes again now")
	ordinary, err := p.isOrdinary(ctx, s)
	if err != nil {
		return nil, err
	}
	if ordinary {
		left = append(left, "foreign keys of the replicated tables were dropped while the source followed, and nothing here shows which: make them again from the application's own schema")
	}
	return left, nil
}
