package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"replicator/cutover"
	"replicator/internal/admin"
	"replicator/internal/admin/admintest"
	"replicator/internal/preflight"
	"replicator/metrics"
)

const (
	operatorToken = "operator-secret"
	viewerToken   = "viewer-secret"
)

type world struct {
	*testing.T
	backend *admintest.Backend
	server  *admin.Server
	base    string
}

func start(t *testing.T, change ...func(*admin.Options)) world {
	b := admintest.New()
	o := admin.Options{Backend: b, Tokens: admin.Tokens{Operator: operatorToken, Viewer: viewerToken}}
	for _, c := range change {
		c(&o)
	}
	s := admintest.Serve(t, o)
	return world{t, b, s, "http://" + s.AdminAddr()}
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) problem(t *testing.T) admin.ProblemDocument {
	t.Helper()
	var p admin.ProblemDocument
	if ct := a.header.Get("Content-Type"); ct != "application/problem+json" {
		t.Errorf("content type %q, want application/problem+json; body %s", ct, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), &p); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	if p.Title == "" || p.Hint == "" || p.Status != a.status || p.Type == "" || p.Code == "" {
		t.Errorf("an incomplete problem document: %s", a.body)
	}
	return p
}

func (w world) do(method, path, token, body string, header ...string) answer {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, w.base+path, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

// TestRoles asks for every path with every token under every configuration.
func TestRoles(t *testing.T) {
	views := [][2]string{{"GET", "/api/v1/status"}, {"GET", "/api/v1/cutover"}, {"GET", "/api/v1/verify"}}
	acts := [][2]string{{"POST", "/api/v1/cutover"}, {"POST", "/api/v1/cutover/x/abort"}, {"POST", "/api/v1/rollback"}, {"POST", "/api/v1/finish"},
		{"POST", "/api/v1/verify"}, {"POST", "/api/v1/resync"}, {"POST", "/api/v1/pause"}, {"POST", "/api/v1/resume"}}
	for _, c := range []struct {
		name        string
		tokens      admin.Tokens
		token       string
		view, acted int // 0: let through
	}{
		{"both tokens, none sent", admin.Tokens{Operator: operatorToken, Viewer: viewerToken}, "", 401, 401},
		{"both tokens, a wrong one sent", admin.Tokens{Operator: operatorToken, Viewer: viewerToken}, "operator-secre", 401, 401},
		{"both tokens, the viewer's sent", admin.Tokens{Operator: operatorToken, Viewer: viewerToken}, viewerToken, 0, 403},
		{"both tokens, the operator's sent", admin.Tokens{Operator: operatorToken, Viewer: viewerToken}, operatorToken, 0, 0},
		{"no tokens", admin.Tokens{}, "", 0, 403},
		{"no tokens, one sent", admin.Tokens{}, operatorToken, 0, 403},
		{"viewer's only, none sent", admin.Tokens{Viewer: viewerToken}, "", 401, 403},
		{"viewer's only, sent", admin.Tokens{Viewer: viewerToken}, viewerToken, 0, 403},
		{"operator's only, none sent", admin.Tokens{Operator: operatorToken}, "", 401, 401},
		{"operator's only, sent", admin.Tokens{Operator: operatorToken}, operatorToken, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, func(o *admin.Options) { o.Tokens = c.tokens })
			check := func(want int, requests [][2]string) {
				for _, r := range requests {
					a := w.do(r[0], r[1], c.token, "")
					if want == 0 {
						if a.status == 401 || a.status == 403 {
							t.Errorf("%s %s answers %d, want it let through", r[0], r[1], a.status)
						}
						continue
					}
					if a.status != want {
						t.Errorf("%s %s answers %d, want %d", r[0], r[1], a.status, want)
						continue
					}
					a.problem(t)
					if (want == 401) != (a.header.Get("WWW-Authenticate") != "") {
						t.Errorf("%s %s: WWW-Authenticate is %q", r[0], r[1], a.header.Get("WWW-Authenticate"))
					}
				}
			}
			check(c.view, views)
			check(c.acted, acts)
			if c.acted != 0 && len(w.backend.Calls()) != 0 {
				t.Errorf("the backend was asked to act: %v", w.backend.Calls())
			}
		})
	}
}

