package pair

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
	"replicator/replication/gate"
	"replicator/replication/schema"
	"replicator/replication/state"
)

// freeze is what this process knows of a freeze under way.
type freeze struct {
	reverse bool
	token   string
	fence   replication.Position
	catalog schema.Fingerprint
	storage map[replication.TableName]schema.Storage
	sealed  bool
}

func newToken() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails ("crypto/rand": the program ends instead)
	return hex.EncodeToString(b)
}

// finding builds a finding of this pair.
func (p *Pair) finding(code string, sev preflight.Severity, side, message, hint string) preflight.Finding {
	return preflight.Finding{Code: code, Severity: sev, Pair: p.o.Name, Side: side, Message: message, Hint: hint}
}

// maxLagAtStart is the lag above which a cutover isn't begun: the freeze would last at least as long.
const maxLagAtStart = 10.0

// Check tells whether a cutover (or a rollback) may begin. It changes nothing.
func (p *Pair) Check(ctx context.Context, reverse bool) []preflight.Finding {
	if err := p.awaitReady(ctx); err != nil {
		return []preflight.Finding{p.finding("not-ready", preflight.Error, "", err.Error(), "wait until the pair streams: replicator wait phase=streaming")}
	}
	var out []preflight.Finding
	s := p.lagKnown(ctx)
	wanted := Streaming
	if reverse {
		wanted = Reversed
	}
	if s.Phase != wanted {
		out = append(out, p.finding("not-streaming", preflight.Error, "", fmt.Sprintf("the pair is in phase %s", s.Phase), fmt.Sprintf("wait until it is in phase %s: replicator wait phase=%s", wanted, wanted)))
	}
	if s.LagSeconds == nil {
		out = append(out, p.finding("lag-unknown", preflight.Error, "", "the lag is not known yet", "wait a few seconds, or see the pair's problems"))
	} else if *s.LagSeconds > maxLagAtStart {
		out = append(out, p.finding("lag-high", preflight.Error, "", fmt.Sprintf("the lag is %.1f s", *s.LagSeconds), "wait until it is below 10 s: the freeze would last at least that long"))
	}
	out = append(out, s.Problems...)
	origin, destination := p.ends(reverse)
	for _, sd := range []*side{origin, destination} {
		out = append(out, p.checkSide(ctx, sd, sd == destination)...)
	}
	out = append(out, p.checkCatalogs(ctx, origin, destination)...)
	if reverse {
		return append(out, p.checkLost(ctx, out)...)
	}
	c, err := p.changes(ctx)
	switch {
	case err != nil:
		out = append(out, p.finding("unreachable", preflight.Error, "", err.Error(), "mend the connection"))
	case len(c.joinable) > 0:
		out = append(out, p.finding("table-joining", preflight.Error, "", fmt.Sprintf("%d tables that were just made are not replicated yet, %s among them", len(c.joinable), c.joinable[0].Name), "wait until they are copied"))
	case len(c.remade) > 0:
		out = append(out, p.finding("table-joining", preflight.Error, "", fmt.Sprintf("%d tables that were made anew are not copied yet, %s among them", len(c.remade), c.remade[0].Name), "wait until they are copied"))
	case len(c.lacking.tables) > 0:
		out = append(out, p.lackingProblem(c.lacking))
	case len(c.gone) > 0:
		out = append(out, p.goneProblem(c.gone))
	case len(c.rewritten) > 0:
		out = append(out, p.rewrittenProblem(c.rewritten))
	}
	return out
}

// lagKnown returns the status as soon as the lag is known, which takes a moment after a stream's start, or as it is after a few seconds.
func (p *Pair) lagKnown(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s := p.Status()
		if s.LagSeconds != nil {
			return s
		}
		select {
		case <-ctx.Done():
			return s
		case <-tick.C:
		}
	}
}

