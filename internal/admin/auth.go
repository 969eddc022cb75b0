package admin

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Role is what somebody may do; a higher one includes the lower.
type Role int

// The roles: nobody, who may look, who may act.
const (
	Nobody Role = iota
	Viewer
	Operator
)

// String returns the role's name.
func (r Role) String() string { return [...]string{"nobody", "viewer", "operator"}[r] }

// Tokens are the bearer tokens of the roles; an empty one is not configured.
type Tokens struct{ Operator, Viewer string }

// sessionLife bounds a sign-in on the page; maxSessions bounds how many are remembered.
const (
	sessionLife   = 12 * time.Hour
	maxSessions   = 1000
	sessionCookie = "replicator_session"
)

// auth decides who a request comes from. It keeps hashes of the tokens only; comparing hashes of equal length in constant time
// tells nothing about a token by how long it takes.
type auth struct {
	operator, viewer *[sha256.Size]byte
	crossOrigin      *http.CrossOriginProtection

	mu       sync.Mutex
	sessions map[[sha256.Size]byte]session // by the hash of the cookie's value
}

type session struct {
	role    Role
	expires time.Time
}

func newAuth(t Tokens) *auth {
	return &auth{operator: hashed(t.Operator), viewer: hashed(t.Viewer), crossOrigin: http.NewCrossOriginProtection(), sessions: map[[sha256.Size]byte]session{}}
}

func hashed(token string) *[sha256.Size]byte {
	if token == "" {
		return nil
	}
	h := sha256.Sum256([]byte(token))
	return &h
}

// roleOf returns the role of a token.
func (a *auth) roleOf(token string) Role {
	h := sha256.Sum256([]byte(token))
	switch {
	case a.operator != nil && subtle.ConstantTimeCompare(h[:], a.operator[:]) == 1:
		return Operator
	case a.viewer != nil && subtle.ConstantTimeCompare(h[:], a.viewer[:]) == 1:
		return Viewer
	}
	return Nobody
}

// open tells that no token is configured: everybody may look.
func (a *auth) open() bool { return a.operator == nil && a.viewer == nil }

// identify returns the role of whoever sent the request. A session counts only for requests that this site's own pages make: the
// cookie is SameSite=Strict, and for actions the browser's word on the origin is checked as well.
func (a *auth) identify(r *http.Request) Role {
	role := Nobody
	if a.open() {
		role = Viewer
	}
	if token, ok := bearer(r); ok {
		return max(role, a.roleOf(token))
	}
	if c, err := r.Cookie(sessionCookie); err == nil && a.crossOrigin.Check(r) == nil {
		role = max(role, a.sessionRole(c.Value, time.Now()))
	}
	return role
}

func bearer(r *http.Request) (token string, ok bool) {
	scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(token), ok && strings.EqualFold(scheme, "Bearer")
}

// require returns nil if the request's sender has the role, else the document that says what is missing.
func (a *auth) require(r *http.Request, role Role) *ProblemDocument {
	has := a.identify(r)
	if has >= role {
		return nil
	}
	if role == Operator && a.operator == nil {
		return problemf(http.StatusForbidden, "no-operator-token", "Actions are switched off",
			"configure an operator token (REPLICATOR_TOKEN, or admin.tokens.operator in the file), restart replicator and send the token")
	}
	if has == Nobody {
		return problemf(http.StatusUnauthorized, "unauthorized", "A token is needed",
			"send Authorization: Bearer TOKEN; the commands take it from REPLICATOR_TOKEN or --token-file")
	}
	return problemf(http.StatusForbidden, "forbidden", "A viewer can't act", "use the operator's token")
}

// signIn makes a session of a token and returns its cookie; ok is false for a wrong token.
func (a *auth) signIn(token string, secure bool, now time.Time) (cookie *http.Cookie, ok bool) {
	role := a.roleOf(token)
	if role == Nobody {
		return nil, false
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	value := base64.RawURLEncoding.EncodeToString(raw[:])
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, s := range a.sessions {
		if now.After(s.expires) || len(a.sessions) >= maxSessions {
			delete(a.sessions, id)
		}
	}
	a.sessions[sha256.Sum256([]byte(value))] = session{role, now.Add(sessionLife)}
	return &http.Cookie{Name: sessionCookie, Value: value, Path: "/", MaxAge: int(sessionLife.Seconds()), HttpOnly: true, Secure: secure,
		SameSite: http.SameSiteStrictMode}, true
}

func (a *auth) signOut(r *http.Request) *http.Cookie {
	if c, err := r.Cookie(sessionCookie); err == nil {
		a.mu.Lock()
		delete(a.sessions, sha256.Sum256([]byte(c.Value)))
		a.mu.Unlock()
	}
	return &http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

func (a *auth) sessionRole(cookie string, now time.Time) Role {
	id := sha256.Sum256([]byte(cookie))
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.sessions[id]
	if !ok || now.After(s.expires) {
		return Nobody
	}
	return s.role
}
