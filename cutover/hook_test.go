package cutover

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replicator/internal/retry"
)

func sample() Delivery {
	return Delivery{Migration: "shop", Attempt: "20260301T120000.000-0a0b0c0d", Event: AtSwitch, Direction: Reverse, DryRun: true, At: t0(), N: 2}
}

const sampleDocument = `{"migration":"shop","attempt":"20260301T120000.000-0a0b0c0d","event":"switch","direction":"reverse","dry_run":true,"at":"2026-03-01T12:00:00Z"}`

// means builds a configured hook's means.
func means(t *testing.T, c HookConfig) Means {
	t.Helper()
	c.At = AtSwitch
	hooks, err := NewHooks([]HookConfig{c})
	if err != nil {
		t.Fatal(err)
	}
	return hooks[0].Means
}

// repeatable reports whether retry.Do would call again after err.
func repeatable(err error) bool {
	calls := 0
	_ = retry.Do(context.Background(), retry.Policy{First: 1, Attempts: 2}, func(context.Context) error { calls++; return err })
	return calls == 2
}

func TestWebhookDelivers(t *testing.T) {
	var body []byte
	var header http.Header
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ = io.ReadAll(r.Body)
		header = r.Header
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	m := means(t, HookConfig{Webhook: &WebhookConfig{URL: server.URL + "/s3cret?k=s3cret", Secret: "key"}})
	if err := m.Call(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	if string(body) != sampleDocument {
		t.Errorf("body %s, want %s", body, sampleDocument)
	}
	if got := header.Get("X-Replicator-Delivery"); got != "20260301T120000.000-0a0b0c0d/switch/2" {
		t.Errorf("delivery %q", got)
	}
	signature := header.Get("X-Replicator-Signature")
	if err := CheckSignature("key", signature, body, time.Now(), time.Minute); err != nil {
		t.Errorf("signature %q: %v", signature, err)
	}
	for name, err := range map[string]error{
		"another key":  CheckSignature("other", signature, body, time.Now(), time.Minute),
		"another body": CheckSignature("key", signature, append(body, ' '), time.Now(), time.Minute),
		"a replay":     CheckSignature("key", signature, body, time.Now().Add(time.Hour), time.Minute),
		"no signature": CheckSignature("key", "", body, time.Now(), time.Minute),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if strings.Contains(m.String(), "s3cret") {
		t.Errorf("the name shows the path: %s", m)
	}
}

// TestSignIsStable: receivers compute the same; the value is from `printf '%s' '1700000000.{}' | openssl dgst -sha256 -hmac key`.
func TestSignIsStable(t *testing.T) {
	const want = "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
	if got := Sign("key", time.Unix(1700000000, 0), []byte("{}")); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
}

func TestWebhookFailures(t *testing.T) {
	leak := "s3cret"
	for _, c := range []struct {
		name    string
		status  int
		answer  string
		want    string
		repeats bool
	}{
		{"server error", 503, "database\nis \x1b down", "answered 503 Service Unavailable: database is down", true},
		{"busy", 429, "", "answered 429 Too Many Requests", true},
		{"refused", 403, "who are you", "answered 403 Forbidden: who are you", false},
		{"redirected", 302, "", "answered 302 Found", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			followed := false
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					followed = true
					return
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.answer)
			}))
			defer server.Close()
			err := means(t, HookConfig{Webhook: &WebhookConfig{URL: server.URL + "/" + leak}}).Call(t.Context(), sample())
			if err == nil || err.Error() != c.want || repeatable(err) != c.repeats || followed {
				t.Errorf("error %v (repeats %t, followed %t), want %q (repeats %t)", err, repeatable(err), followed, c.want, c.repeats)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		server.Close()
		err := means(t, HookConfig{Webhook: &WebhookConfig{URL: server.URL + "/" + leak}}).Call(t.Context(), sample())
		if err == nil || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), leak) || !repeatable(err) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		release := make(chan struct{})
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
		defer server.Close()
		defer close(release)
		err := means(t, HookConfig{Webhook: &WebhookConfig{URL: server.URL, Timeout: 50 * time.Millisecond}}).Call(t.Context(), sample())
		if err == nil || err.Error() != "no answer within 50ms" || !repeatable(err) {
			t.Errorf("error %v", err)
		}
	})
}