// checkSide looks at what a side needs for the stream that will flow from or to it after the switch.
func (p *Pair) checkSide(ctx context.Context, s *side, captures bool) []preflight.Finding {
	var out []preflight.Finding
	if !captures {
		return nil
	}
	var level string
	var mayReplicate bool
	err := s.pool.QueryRow(ctx, `SELECT current_setting('wal_level'), (SELECT rolreplication OR rolsuper OR EXISTS (
			SELECT FROM pg_roles g WHERE g.rolname = 'rds_replication' AND pg_has_role(current_user, g.oid, 'USAGE'))
		FROM pg_roles WHERE rolname = current_user)`).Scan(&level, &mayReplicate)
	switch {
	case err != nil:
		out = append(out, p.finding("unreachable", preflight.Error, s.name, err.Error(), "mend the connection"))
	case level != "logical" || !mayReplicate:
		out = append(out, p.finding("reverse-triggers", preflight.Info, s.name, "the stream back will be captured by triggers, which slow writes down a little",
			"for logical capture set wal_level = logical (on RDS: rds.logical_replication = 1) and give the role REPLICATION (on RDS: GRANT rds_replication)"))
	}
	return out
}

// checkCatalogs compares the definitions on both sides.
func (p *Pair) checkCatalogs(ctx context.Context, origin, destination *side) []preflight.Finding {
	a, err := schema.ReadFingerprint(ctx, origin.pool, p.o.Filter)
	if err != nil {
		return []preflight.Finding{p.finding("unreachable", preflight.Error, origin.name, err.Error(), "mend the connection")}
	}
	b, err := schema.ReadFingerprint(ctx, destination.pool, p.o.Filter)
	if err != nil {
		return []preflight.Finding{p.finding("unreachable", preflight.Error, destination.name, err.Error(), "mend the connection")}
	}
	var out []preflight.Finding
	for _, d := range a.Diff(b) {
		sev := preflight.Warning
		if d.Blocks {
			sev = preflight.Error
		}
		out = append(out, p.finding("schema-differs", sev, destination.name, d.Message, "on the "+destination.name+": "+d.Statement))
		if len(out) >= 20 {
			break
		}
	}
	return out
}

// Prepare does what takes time before the freeze: the gates, the slot and publication of the way back, fresh materialized views.
func (p *Pair) Prepare(ctx context.Context, reverse bool) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	origin, destination := p.ends(reverse)
	tables, err := schema.Tables(ctx, origin.pool, p.o.Filter)
	if err != nil {
		return err
	}
	for _, s := range []*side{destination, origin} {
		if err := s.gate.Install(ctx, tableNames(tables)); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	there, err := schema.Tables(ctx, destination.pool, p.o.Filter)
	if err != nil {
		return err
	}
	if err := p.choose(ctx, !reverse); err != nil {
		return err
	}
	if err := p.begin(ctx, !reverse, there); err != nil {
		return err
	}
	if reverse {
		return nil // whoever rolls back is in a hurry
	}
	if err := p.refresh(ctx); err != nil {
		return err
	}
	if p.o.NoCalmVerify {
		return nil
	}
	report, err := p.VerifyNow(ctx, nil)
	if err != nil {
		return err
	}
	if report.Mismatches > 0 {
		return retry.Stop(&preflight.Hinted{Code: "cutover-verify-mismatch", Err: fmt.Errorf("both sides differ in %d rows, before anything was frozen", report.Mismatches),
			Hint: "see where: replicator verify --pair " + p.o.Name + "; mend it: the same with --repair"})
	}
	return nil
}

// refresh brings the target's materialized views up to date. They follow the application's own refreshes only from the switch on.
func (p *Pair) refresh(ctx context.Context) error {
	all, err := p.stored.Statements(ctx, stageLast)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Type != "MATERIALIZED VIEW DATA" {
			continue
		}
		p.waiting("the target refreshes " + s.Schema + "." + s.Name)
		if _, err := p.target.pool.Exec(ctx, s.SQL); err != nil {
			return fmt.Errorf("target: refresh %s.%s: %w", s.Schema, s.Name, err)
		}
	}
	p.waiting("")
	return nil
}

