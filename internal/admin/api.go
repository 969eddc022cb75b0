package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// api serves /api/v1. running ends with the server.
type api struct {
	*Server
	running context.Context //nolint:containedctx // the server's life, which outlasts the requests that start actions
}

// handle answers a request whose sender has the role; what it returns is written as JSON with the status, or as a problem.
type handle func(w http.ResponseWriter, r *http.Request) (status int, doc any, err error)

// route is one path of the API, with what answers each method.
type route struct {
	path    string
	methods map[string]endpoint
}

type endpoint struct {
	role   Role
	answer handle
}

func (a *api) routes() []route {
	return []route{
		{"/api/v1/status", map[string]endpoint{"GET": {Viewer, a.status}}},
		{"/api/v1/events", map[string]endpoint{"GET": {Viewer, a.events}}},
		{"/api/v1/caught-up", map[string]endpoint{"POST": {Viewer, a.caughtUp}}},
		{"/api/v1/cutover", map[string]endpoint{"GET": {Viewer, a.cutover}, "POST": {Operator, a.start(false)}}},
		{"/api/v1/cutover/{attempt}/abort", map[string]endpoint{"POST": {Operator, a.abort}}},
		{"/api/v1/rollback", map[string]endpoint{"POST": {Operator, a.start(true)}}},
		{"/api/v1/finish", map[string]endpoint{"POST": {Operator, a.finish}}},
		{"/api/v1/verify", map[string]endpoint{"GET": {Viewer, a.verification}, "POST": {Operator, a.verify}}},
		{"/api/v1/resync", map[string]endpoint{"POST": {Operator, a.resync}}},
		{"/api/v1/pause", map[string]endpoint{"POST": {Operator, a.pause(true)}}},
		{"/api/v1/resume", map[string]endpoint{"POST": {Operator, a.pause(false)}}},
	}
}

func (a *api) register(mux *http.ServeMux) {
	for _, route := range a.routes() {
		mux.HandleFunc(route.path, func(w http.ResponseWriter, r *http.Request) { a.dispatch(w, r, route) })
	}
	mux.HandleFunc("/api/", func(w http.ResponseWriter, _ *http.Request) {
		paths := make([]string, 0, len(a.routes()))
		for _, route := range a.routes() {
			paths = append(paths, route.path)
		}
		writeProblem(w, problemf(http.StatusNotFound, "not-found", "No such path", "the API has "+strings.Join(paths, ", ")))
	})
}