func shell(script string) *ExecConfig { return &ExecConfig{Command: []string{"/bin/sh", "-c", script}} }

func TestExecDelivers(t *testing.T) {
	t.Setenv("TARGET_DATABASE_URL", "postgres://u:s3cret@h/db")
	t.Setenv("REPLICATOR_TOKEN", "s3cret")
	dir := t.TempDir()
	c := shell(fmt.Sprintf("cat > %[1]s/input; env > %[1]s/env", dir))
	c.Env = map[string]string{"CHANNEL": "ops"}
	if err := means(t, HookConfig{Exec: c}).Call(t.Context(), sample()); err != nil {
		t.Fatal(err)
	}
	input, err := os.ReadFile(filepath.Join(dir, "input"))
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(input, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(sampleDocument), &want); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("input %s, want %s", input, sampleDocument)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"CHANNEL=ops", "REPLICATOR_DELIVERY=" + sample().ID(), "REPLICATOR_EVENT=switch", "REPLICATOR_DRY_RUN=true", "PATH="} {
		if !strings.Contains(string(env), line) {
			t.Errorf("the environment lacks %s:\n%s", line, env)
		}
	}
	if strings.Contains(string(env), "s3cret") {
		t.Errorf("the environment holds our secrets:\n%s", env)
	}
}

func TestExecFailures(t *testing.T) {
	t.Run("status", func(t *testing.T) {
		err := means(t, HookConfig{Exec: shell("seq 1000; echo no such queue >&2; exit 7")}).Call(t.Context(), sample())
		if err == nil || !strings.HasPrefix(err.Error(), "ended with exit status 7: …") || !strings.HasSuffix(err.Error(), "1000 no such queue") ||
			len(err.Error()) > outputTail+100 || !repeatable(err) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		err := means(t, HookConfig{Exec: &ExecConfig{Command: []string{"/no/such/program"}}}).Call(t.Context(), sample())
		if err == nil || !strings.Contains(err.Error(), "no such file") || repeatable(err) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("timeout kills its children too", func(t *testing.T) {
		pipe := filepath.Join(t.TempDir(), "alive")
		c := shell(fmt.Sprintf("echo begun; (while :; do echo x >> %s; sleep 0.02; done) & wait", pipe))
		c.Timeout = 300 * time.Millisecond
		err := means(t, HookConfig{Exec: c}).Call(t.Context(), sample())
		if err == nil || err.Error() != "did not end within 300ms and was killed: begun" || !repeatable(err) {
			t.Errorf("error %v", err)
		}
		size := func() int64 {
			info, err := os.Stat(pipe)
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		before := size()
		<-time.After(200 * time.Millisecond) // ten of its rounds
		if after := size(); after != before {
			t.Errorf("a child of the killed program still runs: %d bytes, then %d", before, after)
		}
	})
}

// TestHookConfigProblems: all at once, each with its place, none with a secret.
func TestHookConfigProblems(t *testing.T) {
	_, err := NewHooks([]HookConfig{
		{At: "noon", Webhook: &WebhookConfig{URL: "ftp://s3cret", Timeout: -1}},
		{At: AtBefore},
		{At: AtAfter, Webhook: &WebhookConfig{}, Exec: &ExecConfig{}},
		{At: AtAbort, Webhook: &WebhookConfig{URL: "http://s3cret:x%zz@h/"}},
		{At: AtAbort, Exec: &ExecConfig{Command: []string{"true"}, Env: map[string]string{"A=B": ""}}},
	})
	if err == nil {
		t.Fatal("bad hooks were accepted")
	}
	golden(t, "hook-config-problems.golden", err.Error()+"\n")
	if strings.Contains(err.Error(), "s3cret") {
		t.Error("a problem shows a secret")
	}
	if hooks, err := NewHooks(nil); err != nil || len(hooks) != 0 {
		t.Errorf("no hooks: %v, %v", hooks, err)
	}
}
