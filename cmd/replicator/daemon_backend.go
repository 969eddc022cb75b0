package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"replicator/cutover"
	"replicator/internal/admin"
	"replicator/internal/preflight"
	"replicator/redissync"
	"replicator/replication"
	"replicator/replication/pair"
)

// errNobodyLeads is the answer while this process neither leads nor knows who does.
var errNobodyLeads = &preflight.Hinted{Code: "not-leading", Err: admin.ErrNotReady, Hint: "wait a moment; the status says what it waits for"}

// actor is who carries out what an operator asks for: the term of the leader, or a standby that hands it on.
type actor interface {
	admin.Switcher
	admin.Operations
	CaughtUp(ctx context.Context) error
}

func (d *daemon) actor() (actor, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.term != nil:
		return d.term, nil
	case d.standby != nil:
		return d.standby, nil
	}
	return nil, errNobodyLeads
}

// Status implements admin.Backend.
func (d *daemon) Status(ctx context.Context) (admin.Status, error) {
	d.mu.Lock()
	t, s, standing := d.term, d.standby, d.standing
	d.mu.Unlock()
	var out admin.Status
	switch {
	case t != nil:
		out = t.status()
	case s != nil:
		var err error
		if out, err = s.status(ctx); err != nil {
			return out, err
		}
	default:
		for _, p := range d.cfg.Postgres {
			out.Postgres = append(out.Postgres, admin.PostgresStatus{Name: p.Name, Phase: admin.Starting})
		}
		for _, p := range d.cfg.Redis {
			out.Redis = append(out.Redis, admin.RedisStatus{Name: p.Name, Phase: admin.Starting})
		}
		for _, f := range standing {
			out.Problems = append(out.Problems, d.problem(f))
		}
	}
	out.Migration, out.Version, out.Time, out.Leader = d.cfg.Migration, version, time.Now().UTC(), t != nil
	return out, nil
}

// problem adds when a finding was first seen.
func (d *daemon) problem(f preflight.Finding) admin.Problem {
	key := f.Code + "\x00" + f.Pair + "\x00" + f.Side
	d.mu.Lock()
	defer d.mu.Unlock()
	since, ok := d.seen[key]
	if !ok {
		since = time.Now().UTC()
		if len(d.seen) > 1000 {
			clear(d.seen)
		}
		d.seen[key] = since
	}
	return admin.ProblemOf(f, since)
}

// CaughtUp implements admin.Backend.
func (d *daemon) CaughtUp(ctx context.Context) error {
	a, err := d.actor()
	if err != nil {
		return err
	}
	return a.CaughtUp(ctx)
}

// StartCutover implements admin.Backend.
func (d *daemon) StartCutover(ctx context.Context, r admin.CutoverRequest) (string, error) {
	a, err := d.actor()
	if err != nil {
		return "", err
	}
	return a.StartCutover(ctx, r)
}

// AbortCutover implements admin.Backend.
func (d *daemon) AbortCutover(ctx context.Context, attempt string) error {
	a, err := d.actor()
	if err != nil {
		return err
	}
	return a.AbortCutover(ctx, attempt)
}

// Finish implements admin.Backend.
func (d *daemon) Finish(ctx context.Context) error {
	a, err := d.actor()
	if err != nil {
		return err
	}
	return a.Finish(ctx)
}

// Verify implements admin.Backend.
func (d *daemon) Verify(ctx context.Context, r admin.VerifyRequest) ([]admin.VerifiedPair, error) {
	a, err := d.actor()
	if err != nil {
		return nil, err
	}
	return a.Verify(ctx, r)
}

// Resync implements admin.Backend.
func (d *daemon) Resync(ctx context.Context, r admin.ResyncRequest) error {
	a, err := d.actor()
	if err != nil {
		return err
	}
	return a.Resync(ctx, r)
}

// SetPaused implements admin.Backend.
func (d *daemon) SetPaused(ctx context.Context, paused bool) error {
	a, err := d.actor()
	if err != nil {
		return err
	}
	return a.SetPaused(ctx, paused)
}

// The leader's own actions.

// CaughtUp waits for all pairs.
func (t *term) CaughtUp(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, p := range t.postgres {
		g.Go(func() error { return ended("pair "+p.Name(), p.CaughtUp(ctx)) })
	}
	for _, p := range t.redis {
		g.Go(func() error { return ended("pair "+p.Name(), p.CaughtUp(ctx)) })
	}
	return g.Wait()
}

