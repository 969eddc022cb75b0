package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/preflight"
)

// capture looks at the capture that is configured, or was chosen when the pair began. For auto it chooses as a pair that begins does: logical
// where nothing stands against it, else triggers, and says why.
func (r *run) capture(ctx context.Context, s *side) {
	obstacles := s.grants.Obstacles()
	name, reason := Choose(r.Capture, r.Slot, s.name, obstacles)
	if r.Chosen != "" {
		name, reason = r.Chosen, r.ChosenReason
	}
	if r.Chosen != "" || name != "trigger" || reason == Configured {
		obstacles = nil // they don't matter, or are found again
	}
	switch name {
	case "logical":
		r.take(ctx, s, name, (*run).logical, reason, nil)
	case "trigger":
		r.take(ctx, s, name, (*run).trigger, reason, obstacles)
	default:
		r.fail(s.name, "capture", "set capture to auto, logical or trigger", "there is no capture %s", name)
	}
}

// take looks whether a capture is possible. What stands against the other one is told by the reason; only where
// neither is possible does each obstacle become a finding.
func (r *run) take(ctx context.Context, s *side, name string, look func(*run, context.Context, *side), reason string, obstacles []preflight.Finding) {
	sub := &run{Options: r.Options}
	look(sub, ctx, s)
	if there := name != "trigger" || r.Triggers != nil; there && preflight.Worst(sub.findings) < preflight.Error {
		r.findings = append(r.findings, sub.findings...)
		switch {
		case reason == Configured:
			r.ok(s.name, "capture", "changes are captured by %s, as configured", captureWords[name])
		case len(obstacles) > 0:
			var remedies []string
			for _, o := range obstacles {
				remedies = append(remedies, o.Hint)
			}
			r.info(s.name, "capture", "nothing has to be done; who would rather have logical capture: "+strings.Join(remedies, "; "), "changes are captured by %s, because: %s", captureWords[name], reason)
		default:
			r.info(s.name, "capture", "nothing has to be done; capture: logical or trigger in the configuration settles it", "changes are captured by %s, because: %s", captureWords[name], reason)
		}
		return
	}
	tried := name
	if len(obstacles) > 0 {
		tried = "logical or trigger"
		r.logical(ctx, s)
	}
	r.findings = append(r.findings, sub.findings...)
	r.fail(s.name, "capture", "mend the errors above, or restore a copy of the database on a server that allows logical replication and migrate from there",
		"the source doesn't allow %s capture", tried)
}

var captureWords = map[string]string{"logical": "logical decoding of the write-ahead log", "trigger": "triggers that keep a change log"}

// trigger looks at what a change log needs: tables that the role owns, with keys, and a schema to keep it in.
func (r *run) trigger(ctx context.Context, s *side) {
	var create bool
	if err := s.conn.QueryRow(ctx, `SELECT has_database_privilege(current_database(), 'CREATE')`).Scan(&create); err != nil {
		r.broke(s.name, "capture-schema", err)
		return
	}
	if create {
		r.ok(s.name, "capture-schema", "role %s may make schema replicator", s.user)
	} else {
		r.fail(s.name, "capture-schema", "GRANT CREATE ON DATABASE … TO "+quote(s.user), "role %s may not make schemas in the database", s.user)
	}
	tables, err := r.Catalog.Tables(ctx, s.conn)
	if err != nil {
		r.broke(s.name, "capture", err)
		return
	}
	if r.Triggers == nil {
		return
	}
	findings, err := r.Triggers(ctx, s.conn, tables)
	if err != nil {
		r.broke(s.name, "capture", err)
		return
	}
	for _, f := range findings {
		f.Pair, f.Side = r.Pair, s.name
		r.findings = append(r.findings, f)
	}
}

