package pair

import (
	"context"
	"errors"
	"fmt"

	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/internal/retry"
	"replicator/replication"
	"replicator/replication/state"
)

// CaughtUp returns when everything that had been committed on the origin before the call is durable on the destination.
func (p *Pair) CaughtUp(ctx context.Context) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	for {
		reverse := p.isActive()
		if _, err := p.running(ctx, reverse); err != nil {
			return err
		}
		var now replication.Position
		err := retry.Do(ctx, retry.Policy{}, func(ctx context.Context) (err error) {
			if now, err = p.capture(reverse).beat(ctx, "caught-up"); err != nil && !postgres.IsTransient(err) {
				err = retry.Stop(err)
			}
			return err
		})
		if err != nil {
			return err
		}
		err = p.awaitDurable(ctx, reverse, now)
		if p.isActive() == reverse || ctx.Err() != nil {
			return err
		}
	}
}

// Pause stops the stream until Resume. The source goes on holding back its write-ahead log.
func (p *Pair) Pause(ctx context.Context) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	frozen := p.freeze != nil
	p.mu.Unlock()
	if frozen {
		return &preflight.Hinted{Code: "frozen", Err: errors.New("a cutover is under way"), Hint: "abort it first: replicator cutover abort"}
	}
	if err := p.setWant(ctx, wantNone); err != nil {
		return err
	}
	p.showPaused()
	return nil
}

func (p *Pair) showPaused() {
	p.phase(Stopped)
	p.waiting("paused by the operator: replicator resume")
}

// Resume goes on after Pause; without one it does nothing.
func (p *Pair) Resume(ctx context.Context) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	frozen, active, ph := p.freeze != nil, p.active, p.status.Phase
	p.mu.Unlock()
	if frozen || ph == Finished {
		return nil
	}
	p.waiting("")
	if ph == Stopped {
		p.phase(Starting)
	}
	return p.setWant(ctx, want(active))
}

// Resync copies tables again under a new seam; the stream stands still meanwhile. Without names it begins anew with all of them and a new
// slot, which is also the remedy for a slot that was lost.
func (p *Pair) Resync(ctx context.Context, tables []replication.TableName) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	frozen, active, ph := p.freeze != nil, p.active, p.status.Phase
	p.mu.Unlock()
	switch {
	case frozen:
		return &preflight.Hinted{Code: "frozen", Err: errors.New("a cutover is under way"), Hint: "abort it first: replicator cutover abort"}
	case active:
		return &preflight.Hinted{Code: "reversed", Err: errors.New("the target is the primary side now, and its contents must not be replaced by the source's"), Hint: "roll back first: replicator rollback"}
	case ph == Finished:
		return &preflight.Hinted{Code: "finished", Err: errors.New("the migration is finished"), Hint: "nothing is left to copy"}
	}
	if err := p.setWant(ctx, wantNone); err != nil {
		return err
	}
	err := p.reset(ctx, tables)
	// Whatever came of it, the stream goes on.
	return errors.Join(err, p.setWant(ctx, want(false)))
}

func (p *Pair) reset(ctx context.Context, tables []replication.TableName) error {
	stored, err := p.stored.Load(ctx)
	if err != nil {
		return err
	}
	switch stored.Step {
	case state.StepNew, state.StepDumped, state.StepTables:
		return nil // nothing is copied yet
	}
	n, err := p.stored.ResetCopies(ctx, tables)
	if err != nil {
		return err
	}
	if int(n) < len(tables) {
		return fmt.Errorf("resync: %d of the %d tables named are not replicated by pair %q", len(tables)-int(n), len(tables), p.o.Name)
	}
	if len(tables) == 0 {
		stored.Step = state.StepTables
		return p.stored.Save(ctx, stored)
	}
	return nil
}

// Finish removes all that was made on both sides: slots, publications, gates, our schema; what was changed of the application's own
// objects is put back. Data stays where it is. It can be repeated until it succeeds.
func (p *Pair) Finish(ctx context.Context) error {
	if err := p.awaitReady(ctx); err != nil {
		return err
	}
	if err := p.setWant(ctx, wantNone); err != nil {
		return err
	}
	if err := p.remove(ctx); err != nil {
		return err
	}
	p.phase(Finished)
	p.waiting("")
	p.clearProblem()
	return nil
}

// Uninstall does what Finish does, for a pair that nobody runs any more: instead of Run, never beside it.
func (p *Pair) Uninstall(ctx context.Context) error {
	defer p.disconnect()
	if err := p.connect(ctx); err != nil {
		return err
	}
	if err := p.open(ctx); err != nil {
		return err
	}
	return p.remove(ctx)
}

// remove takes everything of ours off both sides, whatever capture it was made by.
func (p *Pair) remove(ctx context.Context) error {
	for _, reverse := range []bool{false, true} {
		for _, c := range []capture{logicalCapture{p, reverse}, triggerCapture{p, reverse}} {
			if err := c.end(ctx); err != nil {
				return err
			}
		}
	}
	there, err := state.Exists(ctx, p.target.pool)
	if err != nil {
		return fmt.Errorf("target: %w", err)
	}
	for _, s := range []*side{p.source, p.target} {
		if there {
			if err := p.putBack(ctx, s); err != nil {
				return err
			}
		}
		if err := s.gate.Uninstall(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := state.Drop(ctx, s.pool); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}