var errFinished = &preflight.Hinted{Code: "finished", Err: errors.New("the migration is finished and everything of ours is removed"), Hint: "stop this process; nothing is left to do"}

// StartCutover begins an attempt.
func (t *term) StartCutover(ctx context.Context, r admin.CutoverRequest) (string, error) {
	t.mu.Lock()
	finished, paused := t.finished, t.paused
	t.mu.Unlock()
	switch {
	case finished:
		return "", errFinished
	case paused:
		return "", &preflight.Hinted{Code: "paused", Err: errors.New("replication is paused"), Hint: "replicator resume, then start again"}
	}
	return t.coordinator.Start(ctx, cutover.Request{Reverse: r.Reverse, DryRun: r.DryRun, Budget: r.FreezeBudget, By: r.By})
}

// AbortCutover gives an attempt up.
func (t *term) AbortCutover(ctx context.Context, attempt string) error {
	return t.coordinator.Abort(ctx, attempt)
}

// idle refuses what must not run beside a cutover. An attempt that is done but for its last hooks is waited for.
func (t *term) idle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	s := t.coordinator.Status()
	for ; s.Running() && (s.Phase == cutover.Done || s.Phase == cutover.Aborted); s = t.coordinator.Status() {
		select {
		case <-ctx.Done():
		case <-tick.C:
			continue
		}
		break
	}
	if s.Running() && s.Attempt != "" {
		return &preflight.Hinted{Code: "cutover-running", Err: fmt.Errorf("attempt %s is running", s.Attempt), Hint: "wait for its end, or abort it: replicator cutover abort"}
	}
	if t.isFinished() {
		return errFinished
	}
	return nil
}

// Finish removes everything of ours on all servers. It can be repeated until it succeeds.
func (t *term) Finish(ctx context.Context) error {
	if err := t.idle(ctx); err != nil {
		if errors.Is(err, errFinished) {
			return nil
		}
		return err
	}
	for _, p := range t.redis {
		if err := p.Finish(ctx); err != nil {
			return fmt.Errorf("pair %s: %w", p.Name(), err)
		}
	}
	// The first pair's target holds the journal and the lead: it comes last.
	for i := len(t.postgres) - 1; i >= 0; i-- {
		if i == 0 {
			t.mu.Lock()
			t.finished = true // nobody writes into the schema that goes now
			t.mu.Unlock()
		}
		if err := t.postgres[i].Finish(ctx); err != nil {
			t.mu.Lock()
			t.finished = false
			t.mu.Unlock()
			return fmt.Errorf("pair %s: %w", t.postgres[i].Name(), err)
		}
	}
	if j, ok := t.journal.(*redissync.Journal); ok {
		if err := j.Finish(ctx); err != nil {
			return err
		}
	}
	t.mu.Lock()
	t.finished = true
	t.mu.Unlock()
	t.log.Info("finished: everything of ours is removed from both sides")
	return nil
}

// Verify compares pairs, and with Repair copies what differs anew.
func (t *term) Verify(ctx context.Context, r admin.VerifyRequest) ([]admin.VerifiedPair, error) {
	if t.isFinished() {
		return nil, errFinished
	}
	tables, err := tableNames(r.Tables)
	if err != nil {
		return nil, err
	}
	var out []admin.VerifiedPair
	for _, p := range t.postgres {
		if r.Pair != "" && r.Pair != p.Name() {
			continue
		}
		v, err := t.verifyPostgres(ctx, p, tables, r.Repair)
		if err != nil {
			return nil, fmt.Errorf("pair %s: %w", p.Name(), err)
		}
		out = append(out, v)
	}
	for _, p := range t.redis {
		if (r.Pair != "" && r.Pair != p.Name()) || (r.Pair == "" && len(tables) > 0) {
			continue
		}
		v, err := verifyRedis(ctx, p, r.Repair)
		if err != nil {
			return nil, fmt.Errorf("pair %s: %w", p.Name(), err)
		}
		out = append(out, v)
	}
	return out, nil
}