func TestStatusHasTheContractsFields(t *testing.T) {
	w := start(t)
	w.backend.Set(func(s *admin.Status) { s.Redis[0].Phase = admin.Copying; s.Redis[0].LagSeconds = nil })
	a := w.do("GET", "/api/v1/status", viewerToken, "")
	var doc map[string]any
	if err := json.Unmarshal([]byte(a.body), &doc); err != nil {
		t.Fatal(err)
	}
	at := func(path string) any {
		var v any = doc
		for _, k := range strings.Split(path, ".") {
			switch x := v.(type) {
			case map[string]any:
				y, ok := x[k]
				if !ok {
					t.Errorf("the status has no %s", path)
				}
				v = y
			case []any:
				v = x[0].(map[string]any)[k]
			}
		}
		return v
	}
	for path, want := range map[string]any{
		"migration": "shop", "phase": "copying", "leader": true, "postgres.name": "main", "postgres.capture": "logical", "postgres.phase": "streaming",
		"postgres.lag_bytes": 4096.0, "postgres.lag_seconds": 0.25, "postgres.retained_bytes": 4096.0, "postgres.tables.total": 6.0, "postgres.tables.copied": 6.0,
		"postgres.copy.rows": 1234567.0, "postgres.copy.bytes": 98765432.0, "postgres.copy.eta_seconds": nil, "redis.name": "sidekiq", "redis.phase": "copying",
		"redis.lag_seconds": nil, "redis.dirty_keys": 3.0, "redis.keys.copied": 77.0, "redis.gaps": 0.0, "cutover.attempt": nil, "cutover.phase": "idle",
		"cutover.freeze_seconds": nil, "problems.code": "retained-bytes", "problems.message": "the slot holds 9 GB <of> log", "problems.hint": "find out what the pair waits for",
	} {
		if got := at(path); got != want {
			t.Errorf("%s is %v, want %v", path, got, want)
		}
	}
	for _, list := range []string{"postgres", "redis", "problems", "cutover.steps", "cutover.findings"} {
		if _, ok := at(list).([]any); !ok {
			t.Errorf("%s is %v, want a list", list, at(list))
		}
	}
}

func TestErrorsAreProblemDocuments(t *testing.T) {
	w := start(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		hint               string
	}{
		{"GET", "/api/v1/nothing", "", 404, "/api/v1/status"},
		{"GET", "/api/", "", 404, "/api/v1/status"},
		{"GET", "/api/v2/status", "", 404, "/api/v1/status"},
		{"DELETE", "/api/v1/status", "", 405, "use GET"},
		{"PUT", "/api/v1/cutover", "", 405, "use GET or POST"},
		{"GET", "/api/v1/finish", "", 405, "use POST"},
		{"POST", "/api/v1/cutover", "{", 400, "docs/json.md"},
		{"POST", "/api/v1/cutover", `{"dryrun":true}`, 400, "docs/json.md"},
		{"POST", "/api/v1/cutover", `{}{}`, 400, "one JSON document"},
		{"POST", "/api/v1/cutover", `{"freeze_budget":"30"}`, 400, "30s"},
		{"POST", "/api/v1/rollback", `{"freeze_budget":"-1s"}`, 400, "30s"},
		{"POST", "/api/v1/resync", ``, 400, `{"pair":"main"}`},
		{"POST", "/api/v1/resync", `{"pair":"mian"}`, 404, "main, sidekiq"},
		{"POST", "/api/v1/verify", `{"pair":"mian"}`, 404, "main, sidekiq"},
		{"POST", "/api/v1/cutover/none/abort", "", 404, "look at the status"},
		{"POST", "/api/v1/resync", `{"pair":"` + strings.Repeat("x", 300<<10) + `"}`, 413, "at most"},
	} {
		a := w.do(c.method, c.path, operatorToken, c.body)
		p := a.problem(t)
		if a.status != c.status || !strings.Contains(p.Hint, c.hint) {
			t.Errorf("%s %s %.40s answers %d with hint %q, want %d with %q", c.method, c.path, c.body, a.status, p.Hint, c.status, c.hint)
		}
		if c.status == 405 && a.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
	}
}

func TestRefusalsOfTheBackend(t *testing.T) {
	w := start(t)
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{&cutover.RunningError{Attempt: "a-1", Phase: cutover.Drain}, 409, "cutover-running"},
		{&preflight.Hinted{Code: "already", Err: cutover.ErrAlreadySwitched, Hint: "use rollback"}, 409, "already"},
		{&preflight.Hinted{Code: "budget", Err: cutover.ErrBudget, Hint: "give more"}, 400, "budget"},
		{cutover.ErrNotReady, 503, "internal"},
		{&preflight.Hinted{Code: "not-leading", Err: admin.ErrNotReady, Hint: "wait"}, 503, "not-leading"},
		{&preflight.Hinted{Code: "drift", Err: errors.New("columns differ"), Hint: "run ALTER TABLE"}, 409, "drift"},
		{context.DeadlineExceeded, 504, "timed-out"},
		{errors.New("boom"), 500, "internal"},
	} {
		w.backend.Fail(c.err)
		a := w.do("POST", "/api/v1/cutover", operatorToken, `{"freeze_budget":"5s"}`)
		p := a.problem(t)
		if a.status != c.status || p.Code != c.code {
			t.Errorf("%v: %d %s, want %d %s", c.err, a.status, p.Code, c.status, c.code)
		}
		if errors.Is(c.err, cutover.ErrRunning) && p.Attempt != "a-1" {
			t.Errorf("the conflict doesn't name the running attempt: %s", a.body)
		}
	}
}

