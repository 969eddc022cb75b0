package admin

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"strconv"
	"time"
)

//go:embed assets
var assets embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"bytes":   humanBytes,
	"seconds": humanSeconds,
	"count":   humanCount,
	"share":   share,
}).ParseFS(assets, "assets/*.html"))

// view is what the page's templates see.
type view struct {
	Status  Status
	Role    string
	CanAct  bool
	Actions actions
	// ActionsOff says why there are no buttons.
	ActionsOff string
	SignedIn   bool
	CanSignIn  bool
	// Phases of the cutover with the state of each, for the row of steps.
	Phases []phaseMark
	// Verification is the latest one.
	Verification Verification
	Error        string
}

// actions are the buttons that make sense now.
type actions struct{ Cutover, Rollback, Abort, Pause, Resume, Verify bool }

// phaseMark is one phase of a cutover: past, now or next.
type phaseMark struct{ Name, State string }

var cutoverRoad = []string{"preflight", "hooks", "freeze", "fence", "drain", "sequences", "verify", "arm", "switch", "done"}

func (s *Server) page(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", s.index)
	mux.HandleFunc("POST /sign-in", s.signIn)
	mux.HandleFunc("POST /sign-out", s.signOut)
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }) // browsers ask
	for _, name := range []string{"page.js", "page.css"} {
		mux.HandleFunc("GET /assets/"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache")
			http.ServeFileFS(w, r, assets, "assets/"+name)
		})
	}
}

// index shows the page, or with ?part=status only what the script puts in place of the old.
func (s *Server) index(w http.ResponseWriter, r *http.Request) {
	role := s.auth.identify(r)
	if role < Viewer {
		s.render(w, http.StatusUnauthorized, "signin.html", view{})
		return
	}
	st, err := s.current(r.Context())
	if err != nil {
		s.render(w, http.StatusServiceUnavailable, "signin.html", view{Error: err.Error()})
		return
	}
	_, cookieErr := r.Cookie(sessionCookie)
	v := view{Status: st, Role: role.String(), CanAct: role == Operator, SignedIn: cookieErr == nil && !s.auth.open(), CanSignIn: s.auth.operator != nil,
		Actions: possible(st), Phases: road(st.Cutover),
		Verification: s.verifications.get()}
	switch {
	case s.auth.operator == nil:
		v.ActionsOff = "Actions are switched off: configure an operator token (REPLICATOR_TOKEN, or admin.tokens.operator) and restart replicator."
	case role < Operator:
		v.ActionsOff = "You are signed in as a viewer: sign in with the operator's token to act."
	}
	name := "page.html"
	if r.URL.Query().Get("part") == "status" {
		name = "status.html"
	}
	s.render(w, http.StatusOK, name, v)
}

// possible tells which actions make sense in this state; the backend decides in the end.
func possible(s Status) actions {
	running := s.Cutover.Running()
	return actions{
		Cutover:  !running && s.Phase == Streaming,
		Rollback: s.Phase == Reversed || (running && s.Cutover.Phase == "switch"),
		Abort:    running && s.Cutover.Phase != "switch" && s.Cutover.Phase != "aborting",
		Pause:    !running && !s.Paused,
		Resume:   s.Paused,
		Verify:   !running && (s.Phase == Streaming || s.Phase == Reversed),
	}
}

func road(c CutoverStatus) []phaseMark {
	var marks []phaseMark
	at := -1
	for i, p := range cutoverRoad {
		if p == c.Phase {
			at = i
		}
	}
	for i, p := range cutoverRoad {
		m := phaseMark{p, "next"}
		switch {
		case c.Phase == "done" || i < at:
			m.State = "past"
		case i == at:
			m.State = "now"
		}
		marks = append(marks, m)
	}
	if c.Phase == "aborting" || c.Phase == "aborted" {
		marks = append(marks, phaseMark{c.Phase, "back"})
	}
	return marks
}

func (s *Server) signIn(w http.ResponseWriter, r *http.Request) {
	if s.auth.crossOrigin.Check(r) != nil {
		s.render(w, http.StatusForbidden, "signin.html", view{Error: "This form was sent by another site. Sign in here."})
		return
	}
	secure := r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https"
	cookie, ok := s.auth.signIn(r.PostFormValue("token"), secure, time.Now())
	if !ok {
		s.o.Log.Warn("sign-in with a wrong token", "from", r.RemoteAddr)
		s.render(w, http.StatusUnauthorized, "signin.html", view{Error: "That is not a token of this replicator."})
		return
	}
	http.SetCookie(w, cookie)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) signOut(w http.ResponseWriter, r *http.Request) {
	if s.auth.crossOrigin.Check(r) == nil {
		http.SetCookie(w, s.auth.signOut(r))
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) render(w http.ResponseWriter, status int, name string, v view) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, v); err != nil {
		s.o.Log.Error("render the page", "error", err)
		http.Error(w, "the page could not be made: look at replicator's log", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w)
}

// humanBytes writes a number of bytes for people; nil is unknown.
func humanBytes(v any) string {
	n, ok := number(v)
	if !ok {
		return "unknown"
	}
	for _, u := range []struct {
		name string
		size float64
	}{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= u.size {
			return strconv.FormatFloat(n/u.size, 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatFloat(n, 'f', 0, 64) + " B"
}

// humanSeconds writes a length of time for people; nil is unknown.
func humanSeconds(v any) string {
	n, ok := number(v)
	switch {
	case !ok:
		return "unknown"
	case n == 0:
		return "0 s"
	case n < 1:
		return strconv.FormatFloat(math.Ceil(n*1000), 'f', 0, 64) + " ms"
	case n < 120:
		return strconv.FormatFloat(n, 'f', 1, 64) + " s"
	case n < 7200:
		return strconv.FormatFloat(n/60, 'f', 0, 64) + " min"
	}
	return strconv.FormatFloat(n/3600, 'f', 1, 64) + " h"
}

// humanCount groups the digits of a count; nil is unknown.
func humanCount(v any) string {
	n, ok := number(v)
	if !ok {
		return "unknown"
	}
	digits := strconv.FormatInt(int64(n), 10)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + " " + digits[i:]
	}
	return digits
}

// share returns a part of a whole in percent, 0 where the whole is unknown.
func share(part, whole any) string {
	p, ok1 := number(part)
	w, ok2 := number(whole)
	if !ok1 || !ok2 || w <= 0 {
		return "0"
	}
	return fmt.Sprintf("%.0f", min(100, 100*p/w))
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case int64:
		return float64(n), true
	case float64:
		return n, true
	case *int64:
		if n != nil {
			return float64(*n), true
		}
	case *float64:
		if n != nil {
			return *n, true
		}
	}
	return 0, false
}