func (a *api) dispatch(w http.ResponseWriter, r *http.Request, route route) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	e, ok := route.methods[method]
	if !ok {
		var allowed []string
		for m := range route.methods {
			allowed = append(allowed, m)
		}
		slices.Sort(allowed)
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		writeProblem(w, problemf(http.StatusMethodNotAllowed, "method-not-allowed", "This path doesn't take "+r.Method, "use "+strings.Join(allowed, " or ")))
		return
	}
	if p := a.auth.require(r, e.role); p != nil {
		if p.Status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="replicator"`)
		}
		writeProblem(w, p)
		return
	}
	status, doc, err := e.answer(w, r)
	switch {
	case err != nil:
		p := documentOf(err)
		if p.Status >= http.StatusInternalServerError {
			a.o.Log.Warn("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		writeProblem(w, p)
	case doc != nil:
		writeJSON(w, status, doc)
	}
}

// body reads the request's document over what into already holds; none at all is fine.
func body(r *http.Request, into any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	if errors.Is(err, io.EOF) {
		return nil
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return problemf(http.StatusRequestEntityTooLarge, "too-large", "The request is too large", fmt.Sprintf("send at most %d bytes", maxBody))
	case err != nil:
		p := problemf(http.StatusBadRequest, "bad-request", "The request isn't understood", "send the JSON document that docs/json.md describes")
		p.Detail = err.Error()
		return p
	case dec.More():
		return problemf(http.StatusBadRequest, "bad-request", "More than one document was sent", "send one JSON document")
	}
	return nil
}

func (a *api) status(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	s, err := a.current(r.Context())
	return http.StatusOK, s, err
}

func (s *Server) current(ctx context.Context) (Status, error) {
	st, err := s.o.Backend.Status(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	if st.Time.IsZero() {
		st.Time = time.Now().UTC()
	}
	return st.normalize(), nil
}

func (a *api) cutover(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	s, err := a.current(r.Context())
	return http.StatusOK, s.Cutover, err
}

// CutoverAccepted is the document that answers a cutover or a rollback.
type CutoverAccepted struct {
	Attempt string `json:"attempt"`
}

// startDocument is the body of a cutover or a rollback.
type startDocument struct {
	DryRun       bool   `json:"dry_run"`
	FreezeBudget string `json:"freeze_budget,omitempty"`
}

func (a *api) start(reverse bool) handle {
	return func(_ http.ResponseWriter, r *http.Request) (int, any, error) {
		var doc startDocument
		if err := body(r, &doc); err != nil {
			return 0, nil, err
		}
		req := CutoverRequest{Reverse: reverse, DryRun: doc.DryRun, By: a.auth.identify(r).String() + " from " + r.RemoteAddr}
		if doc.FreezeBudget != "" {
			d, err := time.ParseDuration(doc.FreezeBudget)
			if err != nil || d <= 0 {
				return 0, nil, problemf(http.StatusBadRequest, "bad-request", fmt.Sprintf("freeze_budget %q is not a duration", doc.FreezeBudget), `write a number with its unit, as in "30s"`)
			}
			req.FreezeBudget = d
		}
		attempt, err := a.o.Backend.StartCutover(r.Context(), req)
		return http.StatusAccepted, CutoverAccepted{attempt}, err
	}
}

// Done is the document that answers an action which has nothing else to say.
type Done struct {
	Done bool `json:"done"`
}

func (a *api) abort(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	err := a.o.Backend.AbortCutover(r.Context(), r.PathValue("attempt"))
	return http.StatusAccepted, Done{true}, err
}

// long lets a request take its time: it ends with the server, not with answerTime.
func (a *api) long(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
}

func (a *api) finish(w http.ResponseWriter, r *http.Request) (int, any, error) {
	if err := body(r, &struct{}{}); err != nil {
		return 0, nil, err
	}
	a.long(w)
	return http.StatusOK, Done{true}, a.o.Backend.Finish(a.running)
}

// caughtUpDocument is the body of caught-up.
type caughtUpDocument struct {
	Timeout string `json:"timeout,omitempty"`
}

func (a *api) caughtUp(w http.ResponseWriter, r *http.Request) (int, any, error) {
	var doc caughtUpDocument
	if err := body(r, &doc); err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(a.running, cancel)()
	if doc.Timeout != "" {
		d, err := time.ParseDuration(doc.Timeout)
		if err != nil || d <= 0 {
			return 0, nil, problemf(http.StatusBadRequest, "bad-request", fmt.Sprintf("timeout %q is not a duration", doc.Timeout), `write a number with its unit, as in "30s"`)
		}
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, d)
		defer stop()
	}
	a.long(w)
	err := a.o.Backend.CaughtUp(ctx)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		p := problemf(http.StatusGatewayTimeout, "timed-out", "Not caught up in time", "look at the status for the lag and for what the pairs wait for")
		p.Detail = err.Error()
		return 0, nil, p
	}
	return http.StatusOK, Done{true}, err
}

func (a *api) resync(_ http.ResponseWriter, r *http.Request) (int, any, error) {
	var req ResyncRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	if req.Pair == "" {
		return 0, nil, problemf(http.StatusBadRequest, "bad-request", "No pair is named", `name the pair, as in {"pair":"main"}; the status lists them`)
	}
	if err := a.knownPair(r.Context(), req.Pair); err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, Done{true}, a.o.Backend.Resync(r.Context(), req)
}

// knownPair refuses a pair that the migration hasn't.
func (a *api) knownPair(ctx context.Context, name string) error {
	s, err := a.current(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range s.Postgres {
		names = append(names, p.Name)
	}
	for _, p := range s.Redis {
		names = append(names, p.Name)
	}
	if slices.Contains(names, name) {
		return nil
	}
	return problemf(http.StatusNotFound, "no-such-pair", fmt.Sprintf("There is no pair %q", name), "the pairs are "+strings.Join(names, ", "))
}

func (a *api) pause(paused bool) handle {
	return func(_ http.ResponseWriter, r *http.Request) (int, any, error) {
		if err := body(r, &struct{}{}); err != nil {
			return 0, nil, err
		}
		return http.StatusOK, Done{true}, a.o.Backend.SetPaused(r.Context(), paused)
	}
}
