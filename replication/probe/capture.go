package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"replicator/internal/preflight"
)

// captures are the ways to read the source's changes, in the order in which auto tries them. Each looks whether the source allows it and
// returns its findings; without an Error among them it is possible. A capture that isn't here isn't in this release.
var captures = []struct {
	name  string
	probe func(*run, context.Context, *side)
}{
	{"logical", (*run).logical},
	{"trigger", (*run).trigger},
}

// capture looks at the capture that is configured, or at each until one is possible.
func (r *run) capture(ctx context.Context, s *side) {
	var tried []string
	var obstacles []preflight.Finding
	for _, c := range captures {
		if r.Capture != c.name && r.Capture != "auto" && r.Capture != "" {
			continue
		}
		if c.name == "trigger" && (r.Triggers == nil || (r.Capture != c.name && s.replication && s.walLevel == "logical")) {
			continue // not in this program, or logical capture is granted and only has to be mended
		}
		sub := &run{Options: r.Options}
		c.probe(sub, ctx, s)
		if preflight.Worst(sub.findings) < preflight.Error {
			r.findings = append(r.findings, sub.findings...)
			r.ok(s.name, "capture", "changes are captured by %s", captureWords[c.name])
			return
		}
		tried = append(tried, c.name)
		obstacles = append(obstacles, sub.findings...)
	}
	r.findings = append(r.findings, obstacles...)
	if len(tried) == 0 {
		r.fail(s.name, "capture", "set capture to auto, logical or trigger", "there is no capture %s", r.Capture)
		return
	}
	r.fail(s.name, "capture", "mend the errors above, or restore a copy of the database on a server that allows logical replication and migrate from there",
		"the source doesn't allow %s capture", strings.Join(tried, " or "))
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
	if s.replication {
		r.ok(s.name, "replication-privilege", "role %s may replicate", s.user)
	} else {
		r.fail(s.name, "replication-privilege", "a superuser can: ALTER ROLE "+quote(s.user)+" REPLICATION (RDS: GRANT rds_replication TO …); Heroku doesn't allow it", "role %s has no REPLICATION attribute", s.user)
	}
	if s.walLevel == "logical" {
		r.ok(s.name, "wal-level", "wal_level is logical")
	} else {
		r.fail(s.name, "wal-level", "set wal_level = logical and restart the server (RDS: rds.logical_replication = 1)", "wal_level is %s", s.walLevel)
	}
	r.slot(ctx, s)
	if free := s.maxSenders - s.senders; free < 1 && !r.Resuming {
		r.fail(s.name, "walsenders", "raise max_wal_senders and restart the server, or end a replica", "all %d walsenders are in use", s.maxSenders)
	} else {
		r.ok(s.name, "walsenders", "%d of %d walsenders are free", free, s.maxSenders)
	}
	if s.maxKeep >= 0 {
		r.warn(s.name, "slot-retention", "raise max_slot_wal_keep_size above the WAL that the copy's time will write, or set it to -1 and watch the disk", "the server drops our slot when it holds more than %s of WAL", size(s.maxKeep<<20))
	} else {
		r.ok(s.name, "slot-retention", "the server keeps WAL for our slot without bound; replicator_postgres_retained_bytes shows how much")
	}
}

const readSlot = `SELECT plugin = 'pgoutput', database = current_database(), active, coalesce(to_jsonb(s)->>'wal_status', '') = 'lost' FROM pg_replication_slots s WHERE slot_name = $1`

// slot looks at the slot to adopt, or at the room for one of ours.
func (r *run) slot(ctx context.Context, s *side) {
	name := r.Slot
	if name == "" {
		name = r.ID.ObjectName("")
	}
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
	case s.maxSlots-s.slots < 1:
		r.fail(s.name, "slot", "raise max_replication_slots and restart the server, or drop a slot that is no longer used", "all %d replication slots are taken", s.maxSlots)
	case s.maxSlots-s.slots < 3:
		r.info(s.name, "slot", "for backlogs that end sooner raise max_replication_slots, or drop a slot that is no longer used", "%d of %d replication slots are free; a backlog is read faster where there are two more than ours", s.maxSlots-s.slots, s.maxSlots)
	default:
		r.ok(s.name, "slot", "%d of %d replication slots are free", s.maxSlots-s.slots, s.maxSlots)
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