// Freeze shuts the origin's gate until the deadline and waits until every transaction that had written before has ended. When it
// returns nil, no write of the application's commits before the deadline, nor after it, unless the gate is renewed or opened.
func (p *Pair) Freeze(ctx context.Context, reverse bool, deadline time.Time) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	origin, _ := p.ends(reverse)
	p.mu.Lock()
	if p.freeze == nil || p.freeze.reverse != reverse {
		p.freeze = &freeze{reverse: reverse, token: newToken()}
	}
	f := p.freeze
	p.mu.Unlock()
	ttl := time.Until(deadline)
	if ttl <= 0 {
		return fmt.Errorf("freeze the %s: the deadline has passed", origin.name)
	}
	if err := p.remember(ctx, origin, f.token); err != nil {
		return err
	}
	if err := origin.gate.Arm(ctx, f.token, ttl); err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	p.log.Info("frozen", "side", origin.name, "deadline", deadline)
	if err := origin.gate.Barrier(ctx); err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	fp, err := schema.ReadFingerprint(ctx, origin.pool, p.o.Filter)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	storage, err := schema.ReadStorage(ctx, origin.pool)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	p.mu.Lock()
	f.catalog, f.storage = fp, storage
	p.mu.Unlock()
	return nil
}

// frozen returns the freeze of this direction that this process began.
func (p *Pair) frozen(reverse bool) (*freeze, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freeze == nil || p.freeze.reverse != reverse {
		return nil, errors.New("this process has frozen nothing: begin the attempt anew")
	}
	return p.freeze, nil
}

// Renew moves the freeze's deadline.
func (p *Pair) Renew(ctx context.Context, reverse bool, deadline time.Time) error {
	f, err := p.frozen(reverse)
	if err != nil {
		return err
	}
	p.mu.Lock()
	sealed := f.sealed
	p.mu.Unlock()
	if sealed {
		return nil
	}
	origin, _ := p.ends(reverse)
	err = origin.gate.Renew(ctx, f.token, time.Until(deadline))
	if errors.Is(err, gate.ErrPermanent) {
		return nil // sealed meanwhile
	}
	return err
}

// Fence notes the place in the stream that covers every write from before the freeze.
func (p *Pair) Fence(ctx context.Context, reverse bool) error {
	f, err := p.frozen(reverse)
	if err != nil {
		return err
	}
	fence, err := p.capture(reverse).beat(ctx, "fence")
	if err != nil {
		return err
	}
	p.mu.Lock()
	f.fence = fence
	p.mu.Unlock()
	return nil
}

// Drain waits until the destination durably has everything up to the fence, stops the stream, and makes sure that nobody changed the
// origin's definitions during the freeze.
func (p *Pair) Drain(ctx context.Context, reverse bool) error {
	f, err := p.frozen(reverse)
	if err != nil {
		return err
	}
	p.mu.Lock()
	fence, running := f.fence, p.want == want(reverse)
	p.mu.Unlock()
	if fence == "" {
		return errors.New("drain: no fence was set")
	}
	if running {
		if err := p.awaitDurable(ctx, reverse, fence); err != nil {
			return err
		}
	}
	if err := p.setWant(ctx, wantNone); err != nil {
		return err
	}
	origin, _ := p.ends(reverse)
	fp, err := schema.ReadFingerprint(ctx, origin.pool, p.o.Filter)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	storage, err := schema.ReadStorage(ctx, origin.pool)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	changed := f.catalog.Changed(fp)
	for t, was := range f.storage {
		if now, ok := storage[t]; ok && was.Rewritten(now) {
			changed = append(changed, fmt.Sprintf("table %s was rewritten", t))
		}
	}
	if len(changed) > 0 {
		return &preflight.Hinted{Code: "ddl-in-freeze", Err: fmt.Errorf("the %s's schema was changed during the freeze: %s", origin.name, changed[0]),
			Hint: "keep deployments and migrations away from a cutover, bring the other side's schema up to date and start again"}
	}
	return nil
}

// Sequences sets the destination's sequences beyond the origin's.
func (p *Pair) Sequences(ctx context.Context, reverse bool) error {
	origin, destination := p.ends(reverse)
	seqs, err := schema.ReadSequences(ctx, origin.pool)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	if err := schema.SetSequences(ctx, destination.pool, seqs, p.o.SequenceMargin); err != nil {
		return fmt.Errorf("%s: %w", destination.name, err)
	}
	return nil
}