// logical looks at what a logical replication slot and a publication need.
func (r *run) logical(ctx context.Context, s *side) {
	against := map[string]preflight.Finding{}
	for _, o := range s.grants.Obstacles() {
		o.Pair, o.Side = r.Pair, s.name
		against[o.Code] = o
	}
	good := func(code, format string, args ...any) {
		if o, ok := against[code]; ok {
			r.findings = append(r.findings, o)
		} else {
			r.ok(s.name, code, format, args...)
		}
	}
	good("replication-privilege", "role %s may replicate", s.user)
	good("wal-level", "wal_level is logical")
	good("publication-privilege", "role %s may publish the tables", s.user)
	r.slot(ctx, s, against)
	good("walsenders", "%d of %d walsenders are free", s.grants.MaxSenders-s.grants.Senders, s.grants.MaxSenders)
	if s.maxKeep >= 0 {
		r.warn(s.name, "slot-retention", "raise max_slot_wal_keep_size above the WAL that the copy's time will write, or set it to -1 and watch the disk", "the server drops our slot when it holds more than %s of WAL", size(s.maxKeep<<20))
	} else {
		r.ok(s.name, "slot-retention", "the server keeps WAL for our slot without bound; replicator_postgres_retained_bytes shows how much")
	}
}

// slotName is the slot to read, on the source.
func (r *run) slotName() string {
	if r.Slot != "" {
		return r.Slot
	}
	return r.ID.ObjectName("")
}

const readSlot = `SELECT plugin = 'pgoutput', database = current_database(), active, coalesce(to_jsonb(s)->>'wal_status', '') = 'lost' FROM pg_replication_slots s WHERE slot_name = $1`

// slot looks at the slot to adopt, or at the room for one of ours.
func (r *run) slot(ctx context.Context, s *side, against map[string]preflight.Finding) {
	name := r.slotName()
	full, taken := against["slot"]
	free, most := s.grants.MaxSlots-s.grants.Slots, s.grants.MaxSlots
	var plugin, database, active, lost bool
	err := s.conn.QueryRow(ctx, readSlot, name).Scan(&plugin, &database, &active, &lost)
	found := err == nil
	switch {
	case err != nil && !errors.Is(err, pgx.ErrNoRows):
		r.broke(s.name, "slot", err)
	case r.Slot != "" && !found:
		r.fail(s.name, "slot", "correct the configured slot's name, or leave it empty and let replicator copy", "there is no replication slot %s", name)
	case found && (!plugin || !database):
		r.fail(s.name, "slot", "name a slot of this database with plugin pgoutput, or drop it: SELECT pg_drop_replication_slot('"+name+"')", "slot %s is of another database or plugin", name)
	case found && lost:
		r.fail(s.name, "slot", "drop it, SELECT pg_drop_replication_slot('"+name+"'), and begin again with a new copy", "slot %s has lost the WAL that it needed", name)
	case found && active && !r.Resuming:
		r.fail(s.name, "slot", "end what reads from it: another replicator or subscription", "slot %s is in use", name)
	case found && r.Slot == "" && !r.Resuming:
		r.fail(s.name, "slot", "run replicator finish with the target it belonged to, or drop it: SELECT pg_drop_replication_slot('"+name+"')", "slot %s is left from an earlier migration, and holds WAL", name)
	case found:
		r.ok(s.name, "slot", "slot %s is there", name)
	case taken:
		r.findings = append(r.findings, full)
	case free < 3:
		r.info(s.name, "slot", "for backlogs that end sooner raise max_replication_slots, or drop a slot that is no longer used", "%d of %d replication slots are free; a backlog is read faster where there are two more than ours", free, most)
	default:
		r.ok(s.name, "slot", "%d of %d replication slots are free", free, most)
	}
	if found || r.Resuming {
		return
	}
	var leftover bool
	publication := r.ID.ObjectName("")
	switch err := s.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)", publication).Scan(&leftover); {
	case err != nil:
		r.broke(s.name, "publication", err)
	case leftover:
		r.fail(s.name, "publication", fmt.Sprintf("DROP PUBLICATION %s", quote(publication)), "publication %s is left from an earlier migration", publication)
	default:
		r.ok(s.name, "publication", "publication %s can be made", publication)
	}
}
