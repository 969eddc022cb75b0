package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"replicator/internal/admin"
	"replicator/internal/admin/admintest"
	"replicator/internal/preflight"
)

const testToken = "test-token"

// buffer is a bytes.Buffer that a command may write while a test reads it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// session is a made-up migration and what one command said about it.
type session struct {
	t       *testing.T
	backend *admintest.Backend
	server  *admin.Server
	env     []string
	stdin   string
	out     *buffer
	err     *buffer
}

func newSession(t *testing.T) *session {
	b := admintest.New()
	s := admintest.Serve(t, admin.Options{Backend: b, Tokens: admin.Tokens{Operator: testToken}})
	return &session{t: t, backend: b, server: s, env: []string{"REPLICATOR_ADDR=http://" + s.AdminAddr(), "REPLICATOR_TOKEN=" + testToken}, out: &buffer{}, err: &buffer{}}
}

// run runs a command and returns its exit status; its output is in out and err.
func (s *session) run(args ...string) int {
	s.t.Helper()
	s.out, s.err = &buffer{}, &buffer{}
	return s.background(s.t.Context(), args...)()
}

// background starts a command; what it returns waits for its end.
func (s *session) background(ctx context.Context, args ...string) (wait func() int) {
	c := &cli{stdin: strings.NewReader(s.stdin), stdout: s.out, stderr: s.err, env: fakeEnv(s.env...), version: "v1.2.3"}
	ended := make(chan int, 1)
	go func() { ended <- c.execute(ctx, args) }()
	return func() int {
		select {
		case status := <-ended:
			return status
		case <-time.After(30 * time.Second):
			s.t.Fatalf("replicator %v doesn't end; it said %q", args, s.err)
			return -1
		}
	}
}

