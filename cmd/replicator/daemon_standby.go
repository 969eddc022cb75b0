package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"replicator/internal/admin"
	"replicator/internal/postgres"
	"replicator/internal/preflight"
	"replicator/replication/state"
)

// every calls do whenever d has passed, until ctx ends or do fails, and leaves it out once the migration is finished.
func (t *term) every(ctx context.Context, d time.Duration, do func() error) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if t.isFinished() {
			continue
		}
		if err := do(); err != nil {
			return err
		}
	}
}

// publish writes the leader's status where standbys find it.
func (t *term) publish(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity) error {
	return t.every(ctx, time.Second, func() error {
		document, err := json.Marshal(t.status())
		if err != nil {
			return err
		}
		if err := state.Publish(ctx, pool, id, string(document)); err != nil {
			t.log.Debug("publishing the status", "error", err) // the standbys' copy is old then; the lead's own watch tells a real loss
		}
		return nil
	})
}

// request is an action that a standby hands on.
type request struct {
	Cutover *admin.CutoverRequest `json:"cutover,omitempty"`
	Attempt string                `json:"attempt,omitempty"`
	Verify  *admin.VerifyRequest  `json:"verify,omitempty"`
	Resync  *admin.ResyncRequest  `json:"resync,omitempty"`
	Paused  bool                  `json:"paused,omitempty"`
}

// answer is what became of it.
type answer struct {
	Attempt  string               `json:"attempt,omitempty"`
	Verified []admin.VerifiedPair `json:"verified,omitempty"`
	Code     string               `json:"code,omitempty"`
	Error    string               `json:"error,omitempty"`
	Hint     string               `json:"hint,omitempty"`
}

// answer carries out what standbys hand on.
func (t *term) answer(ctx context.Context, pool *pgxpool.Pool, id postgres.Identity) error {
	return t.every(ctx, 500*time.Millisecond, func() error {
		requests, err := state.Requests(ctx, pool, id)
		if err != nil {
			t.log.Debug("reading the standbys' requests", "error", err)
			return nil
		}
		for _, r := range requests {
			a := t.carryOut(ctx, r.Action, r.Body)
			text, err := json.Marshal(a)
			if err != nil {
				return err
			}
			if err := state.Answer(ctx, pool, r.ID, string(text)); err != nil {
				t.log.Debug("answering a standby's request", "error", err)
			}
		}
		return nil
	})
}

func (t *term) carryOut(ctx context.Context, action, body string) answer {
	var r request
	err := json.Unmarshal([]byte(body), &r)
	var a answer
	if err == nil {
		t.log.Info("carrying out a standby's request", "action", action)
		switch action {
		case "cutover":
			a.Attempt, err = t.StartCutover(ctx, *r.Cutover)
		case "abort":
			err = t.AbortCutover(ctx, r.Attempt)
		case "finish":
			err = t.Finish(ctx)
		case "verify":
			a.Verified, err = t.Verify(ctx, *r.Verify)
		case "resync":
			err = t.Resync(ctx, *r.Resync)
		case "pause":
			err = t.SetPaused(ctx, r.Paused)
		case "caught-up":
			err = t.CaughtUp(ctx)
		default:
			err = fmt.Errorf("the leader does not know the action %q: run the same version everywhere", action)
		}
	}
	if err != nil {
		f := problem(err, "", "")
		a.Code, a.Error, a.Hint = f.Code, f.Message, f.Hint
	}
	return a
}

// standby answers from what the leader has written down, and hands actions to it.
type standby struct {
	pool      *pgxpool.Pool
	migration string
}

func (s *standby) status(ctx context.Context) (admin.Status, error) {
	var out admin.Status
	text, err := state.Published(ctx, s.pool, s.migration)
	if err != nil || text == "" {
		return out, err
	}
	return out, json.Unmarshal([]byte(text), &out)
}

// ask hands an action to the leader and waits for the answer.
func (s *standby) ask(ctx context.Context, action string, r request) (answer, error) {
	var a answer
	body, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	text, err := state.Ask(ctx, s.pool, s.migration, action, string(body))
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, &preflight.Hinted{Code: a.Code, Err: errors.New(a.Error), Hint: a.Hint}
	}
	return a, nil
}

// StartCutover hands it on.
func (s *standby) StartCutover(ctx context.Context, r admin.CutoverRequest) (string, error) {
	a, err := s.ask(ctx, "cutover", request{Cutover: &r})
	return a.Attempt, err
}

// AbortCutover hands it on.
func (s *standby) AbortCutover(ctx context.Context, attempt string) error {
	_, err := s.ask(ctx, "abort", request{Attempt: attempt})
	return err
}

// Finish hands it on.
func (s *standby) Finish(ctx context.Context) error {
	_, err := s.ask(ctx, "finish", request{})
	return err
}

// Verify hands it on.
func (s *standby) Verify(ctx context.Context, r admin.VerifyRequest) ([]admin.VerifiedPair, error) {
	a, err := s.ask(ctx, "verify", request{Verify: &r})
	return a.Verified, err
}

// Resync hands it on.
func (s *standby) Resync(ctx context.Context, r admin.ResyncRequest) error {
	_, err := s.ask(ctx, "resync", request{Resync: &r})
	return err
}

// SetPaused hands it on.
func (s *standby) SetPaused(ctx context.Context, paused bool) error {
	_, err := s.ask(ctx, "pause", request{Paused: paused})
	return err
}

// CaughtUp hands it on.
func (s *standby) CaughtUp(ctx context.Context) error {
	_, err := s.ask(ctx, "caught-up", request{})
	return err
}
