package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"replicator/cutover"
	"replicator/internal/preflight"
)

// ProblemDocument is the body of every error under /api (RFC 9457), with content type application/problem+json.
type ProblemDocument struct {
	// Type identifies the kind of problem; about:blank where the HTTP status says it all.
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// Code is the stable, kebab-case name of the problem.
	Code string `json:"code"`
	// Hint says what to do.
	Hint string `json:"hint"`
	// Attempt is the running one, where that is what stands in the way.
	Attempt string `json:"attempt,omitempty"`
}

// Error makes the document the client's error.
func (p *ProblemDocument) Error() string {
	s := p.Title
	if p.Detail != "" {
		s = p.Detail
	}
	if p.Hint != "" {
		s += ": " + p.Hint
	}
	return s
}

func problemf(status int, code, title, hint string) *ProblemDocument {
	return &ProblemDocument{Type: "about:blank", Status: status, Code: code, Title: title, Hint: hint}
}

// ErrNotReady is what a backend's error wraps while the process is starting; clients try again.
var ErrNotReady = errors.New("this process does not lead the migration yet")

// refusals gives cutover's refusals their HTTP status.
var refusals = []struct {
	err    error
	status int
	title  string
}{
	{cutover.ErrRunning, http.StatusConflict, "A cutover attempt is running"},
	{cutover.ErrAlreadySwitched, http.StatusConflict, "The targets accept the writes already"},
	{cutover.ErrNotSwitched, http.StatusConflict, "The sources accept the writes already"},
	{cutover.ErrTooLate, http.StatusConflict, "The attempt has switched"},
	{cutover.ErrNoAttempt, http.StatusNotFound, "No such attempt is running"},
	{cutover.ErrBudget, http.StatusBadRequest, "The freeze budget is out of bounds"},
	{cutover.ErrNotReady, http.StatusServiceUnavailable, "Not ready yet"},
	{ErrNotReady, http.StatusServiceUnavailable, "Not ready yet"},
}

// documentOf turns a backend's error into the document to answer with.
func documentOf(err error) *ProblemDocument {
	var doc *ProblemDocument
	if errors.As(err, &doc) {
		return doc
	}
	var hinted *preflight.Hinted
	isHinted := errors.As(err, &hinted)
	switch {
	case isHinted:
		doc = problemf(http.StatusConflict, hinted.Code, "Not possible now", hinted.Hint)
		doc.Detail = hinted.Err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		doc = problemf(http.StatusGatewayTimeout, "timed-out", "It took too long", "look at the status for what it waits for, then try again")
		doc.Detail = err.Error()
	case errors.Is(err, context.Canceled):
		doc = problemf(http.StatusServiceUnavailable, "stopping", "replicator is stopping", "try again once it is back")
	default:
		doc = problemf(http.StatusInternalServerError, "internal", "It didn't work", "look at the status and at replicator's log for the cause, then try again")
		doc.Detail = err.Error()
	}
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			doc.Status, doc.Title = r.status, r.title
		}
	}
	var running *cutover.RunningError
	if errors.As(err, &running) {
		doc.Attempt = running.Attempt
	}
	if doc.Code == "" {
		doc.Code = "refused"
	}
	if doc.Hint == "" {
		doc.Hint = "look at the status and at replicator's log for the cause, then try again"
	}
	return doc
}

// problemOf is the same for the documents that carry a problem within them.
func problemOf(err error) *Problem {
	d := documentOf(err)
	p := &Problem{Code: d.Code, Severity: preflight.Error, Message: d.Title, Hint: d.Hint}
	if d.Detail != "" {
		p.Message = d.Detail
	}
	return p
}

func writeProblem(w http.ResponseWriter, p *ProblemDocument) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client has gone if this fails
}

func writeJSON(w http.ResponseWriter, status int, doc any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(doc) // the client has gone if this fails
}