func TestCutoverByAPI(t *testing.T) {
	w := start(t)
	a := w.do("POST", "/api/v1/cutover", operatorToken, `{"dry_run":false,"freeze_budget":"30s"}`)
	if a.status != 202 || strings.TrimSpace(a.body) != `{"attempt":"attempt-1"}` {
		t.Fatalf("%d %s, want 202 and the attempt", a.status, a.body)
	}
	if p := w.do("POST", "/api/v1/rollback", operatorToken, "").problem(t); p.Status != 409 || p.Attempt != "attempt-1" {
		t.Errorf("a second start: %+v, want 409 with the running attempt", p)
	}
	if a := w.do("GET", "/api/v1/cutover", viewerToken, ""); !strings.Contains(a.body, `"phase":"preflight"`) {
		t.Errorf("GET cutover: %s", a.body)
	}
	if a := w.do("POST", "/api/v1/cutover/attempt-1/abort", operatorToken, ""); a.status != 202 {
		t.Errorf("abort: %d %s", a.status, a.body)
	}
	if got, want := w.backend.Calls()[0], "start reverse=false dry_run=false budget=30s"; got != want {
		t.Errorf("the backend was asked %q, want %q", got, want)
	}
}

func TestCaughtUp(t *testing.T) {
	w := start(t)
	c, err := admin.NewClient(w.base, viewerToken)
	if err != nil {
		t.Fatal(err)
	}
	var p *admin.ProblemDocument
	if err := c.CaughtUp(t.Context(), 20*time.Millisecond); !errors.As(err, &p) || p.Status != 504 || !strings.Contains(p.Detail, "4 kB behind") {
		t.Errorf("%v, want 504 saying how far behind", err)
	}
	result := make(chan error, 1)
	go func() { result <- c.CaughtUp(t.Context(), time.Minute) }()
	w.backend.LetCatchUp()
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestVerification(t *testing.T) {
	w := start(t)
	c, _ := admin.NewClient(w.base, operatorToken)
	if v, err := c.Verification(t.Context()); err != nil || v.State != "none" || v.ID != nil {
		t.Fatalf("before the first: %+v, %v", v, err)
	}
	run := func() admin.Verification {
		started, err := c.StartVerify(t.Context(), admin.VerifyRequest{Pair: "main", Tables: []string{"public.users"}, Repair: true})
		if err != nil || started.ID == nil {
			t.Fatalf("start: %+v, %v", started, err)
		}
		for {
			v, err := c.Verification(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if v.State != "running" {
				if *v.ID != *started.ID {
					t.Errorf("the report is of %s, started was %s", *v.ID, *started.ID)
				}
				return v
			}
		}
	}
	w.backend.Verified(admin.VerifiedPair{Pair: "main", Compared: 10, Mismatches: 2}, admin.VerifiedPair{Pair: "sidekiq", Mismatches: 1})
	if v := run(); v.State != "done" || v.Mismatches == nil || *v.Mismatches != 3 || len(v.Pairs) != 2 {
		t.Errorf("got %+v, want done with 3 mismatches", v)
	}
	w.backend.Fail(&preflight.Hinted{Code: "unreachable", Err: errors.New("no route to the source"), Hint: "check the network"})
	if v := run(); v.State != "failed" || v.Problem == nil || v.Problem.Hint != "check the network" {
		t.Errorf("got %+v, want failed with the hint", v)
	}
	if got, want := w.backend.Calls()[0], "verify pair=main tables=[public.users] repair=true"; got != want {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func TestHealth(t *testing.T) {
	reg := prometheus.NewRegistry()
	metrics.NewLeader(reg).Set(true)
	ready := errors.New("the target's journal has not been read")
	w := start(t, func(o *admin.Options) { o.Ready = func() error { return ready }; o.Gatherer = reg })
	for _, base := range []string{w.base, "http://" + w.server.MetricsAddr()} {
		w.base = base
		if a := w.do("GET", "/healthz", "", ""); a.status != 200 {
			t.Errorf("healthz answers %d", a.status)
		}
		if a := w.do("GET", "/readyz", "", ""); a.status != 503 || !strings.Contains(a.body, ready.Error()) {
			t.Errorf("readyz answers %d %q, want 503 saying why", a.status, a.body)
		}
	}
	if a := w.do("GET", "/metrics", "", ""); a.status != 200 || !strings.Contains(a.body, "replicator_leader 1") {
		t.Errorf("metrics: %d %.200s", a.status, a.body)
	}
	if a := w.do("GET", "/api/v1/status", operatorToken, ""); a.status != 404 {
		t.Errorf("the metrics listener serves the API: %d", a.status)
	}
	w.base = "http://" + w.server.AdminAddr()
	if a := w.do("GET", "/metrics", operatorToken, ""); a.status != 404 {
		t.Errorf("the admin listener serves metrics: %d", a.status)
	}
}

func TestPprofIsOffAndForOperators(t *testing.T) {
	w := start(t)
	if a := w.do("GET", "/debug/pprof/", operatorToken, ""); a.status != 404 {
		t.Errorf("off: %d, want 404", a.status)
	}
	w = start(t, func(o *admin.Options) { o.Pprof = true })
	for token, want := range map[string]int{"": 401, viewerToken: 403, operatorToken: 200} {
		if a := w.do("GET", "/debug/pprof/", token, ""); a.status != want {
			t.Errorf("with token %q: %d, want %d", token, a.status, want)
		}
	}
}

func TestEvents(t *testing.T) {
	w := start(t)
	c, _ := admin.NewClient(w.base, viewerToken)
	// The change comes right behind the first status that the listener is told.
	w.backend.Next(func(s *admin.Status) { s.Postgres[0].Phase = admin.Stopped; s.Problems = nil })
	var seen []string
	done := errors.New("seen enough")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := c.Events(ctx, func(e admin.Received) error {
		switch e.Type {
		case admin.EventStatus:
			if len(seen) == 0 {
				w.server.Publish(admin.Event{Type: admin.EventCutover, Data: admin.CutoverStatus{Phase: "fence"}})
			}
		case admin.EventPhase:
			var p admin.PhaseChange
			if err := json.Unmarshal(e.Data, &p); err != nil {
				return err
			}
			seen = append(seen, fmt.Sprintf("phase %s %s>%s", p.Pair, p.From, p.To))
		case admin.EventSolved:
			var p admin.Problem
			if err := json.Unmarshal(e.Data, &p); err != nil {
				return err
			}
			seen = append(seen, "solved "+p.Code)
		case admin.EventCutover:
			var s admin.CutoverStatus
			if err := json.Unmarshal(e.Data, &s); err != nil {
				return err
			}
			seen = append(seen, "cutover "+s.Phase)
		}
		if len(seen) >= 4 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Fatalf("%v after %v", err, seen)
	}
	for _, want := range []string{"phase  streaming>stopped", "phase main streaming>stopped", "solved retained-bytes", "cutover fence"} {
		if !strings.Contains(strings.Join(seen, "|"), want) {
			t.Errorf("no %q among %q", want, seen)
		}
	}
}

// TestStopsWithListeners: the cleanup of admintest.Serve fails the test if a listener keeps the server from stopping.
func TestStopsWithListeners(t *testing.T) {
	ended := make(chan error, 1)
	t.Run("server", func(t *testing.T) {
		w := start(t)
		c, _ := admin.NewClient(w.base, viewerToken)
		first := make(chan struct{})
		go func() {
			once := false
			ended <- c.Events(context.Background(), func(admin.Received) error {
				if !once {
					close(first)
				}
				once = true
				return nil
			})
		}()
		<-first
	})
	if err := <-ended; !errors.Is(err, admin.ErrUnreachable) {
		t.Errorf("the listener was told %v, want that the stream ended", err)
	}
}

func TestClientTellsAnotherServerApart(t *testing.T) {
	w := start(t)
	c, _ := admin.NewClient("http://"+w.server.MetricsAddr(), operatorToken)
	if _, err := c.Status(t.Context()); !errors.Is(err, admin.ErrUnreachable) {
		t.Errorf("%v, want ErrUnreachable", err)
	}
	for _, addr := range []string{"", "ftp://x", "http://", "%zz"} {
		if _, err := admin.NewClient(addr, ""); err == nil {
			t.Errorf("%q is taken for an address", addr)
		}
	}
}