func (t *term) verifyPostgres(ctx context.Context, p *pair.Pair, tables []replication.TableName, repair bool) (admin.VerifiedPair, error) {
	v := admin.VerifiedPair{Pair: p.Name()}
	report, err := p.VerifyNow(ctx, tables)
	if err != nil {
		return v, err
	}
	v.Mismatches = report.Mismatches
	var differ []replication.TableName
	for _, r := range report.Tables {
		v.Compared += r.SourceRows
		row := admin.VerifiedTable{Table: r.Table.String(), SourceRows: r.SourceRows, TargetRows: r.TargetRows, Equal: r.Equal}
		for _, d := range r.Differences[:min(len(r.Differences), 20)] {
			row.Differences = append(row.Differences, admin.Difference{Kind: string(d.Kind), Key: d.Key})
		}
		if !r.Equal {
			differ = append(differ, r.Table)
		}
		v.Tables = append(v.Tables, row)
	}
	if !repair || len(differ) == 0 {
		return v, nil
	}
	if err := t.idle(ctx); err != nil {
		return v, err
	}
	t.log.Warn("repairing: copying tables anew", "pair", p.Name(), "tables", len(differ))
	if err := p.Resync(ctx, differ); err != nil {
		return v, err
	}
	again, err := p.VerifyNow(ctx, differ)
	if err != nil {
		return v, err
	}
	v.Repaired, v.Mismatches = v.Mismatches-again.Mismatches, again.Mismatches
	for i := range v.Tables {
		for _, r := range again.Tables {
			if v.Tables[i].Table == r.Table.String() && r.Equal {
				v.Tables[i].Equal, v.Tables[i].SourceRows, v.Tables[i].TargetRows = true, r.SourceRows, r.TargetRows
			}
		}
	}
	return v, nil
}

func verifyRedis(ctx context.Context, p *redissync.Pair, repair bool) (admin.VerifiedPair, error) {
	v := admin.VerifiedPair{Pair: p.Name()}
	report, err := p.VerifyNow(ctx)
	if err != nil {
		return v, err
	}
	if repair && report.Mismatches > 0 {
		before := report.Mismatches
		if err := p.Resync(ctx); err != nil {
			return v, err
		}
		if report, err = p.VerifyNow(ctx); err != nil {
			return v, err
		}
		v.Repaired = before - report.Mismatches
	}
	v.Compared, v.Mismatches = report.Keys, report.Mismatches
	databases := map[int]*admin.VerifiedTable{}
	for _, d := range report.Differences {
		row := databases[d.Database]
		if row == nil {
			row = &admin.VerifiedTable{Table: fmt.Sprintf("database %d", d.Database)}
			databases[d.Database] = row
		}
		if len(row.Differences) < 20 {
			row.Differences = append(row.Differences, admin.Difference{Kind: d.Kind, Key: d.Key})
		}
	}
	for _, row := range databases {
		v.Tables = append(v.Tables, *row)
	}
	return v, nil
}

// Resync copies a pair, or some of its tables, anew.
func (t *term) Resync(ctx context.Context, r admin.ResyncRequest) error {
	if err := t.idle(ctx); err != nil {
		return err
	}
	tables, err := tableNames(r.Tables)
	if err != nil {
		return err
	}
	for _, p := range t.postgres {
		if p.Name() == r.Pair {
			return p.Resync(ctx, tables)
		}
	}
	for _, p := range t.redis {
		if p.Name() == r.Pair {
			return p.Resync(ctx)
		}
	}
	return &preflight.Hinted{Code: "unknown-pair", Err: fmt.Errorf("there is no pair %q", r.Pair), Hint: "`replicator status` names the pairs"}
}

// SetPaused stops or resumes all pairs.
func (t *term) SetPaused(ctx context.Context, paused bool) error {
	if err := t.idle(ctx); err != nil {
		return err
	}
	for _, p := range t.postgres {
		err := p.Resume
		if paused {
			err = p.Pause
		}
		if err := err(ctx); err != nil {
			return fmt.Errorf("pair %s: %w", p.Name(), err)
		}
	}
	for _, p := range t.redis {
		if paused {
			p.Pause()
		} else {
			p.Resume()
		}
	}
	t.mu.Lock()
	t.paused = paused
	t.mu.Unlock()
	return t.journal.SetPaused(ctx, paused)
}

// tableNames reads schema.table names.
func tableNames(names []string) ([]replication.TableName, error) {
	out := make([]replication.TableName, 0, len(names))
	for _, n := range names {
		t, err := replication.ParseTableName(n)
		if err != nil {
			return nil, &preflight.Hinted{Code: "bad-table", Err: err, Hint: "write schema.table as the status and verify show it"}
		}
		out = append(out, t)
	}
	return out, nil
}
