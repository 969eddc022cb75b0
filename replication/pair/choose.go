package pair

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"replicator/internal/postgres"
	"replicator/replication/probe"
	"replicator/replication/schema"
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
// it, else triggers. `check` asks the same judge.
func (p *Pair) choose(ctx context.Context, reverse bool) error {
	origin, _ := p.ends(reverse)
	tables, err := schema.Tables(ctx, origin.pool, p.o.Filter)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	c := logicalCapture{p, reverse}
	grants, err := probe.ReadGrants(ctx, origin.pool, p.id, c.slot(), tables)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	configured, adopt := p.o.Capture, p.o.Adopt
	if reverse {
		configured, adopt = "auto", ""
	}
	capture, reason := probe.Choose(configured, adopt, origin.name, grants.Obstacles())
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

const chosenSQL = `SELECT key, value FROM replicator.setting WHERE migration = $1 AND pair = $2`

// Chosen reads from the target which capture a pair that has begun took on the source, and why; both empty where that can't be told.
func Chosen(ctx context.Context, target *pgx.Conn, id postgres.Identity) (capture, reason string) {
	rows, err := target.Query(ctx, chosenSQL, id.Migration, id.Pair)
	if err != nil {
		return "", ""
	}
	var key, value string
	_, err = pgx.ForEachRow(rows, []any{&key, &value}, func() error {
		switch key {
		case settingCapture + "source":
			capture = value
		case settingReason + "source":
			reason = value
		}
		return nil
	})
	if err != nil {
		return "", ""
	}
	return capture, reason
}
