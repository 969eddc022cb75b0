package admin

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// verifications runs one verification at a time and keeps the latest one's report.
type verifications struct {
	backend Backend
	hub     *hub
	running sync.WaitGroup

	mu     sync.Mutex
	count  int
	latest Verification
}

func newVerifications(b Backend, h *hub) *verifications {
	return &verifications{backend: b, hub: h, latest: Verification{State: "none", Pairs: []VerifiedPair{}}}
}

// start begins a verification that lives as long as ctx, or refuses because one is running.
func (v *verifications) start(ctx context.Context, req VerifyRequest) (Verification, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.latest.State == "running" {
		return Verification{}, problemf(http.StatusConflict, "verification-running", "A verification is running", "wait for its end: GET /api/v1/verify tells")
	}
	v.count++
	now := time.Now().UTC()
	id := fmt.Sprintf("%s-%d", now.Format("20060102T150405"), v.count)
	v.latest = Verification{ID: &id, State: "running", Request: req, StartedAt: &now, Pairs: []VerifiedPair{}}
	v.running.Go(func() {
		pairs, err := v.backend.Verify(ctx, req)
		v.finish(pairs, err)
		v.hub.publish(Event{EventVerification, v.get()})
	})
	return v.latest, nil
}

func (v *verifications) finish(pairs []VerifiedPair, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now().UTC()
	v.latest.EndedAt = &now
	if err != nil {
		v.latest.State, v.latest.Problem = "failed", problemOf(err)
		return
	}
	sum := 0
	for i := range pairs {
		sum += pairs[i].Mismatches
		if pairs[i].Tables == nil {
			pairs[i].Tables = []VerifiedTable{}
		}
		for j := range pairs[i].Tables {
			if pairs[i].Tables[j].Differences == nil {
				pairs[i].Tables[j].Differences = []Difference{}
			}
		}
	}
	v.latest.State, v.latest.Mismatches = "done", &sum
	if pairs != nil {
		v.latest.Pairs = pairs
	}
}

func (v *verifications) get() Verification {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.latest
}

// wait returns when none is running.
func (v *verifications) wait() { v.running.Wait() }

func (a *api) verify(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req VerifyRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	if req.Pair != "" {
		if err := a.knownPair(r.Context(), req.Pair); err != nil {
			return 0, nil, err
		}
	}
	v, err := a.verifications.start(a.running, req)
	return http.StatusAccepted, v, err
}

func (a *api) verification(_ http.ResponseWriter, _ *http.Request) (int, any, error) {
	return http.StatusOK, a.verifications.get(), nil
}
