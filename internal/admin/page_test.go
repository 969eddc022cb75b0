package admin_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"replicator/internal/admin"
)

const form = "application/x-www-form-urlencoded"

func (w world) signIn(token string, header ...string) answer {
	w.Helper()
	return w.do("POST", "/sign-in", "", url.Values{"token": {token}}.Encode(), append([]string{"Content-Type", form}, header...)...)
}

func TestSignIn(t *testing.T) {
	w := start(t)
	if a := w.do("GET", "/", "", ""); a.status != 401 || !strings.Contains(a.body, "/sign-in") || strings.Contains(a.body, "shop") {
		t.Errorf("without a session: %d %s", a.status, a.body)
	}
	if a := w.signIn("wrong"); a.status != 401 || a.header.Get("Set-Cookie") != "" {
		t.Errorf("a wrong token: %d, cookie %q", a.status, a.header.Get("Set-Cookie"))
	}
	if a := w.signIn(operatorToken, "Origin", "https://evil.example"); a.status != 403 || a.header.Get("Set-Cookie") != "" {
		t.Errorf("from another site: %d, cookie %q", a.status, a.header.Get("Set-Cookie"))
	}
	a := w.signIn(operatorToken)
	set := a.header.Get("Set-Cookie")
	if a.status != 303 || !strings.Contains(set, "HttpOnly") || !strings.Contains(set, "SameSite=Strict") || strings.Contains(set, operatorToken) {
		t.Fatalf("sign-in: %d, cookie %q", a.status, set)
	}
	if s := w.signIn(operatorToken, "X-Forwarded-Proto", "https").header.Get("Set-Cookie"); !strings.Contains(s, "Secure") {
		t.Errorf("behind TLS the cookie is %q", s)
	}
	cookie, _, _ := strings.Cut(set, ";")
	page := w.do("GET", "/", "", "", "Cookie", cookie)
	for _, want := range []string{"shop", "streaming", "the slot holds 9 GB &lt;of&gt; log", "1 234 567 rows", "Cut over…", "Sign out"} {
		if !strings.Contains(page.body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if a := w.do("POST", "/api/v1/pause", "", "", "Cookie", cookie, "Sec-Fetch-Site", "same-origin"); a.status != 200 {
		t.Errorf("an action of our own page: %d %s", a.status, a.body)
	}
	for _, h := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.example"}, {"Sec-Fetch-Site", "same-site"}} {
		if a := w.do("POST", "/api/v1/pause", "", "", append([]string{"Cookie", cookie}, h...)...); a.status != 401 {
			t.Errorf("an action from another site (%v): %d, want 401", h, a.status)
		}
	}
	w.do("POST", "/sign-out", "", "", "Cookie", cookie)
	if a := w.do("GET", "/", "", "", "Cookie", cookie); a.status != 401 {
		t.Errorf("after signing out: %d", a.status)
	}
}

func TestPageForWhomMayOnlyLook(t *testing.T) {
	w := start(t)
	cookie, _, _ := strings.Cut(w.signIn(viewerToken).header.Get("Set-Cookie"), ";")
	a := w.do("GET", "/", "", "", "Cookie", cookie)
	if a.status != 200 || strings.Contains(a.body, "data-do=") || !strings.Contains(a.body, "sign in with the operator") {
		t.Errorf("a viewer's page: %d %s", a.status, a.body)
	}
	w = start(t, func(o *admin.Options) { o.Tokens = admin.Tokens{} })
	a = w.do("GET", "/", "", "")
	if a.status != 200 || strings.Contains(a.body, "data-do=") || !strings.Contains(a.body, "REPLICATOR_TOKEN") {
		t.Errorf("without tokens: %d %s", a.status, a.body)
	}
}

func TestPageShowsTheCutover(t *testing.T) {
	w := start(t, func(o *admin.Options) { o.Tokens.Viewer = "" })
	attempt, held, took := "a-1", 0.4, 0.1
	w.backend.Set(func(s *admin.Status) {
		s.Cutover = admin.CutoverStatus{Attempt: &attempt, Phase: "drain", FreezeSeconds: &held, WaitingFor: "main to drain 3 MB",
			Steps:   []admin.CutoverStep{{Name: "freeze", Seconds: &took}, {Name: "drain"}},
			Problem: &admin.Problem{Message: "a hook failed", Hint: "mend it"}}
	})
	a := w.do("GET", "/?part=status", operatorToken, "")
	for _, want := range []string{"main to drain 3 MB", "400 ms", `class="past">fence`, `class="now" aria-current="step">drain`, "/api/v1/cutover/a-1/abort", "a hook failed", "mend it"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the page lacks %q:\n%s", want, a.body)
		}
	}
	if strings.Contains(a.body, "Cut over…") || strings.Contains(a.body, "<html") {
		t.Error("the part has a second start, or is a whole page")
	}
}

func TestPageShowsTheVerification(t *testing.T) {
	w := start(t, func(o *admin.Options) { o.Tokens.Viewer = "" })
	w.backend.Verified(admin.VerifiedPair{Pair: "main", Mismatches: 1, Tables: []admin.VerifiedTable{
		{Table: "public.same", Equal: true}, {Table: "public.users", SourceRows: 3, TargetRows: 2, Differences: []admin.Difference{{Kind: "missing", Key: "id=<7>"}}}}})
	w.do("POST", "/api/v1/verify", operatorToken, "")
	var body string
	for !strings.Contains(body, "1 differences") {
		if body = w.do("GET", "/?part=status", operatorToken, "").body; strings.Contains(body, "failed") {
			t.Fatal(body)
		}
	}
	if !strings.Contains(body, "missing <code>id=&lt;7&gt;</code>") || strings.Contains(body, "public.same") {
		t.Errorf("the differences aren't told:\n%s", body)
	}
}

func TestSecurityHeadersAndAssets(t *testing.T) {
	w := start(t)
	for path, kind := range map[string]string{"/": "text/html", "/assets/page.js": "text/javascript", "/assets/page.css": "text/css", "/api/v1/x": "application/problem+json"} {
		a := w.do("GET", path, "", "")
		if !strings.HasPrefix(a.header.Get("Content-Type"), kind) || !strings.Contains(a.header.Get("Content-Security-Policy"), "default-src 'none'") ||
			a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
		// Nothing may be loaded from elsewhere, and nothing inline runs under the policy.
		for _, bad := range []string{"http://", "https://", "<script>", "onclick", "style="} {
			if strings.Contains(a.body, bad) {
				t.Errorf("%s contains %s", path, bad)
			}
		}
	}
	if a := w.do("GET", "/assets/page.html", "", ""); a.status != http.StatusNotFound {
		t.Errorf("templates are served: %d", a.status)
	}
}
