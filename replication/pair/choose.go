package pair

import (
	"context"
	"fmt"
)

// The captures, as configured and stored.
const (
	Logical = "logical"
	Trigger = "trigger"
)

// Keys of stored settings.
const (
	settingCapture = "capture of "
	settingReason  = "reason for capture of "
	settingToken   = "token of "
)

// capture returns the capture of a direction.
func (p *Pair) capture(reverse bool) capture {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.captures[reverse] == Trigger {
		return triggerCapture{p, reverse}
	}
	return logicalCapture{p, reverse}
}

// recall reads what earlier runs have chosen.
func (p *Pair) recall(ctx context.Context) error {
	settings, err := p.stored.Settings(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, reverse := range []bool{false, true} {
		origin, _ := p.ends(reverse)
		p.captures[reverse] = settings[settingCapture+origin.name]
	}
	if p.captures[false] != "" {
		p.status.Capture, p.status.CaptureReason = p.captures[false], settings[settingReason+p.source.name]
	}
	for _, s := range []*side{p.source, p.target} {
		s.token = settings[settingToken+s.name]
	}
	return nil
}

// choose decides for a direction's capture and remembers it: what is configured for the source, otherwise logical where the origin grants
// it, else triggers.
func (p *Pair) choose(ctx context.Context, reverse bool) error {
	origin, _ := p.ends(reverse)
	capture, reason := p.o.Capture, "configured"
	if reverse || capture == "" || capture == "auto" {
		obstacle, err := p.obstacle(ctx, origin)
		if err != nil {
			return err
		}
		if obstacle == "" {
			capture, reason = Logical, "the "+origin.name+" grants logical replication"
		} else {
			capture, reason = Trigger, "no logical replication: "+obstacle
		}
	}
	if err := p.stored.Set(ctx, settingCapture+origin.name, capture); err != nil {
		return err
	}
	if err := p.stored.Set(ctx, settingReason+origin.name, reason); err != nil {
		return err
	}
	p.mu.Lock()
	p.captures[reverse] = capture
	if !reverse {
		p.status.Capture, p.status.CaptureReason = capture, reason
	}
	p.mu.Unlock()
	p.log.Info("capture", "side", origin.name, "capture", capture, "reason", reason)
	return nil
}

const grantsSQL = `
SELECT r.rolsuper OR r.rolreplication OR EXISTS (SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(current_user, g.oid, 'USAGE')),
       current_setting('wal_level'),
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int,
       has_database_privilege(current_database(), 'CREATE')
FROM pg_roles r WHERE r.rolname = current_user`

// obstacle says why a side can't be captured logically, empty if it can.
func (p *Pair) obstacle(ctx context.Context, s *side) (string, error) {
	var may, create bool
	var level string
	var slots int
	if err := s.pool.QueryRow(ctx, grantsSQL).Scan(&may, &level, &slots, &create); err != nil {
		return "", fmt.Errorf("%s: look for the right to replicate: %w", s.name, err)
	}
	switch {
	case !may:
		return "the role has no REPLICATION attribute", nil
	case level != "logical":
		return "wal_level is " + level, nil
	case slots < 1:
		return "no replication slot is free", nil
	case !create:
		return "the role may not create publications in the database", nil
	}
	table, err := p.unidentified(ctx, s)
	if err != nil || table == "" {
		return "", err
	}
	return "table " + table + " has generated columns and no key without them, and could neither be updated nor deleted from while it is published", nil
}