// says waits until standard error contains text.
func (s *session) says(text string) {
	s.t.Helper()
	deadline := time.After(20 * time.Second)
	for !strings.Contains(s.err.String(), text) {
		select {
		case <-deadline:
			s.t.Fatalf("never said %q, but %q", text, s.err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (s *session) want(status, wanted int, out, err string) {
	s.t.Helper()
	if status != wanted || !strings.Contains(s.out.String(), out) || !strings.Contains(s.err.String(), err) {
		s.t.Errorf("status %d, out %q, err %q; want status %d, out with %q, err with %q", status, s.out, s.err, wanted, out, err)
	}
}

func (s *session) cutover(phase, outcome string, change ...func(*admin.CutoverStatus)) {
	s.backend.Set(func(st *admin.Status) {
		st.Cutover.Phase, st.Cutover.Outcome = phase, outcome
		for _, c := range change {
			c(&st.Cutover)
		}
	})
}

func TestUsage(t *testing.T) {
	s := newSession(t)
	for _, args := range [][]string{
		{"bogus"}, {"status", "--bogus"}, {"status", "extra"}, {"wait"}, {"wait", "a", "b"}, {"wait", "nothing"}, {"wait", "phase=streeming"}, {"wait", "cutover=phase"},
		{"wait", "caught-up", "--timeout", "soon"}, {"wait", "caught-up", "--timeout", "-1s"}, {"cutover"}, {"cutover", "bogus"}, {"cutover", "start", "now"},
		{"cutover", "start", "--freeze-budget", "-1s"}, {"resync"}, {"verify", "--table", "public.users"}, {"status", "--addr", "ftp://x"},
		{"status", "--token-file", "/nonexistent"}, {"run", "--config", "/nonexistent"}, {"check", "--config", "testdata/config/empty.bad.yml"}, {"run"},
		{"demo", "--capture", "magic"}, {"demo", "--rate", "0"},
	} {
		if status := s.run(args...); status != 2 || s.out.String() != "" && args[0] != "cutover" || s.err.String() == "" {
			t.Errorf("replicator %v ends with %d, want 2; out %q, err %q", args, status, s.out, s.err)
		}
	}
	if calls := s.backend.Calls(); len(calls) != 0 {
		t.Errorf("wrong usage did something: %v", calls)
	}
}

// TestHelpTeaches requires of every command an explanation, and of those with flags of their own an example.
func TestHelpTeaches(t *testing.T) {
	c := &cli{stdout: &buffer{}, stderr: &buffer{}}
	for _, cmd := range c.root().Commands() {
		if cmd.Short == "" || cmd.Name() != "version" && cmd.Long == "" {
			t.Errorf("%s has no explanation", cmd.Name())
		}
		switch cmd.Name() {
		case "version", "pause", "resume", "cutover":
			continue
		}
		if !strings.Contains(cmd.Example, "replicator "+cmd.Name()) {
			t.Errorf("%s has no example", cmd.Name())
		}
	}
	s := &session{t: t, out: &buffer{}, err: &buffer{}}
	s.want(s.run("--help"), 0, "replicator cutover start --wait", "")
	s.want(s.run("cutover", "start", "--help"), 0, "--freeze-budget", "")
	s.want(s.run("version"), 0, "replicator v1.2.3", "")
	s.want(s.run("version", "--json"), 0, `"version": "v1.2.3"`, "")
}

func TestUnreachable(t *testing.T) {
	s := newSession(t)
	s.env = []string{"REPLICATOR_ADDR=127.0.0.1:1"}
	for _, args := range [][]string{{"status"}, {"status", "--watch"}, {"pause"}, {"cutover", "start", "--wait"}, {"cutover", "status"}, {"cutover", "abort"}, {"finish", "--yes"}, {"verify"},
		{"wait", "caught-up", "--timeout", "300ms"}, {"wait", "phase=streaming", "--timeout", "300ms"}} {
		s.want(s.run(args...), 3, "", "")
		if s.out.String() != "" {
			t.Errorf("%v printed %q", args, s.out)
		}
	}
	s.want(s.run("status"), 3, "", "--addr or REPLICATOR_ADDR")
}

func TestTokens(t *testing.T) {
	s := newSession(t)
	s.env[1] = "REPLICATOR_TOKEN=wrong"
	s.want(s.run("pause"), 1, "", "REPLICATOR_TOKEN or --token-file")
	s.want(s.run("status"), 3, "", "REPLICATOR_TOKEN or --token-file")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(testToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.want(s.run("pause", "--token-file", file), 0, "", "resume")
}

func TestStatus(t *testing.T) {
	s := newSession(t)
	s.backend.Set(func(st *admin.Status) {
		st.Postgres[0].WaitingFor, st.Postgres[0].CaptureReason = "pid 42 to end", "the source grants logical replication"
	})
	s.want(s.run("status"), 0, `migration shop: streaming
  main     postgres/logical  streaming  lag 0.25s  behind 4.1kB  tables 6/6  rows 1234567
  sidekiq  redis             streaming  lag 0.25s  dirty 3       keys 77     gaps 0
  main is captured by logical, because: the source grants logical replication
  main waits for pid 42 to end
warning: main source: the slot holds 9 GB <of> log [retained-bytes]
    find out what the pair waits for
`, "")
	var doc admin.Status
	status := s.run("status", "--json")
	if err := json.Unmarshal([]byte(s.out.String()), &doc); status != 0 || err != nil || doc.Migration != "shop" || s.err.String() != "" {
		t.Errorf("status %d, %v, err %q: %s", status, err, s.err, s.out)
	}
}

func TestStatusWatch(t *testing.T) {
	s := newSession(t)
	ctx, stop := context.WithCancel(t.Context())
	wait := s.background(ctx, "status", "--watch", "--json")
	for n := 0; strings.Count(s.out.String(), "\n") < 3; n++ {
		s.backend.Set(func(st *admin.Status) { st.Postgres[0].AppliedTransactions++ })
		<-time.After(5 * time.Millisecond)
	}
	stop()
	if status := wait(); status != 0 {
		t.Errorf("interrupted, it ends with %d: %s", status, s.err)
	}
	for _, line := range strings.Split(strings.TrimSpace(s.out.String()), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("not a document: %s", line)
		}
	}
}

func TestWaitPhase(t *testing.T) {
	s := newSession(t)
	s.want(s.run("wait", "phase=copying"), 0, "", "")
	s.want(s.run("wait", "phase=reversed", "--timeout", "100ms"), 3, "", "not at phase reversed within 100ms; it is streaming")
	s.out, s.err = &buffer{}, &buffer{}
	wait := s.background(t.Context(), "wait", "phase=reversed", "--timeout", "30s")
	s.says("streaming")
	s.backend.Set(func(st *admin.Status) { st.Postgres[0].Phase = admin.Reversed })
	s.backend.Set(func(st *admin.Status) { st.Redis[0].Phase = admin.Reversed })
	s.want(wait(), 0, "", "reversed")
	s.backend.Set(func(st *admin.Status) { st.Redis[0].Phase = admin.Stopped })
	s.want(s.run("wait", "phase=copying", "--timeout", "100ms"), 3, "", "find out what the pair waits for")
}

func TestWaitCaughtUp(t *testing.T) {
	s := newSession(t)
	s.want(s.run("wait", "caught-up", "--timeout", "100ms"), 3, "", "not caught up")
	s.out, s.err = &buffer{}, &buffer{}
	wait := s.background(t.Context(), "wait", "caught-up")
	s.backend.LetCatchUp()
	s.want(wait(), 0, "", "caught up after")
	s.backend.Fail(&preflight.Hinted{Code: "not-leading", Err: admin.ErrNotReady, Hint: "wait a moment"})
	s.out, s.err = &buffer{}, &buffer{}
	wait = s.background(t.Context(), "wait", "caught-up")
	s.says("trying again")
	s.backend.Fail(nil)
	s.want(wait(), 0, "", "caught up after")
	s.backend.Fail(&preflight.Hinted{Code: "stopped", Err: errors.New("pair main is stopped"), Hint: "mend it"})
	s.want(s.run("wait", "caught-up"), 3, "", "mend it")
}

func TestWaitCutover(t *testing.T) {
	s := newSession(t)
	id := "attempt-1"
	s.cutover("drain", "", func(c *admin.CutoverStatus) { c.Attempt = &id })
	s.want(s.run("wait", "cutover=freeze"), 0, "", "")
	s.want(s.run("wait", "cutover=drain"), 0, "", "")
	s.out, s.err = &buffer{}, &buffer{}
	wait := s.background(t.Context(), "wait", "cutover=done")
	s.says("cutover drain")
	s.cutover("aborted", "aborted", func(c *admin.CutoverStatus) {
		c.Problem = &admin.Problem{Message: "it took too long", Hint: "give it more"}
	})
	s.want(wait(), 1, "", "attempt-1 was aborted: it took too long: give it more")
	s.want(s.run("wait", "cutover=aborted"), 0, "", "")
	s.want(s.run("wait", "cutover=done", "--timeout", "100ms"), 3, "", "cutover aborted")
	s.cutover("done", "done")
	s.want(s.run("wait", "cutover=verify"), 0, "", "")
}

func TestCutover(t *testing.T) {
	s := newSession(t)
	held := 0.42
	s.out, s.err = &buffer{}, &buffer{}
	wait := s.background(t.Context(), "cutover", "start", "--wait", "--json", "--freeze-budget", "10s")
	s.says("preflight")
	s.cutover("drain", "", func(c *admin.CutoverStatus) { c.WaitingFor = "main" })
	s.says("waits for main")
	// A phase that is over before the status is looked at again still comes, as an event.
	s.server.Publish(admin.Event{Type: admin.EventCutover, Data: admin.CutoverStatus{Attempt: ptr("attempt-1"), Phase: "arm"}})
	s.says("arm")
	s.cutover("done", "done", func(c *admin.CutoverStatus) { c.FreezeSeconds = &held })
	s.want(wait(), 0, `"freeze_seconds": 0.42`, "writes were held for 0.42s")
	if got := s.backend.Calls()[0]; got != "start reverse=false dry_run=false budget=10s" {
		t.Errorf("asked %q", got)
	}

	s.out, s.err = &buffer{}, &buffer{}
	wait = s.background(t.Context(), "rollback", "--wait")
	s.says("preflight")
	s.cutover("aborted", "aborted", func(c *admin.CutoverStatus) { c.Problem = &admin.Problem{Message: "a hook failed", Hint: "mend it"} })
	s.want(wait(), 1, "", "was aborted: a hook failed: mend it")

	s.want(s.run("cutover", "start", "--dry-run"), 0, "", "has begun")
	s.want(s.run("cutover", "start", "--json"), 1, `"attempt":`, "is running")
	s.want(s.run("cutover", "status"), 0, "cutover (dry run) attempt-", "")
	s.want(s.run("cutover", "status", "--json"), 0, `"phase": "preflight"`, "")
	s.want(s.run("cutover", "abort"), 0, "", "is being undone")
	s.want(s.run("cutover", "abort"), 1, "", "no attempt is running")
}

func TestRefusedStart(t *testing.T) {
	s := newSession(t)
	s.backend.Fail(&preflight.Hinted{Code: "already", Err: errors.New("the targets accept the writes already"), Hint: "use rollback"})
	s.want(s.run("cutover", "start", "--wait"), 1, "", "the targets accept the writes already: use rollback")
}

func TestVerify(t *testing.T) {
	s := newSession(t)
	s.backend.Verified(admin.VerifiedPair{Pair: "main", Compared: 10, Tables: []admin.VerifiedTable{{Table: "public.users", Equal: true}}})
	s.want(s.run("verify", "--wait"), 0, "main: 10 compared, 0 differ", "equal")
	bad := admin.VerifiedPair{Pair: "main", Compared: 10, Mismatches: 1, Tables: []admin.VerifiedTable{
		{Table: "public.users", SourceRows: 5, TargetRows: 4, Differences: []admin.Difference{{Kind: "missing", Key: "id=7"}}}}}
	s.backend.Verified(bad)
	s.want(s.run("verify", "--wait", "--pair", "main", "--table", "public.users"), 1, "public.users: 5 on the source, 4 on the target\n    missing id=7", "1 differences")
	status := s.run("verify", "--wait", "--json")
	var doc admin.Verification
	if err := json.Unmarshal([]byte(s.out.String()), &doc); status != 1 || err != nil || *doc.Mismatches != 1 {
		t.Errorf("status %d, %v: %s", status, err, s.out)
	}
	bad.Repaired = 1
	s.backend.Verified(bad)
	s.want(s.run("verify", "--wait", "--repair"), 0, "1 mended", "all mended")
	s.want(s.run("verify", "--pair", "nosuch"), 1, "", "the pairs are main, sidekiq")
	s.want(s.run("verify"), 0, "", "has begun")
	s.backend.Fail(errors.New("no connection"))
	for s.run("verify", "--wait") == 1 { // the one before may still run
	}
	s.want(3, 3, "", "no connection")
}

func TestOperations(t *testing.T) {
	s := newSession(t)
	s.want(s.run("pause"), 0, "", "paused")
	s.want(s.run("resume"), 0, "", "going on")
	s.want(s.run("resync", "--pair", "main", "--table", "public.a", "--table", "public.b"), 0, "", "copied anew")
	s.want(s.run("finish"), 2, "", "not confirmed")
	s.stdin = "shop\n"
	s.want(s.run("finish"), 0, "", "finished")
	s.want(s.run("finish", "--yes"), 0, "", "finished")
	want := "paused=true|paused=false|resync main [public.a public.b]|finish|finish"
	if got := strings.Join(s.backend.Calls(), "|"); got != want {
		t.Errorf("did %s, want %s", got, want)
	}
	s.backend.Fail(&preflight.Hinted{Code: "not-yet", Err: errors.New("the application writes to the source"), Hint: "cut over first"})
	s.want(s.run("finish", "--yes"), 1, "", "cut over first")
}

func TestReport(t *testing.T) {
	findings := []preflight.Finding{
		{Code: "fine", Severity: preflight.OK, Pair: "main", Message: "the server is 15.4"},
		{Code: "meh", Severity: preflight.Warning, Pair: "main", Side: "source", Message: "little memory", Hint: "add some"},
	}
	report := func(all, asJSON bool, f ...preflight.Finding) (int, string, string) {
		var out, errs buffer
		c := &cli{stdout: &out, stderr: &errs}
		status := statusOf(c.report(f, all, asJSON))
		return status, out.String(), errs.String()
	}
	status, out, _ := report(false, false, findings...)
	if want := "warning: main source: little memory [meh]\n    add some\n1 other probes are good (--all shows them)\n"; status != 0 || out != want {
		t.Errorf("%d %q, want 0 %q", status, out, want)
	}
	if _, out, _ := report(true, false, findings...); !strings.Contains(out, "the server is 15.4") {
		t.Errorf("--all hides what is good: %q", out)
	}
	status, out, _ = report(false, true, append(findings, preflight.Finding{Code: "bad", Severity: preflight.Error, Message: "wrong", Hint: "right it"})...)
	var doc struct {
		OK       bool
		Findings []map[string]string
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || status != 1 || doc.OK || len(doc.Findings) != 3 || doc.Findings[2]["severity"] != "error" {
		t.Errorf("%d %v %s", status, err, out)
	}
}

// TestCheckUnreachable: what can't be reached is a finding with a remedy, and no password is shown.
func TestCheckUnreachable(t *testing.T) {
	s := &session{t: t, env: []string{"SOURCE_REDIS_URL=redis://:hunter2@127.0.0.1:1", "TARGET_REDIS_URL=redis://:hunter2@127.0.0.1:2",
		"SOURCE_DATABASE_URL=postgres://u:hunter2@127.0.0.1:3/x", "TARGET_DATABASE_URL=postgres://u:hunter2@127.0.0.1:4/x"}}
	s.want(s.run("check", "--json"), 1, `"ok": false`, "not ready")
	for _, want := range []string{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4", `"hint"`} {
		if !strings.Contains(s.out.String(), want) {
			t.Errorf("no finding with %s: %s", want, s.out)
		}
	}
	if all := s.out.String() + s.err.String(); strings.Contains(all, "hunter2") {
		t.Errorf("a password is shown: %s", all)
	}
}

func TestStatusOf(t *testing.T) {
	for err, want := range map[error]int{
		nil: 0, context.Canceled: 3, usage(errors.New("x")): 2, couldNotTell(errors.New("x")): 3, notGood("x"): 1, context.DeadlineExceeded: 3,
		fmt.Errorf("x: %w", admin.ErrUnreachable): 3, &admin.ProblemDocument{Status: 409}: 1, &admin.ProblemDocument{Status: 503}: 3,
	} {
		if got := statusOf(err); got != want {
			t.Errorf("%v means %d, want %d", err, got, want)
		}
	}
}

func ptr[T any](v T) *T { return &v }