// Arm starts the stream back and proves it by a row that makes the round trip.
func (p *Pair) Arm(ctx context.Context, reverse bool) error {
	if _, err := p.frozen(reverse); err != nil {
		return err
	}
	origin, destination := p.ends(reverse)
	p.mu.Lock()
	armed := p.want == want(!reverse)
	p.mu.Unlock()
	if !armed {
		// The destination will be written to by the application: what was put aside while it only followed comes back.
		if err := p.leaveReplica(ctx, destination); err != nil {
			return err
		}
		// Everything that the stream forth has written lies below this place; from here on the application's own writes follow.
		start, err := p.capture(!reverse).start(ctx)
		if err != nil {
			return err
		}
		if err := state.StartPosition(ctx, origin.pool, p.id, replication.Direction(!reverse), start); err != nil {
			return fmt.Errorf("%s: %w", origin.name, err)
		}
		if err := p.setWant(ctx, want(!reverse)); err != nil {
			return err
		}
	}
	trip, err := p.capture(!reverse).beat(ctx, "round-trip")
	if err != nil {
		return err
	}
	return p.awaitDurable(ctx, !reverse, trip)
}

// Seal makes the freeze permanent.
func (p *Pair) Seal(ctx context.Context, reverse bool) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	origin, _ := p.ends(reverse)
	st, err := origin.gate.State(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	if st.Armed && st.Permanent {
		return p.enterReplica(ctx, origin)
	}
	f, err := p.frozen(reverse)
	if err != nil {
		return err
	}
	if err := origin.gate.Seal(ctx, f.token); err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	p.mu.Lock()
	f.sealed = true
	p.mu.Unlock()
	// From here on this side only follows.
	return p.enterReplica(ctx, origin)
}

// Open lets the application write to the destination.
func (p *Pair) Open(ctx context.Context, reverse bool) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	_, destination := p.ends(reverse)
	if err := destination.gate.Disarm(ctx); err != nil {
		return fmt.Errorf("%s: %w", destination.name, err)
	}
	p.mu.Lock()
	p.active, p.freeze, p.status.lost = !reverse, nil, nil
	p.lag = lagSamples{}
	p.mu.Unlock()
	if reverse {
		p.phase(Streaming)
	}
	return p.setWant(ctx, want(!reverse))
}

// Retire removes the capture of the direction that has ended.
func (p *Pair) Retire(ctx context.Context, reverse bool) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	_, destination := p.ends(reverse)
	if err := p.validate(ctx, destination); err != nil {
		return err
	}
	return p.capture(reverse).end(ctx)
}

// Thaw returns to replicating as before an attempt: the way back is taken down, the origin's gate opens, the destination's stays shut,
// the stream goes on.
func (p *Pair) Thaw(ctx context.Context, reverse bool) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	origin, destination := p.ends(reverse)
	p.mu.Lock()
	back := p.want == want(!reverse)
	p.mu.Unlock()
	if back {
		if err := p.setWant(ctx, wantNone); err != nil {
			return err
		}
	}
	if err := p.leaveReplica(ctx, origin); err != nil {
		return err
	}
	if err := p.validate(ctx, origin); err != nil {
		return err
	}
	st, err := origin.gate.State(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", origin.name, err)
	}
	if st.Installed {
		if err := origin.gate.Disarm(ctx); err != nil {
			return fmt.Errorf("%s: %w", origin.name, err)
		}
	}
	p.mu.Lock()
	p.freeze = nil
	p.mu.Unlock()
	if st, err = destination.gate.State(ctx); err != nil {
		return fmt.Errorf("%s: %w", destination.name, err)
	} else if st.Installed {
		if err := p.shut(ctx, destination); err != nil {
			return err
		}
	}
	if err := p.setWant(ctx, want(reverse)); err != nil {
		return err
	}
	return p.capture(!reverse).end(ctx)
}
