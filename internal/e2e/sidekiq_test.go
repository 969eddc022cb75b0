package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"replicator/internal/demo"
	"replicator/internal/redistest"
)

// TestSidekiq moves the Redis of a real Sidekiq while jobs are enqueued and worked off, in the order that docs/cutover.md gives: workers are
// told to end before the freeze, and what enqueues is started again at the switch. Each job is done exactly once, by a ledger outside of
// Redis; the sets of scheduled jobs and of those to be retried are what they were.
func TestSidekiq(t *testing.T) {
	jobs, rate := 2000, 700
	if soak() {
		jobs, rate = 20000, 900
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	f := newFleet(t, jobs, rate)
	f.daemon(ctx)
	f.client(ctx, "wait", "phase=streaming", "--timeout", "30s")
	f.startWorkers()
	f.startEnqueuers()
	f.until(ctx, "a third of the jobs is done", func() bool { return len(f.done()) > jobs/3 })
	f.client(ctx, "cutover", "start", "--wait")
	if f.at() != f.target.URL() {
		t.Fatal("the application wasn't told of the switch")
	}
	t.Logf("at the switch %d jobs of %d were enqueued and %d done; %d waited, %d were scheduled, %d to be retried", f.atSwitch.enqueued, jobs, f.atSwitch.done, f.atSwitch.waiting, f.atSwitch.scheduled, f.atSwitch.retried)
	if f.atSwitch.enqueued >= jobs || f.atSwitch.scheduled == 0 || f.atSwitch.retried == 0 {
		t.Errorf("the cutover met no work: %+v", f.atSwitch)
	}
	f.until(ctx, "every job is enqueued", func() bool { return f.enqueued() == jobs })
	f.ruby(ctx, "hurry.rb")
	want := 0
	for n := range jobs {
		if n%100 != 7 && n%50 != 3 {
			want++
		}
	}
	hurried := time.Now()
	f.until(ctx, "every job is done", func() bool {
		if time.Since(hurried) > time.Second { // what has failed for the first time since
			f.ruby(ctx, "hurry.rb")
			hurried = time.Now()
		}
		return len(f.done()) >= want
	})
	f.until(ctx, "no job is left in a queue", func() bool { return f.waiting(ctx, f.target.URL()) == 0 })
	f.stopWorkers()
	f.prove(ctx)
	f.client(ctx, "wait", "caught-up", "--timeout", "30s")
	for _, set := range []string{"schedule", "retry"} {
		if a, b := members(ctx, t, f.source.URL(), set), members(ctx, t, f.target.URL(), set); !slices.Equal(a, b) {
			t.Errorf("the %s set has %d jobs on the way back and %d on the target", set, len(a), len(b))
		}
	}
}

// fleet is an application on Sidekiq: two processes that work, two that enqueue, and the one who operates them.
type fleet struct {
	t              *testing.T
	dir            string
	jobs, rate     int
	source, target *redistest.Server
	log            *logFile
	env            []string // of replicator's commands

	mu        sync.Mutex
	url       string
	workers   []*exec.Cmd
	enqueuers []*exec.Cmd
	atSwitch  struct{ enqueued, done, waiting, scheduled, retried int }
}

const enqueuers = 2

func newFleet(t *testing.T, jobs, rate int) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir(), jobs: jobs, rate: rate, log: newLogFile(t)}
	f.source, f.target = redistest.Start(t, redistest.Options{}), redistest.Start(t, redistest.Options{})
	f.url = f.source.URL()
	t.Cleanup(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range slices.Concat(f.workers, f.enqueuers) {
			end(c, syscall.SIGKILL)
		}
	})
	return f
}

func (f *fleet) at() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.url
}

// daemon starts replicator with hooks that operate the fleet.
func (f *fleet) daemon(ctx context.Context) {
	f.t.Helper()
	hooks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Event, Direction string
			DryRun           bool `json:"dry_run"`
		}
		err := json.NewDecoder(r.Body).Decode(&body)
		if err == nil && !body.DryRun {
			err = f.operate(r.Context(), body.Event, body.Direction)
		}
		if err != nil {
			f.t.Error(err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	f.t.Cleanup(hooks.Close)
	address, metrics := freeAddress(f.t), freeAddress(f.t)
	token := rand.Text()
	var at strings.Builder
	for _, event := range []string{"before", "switch", "abort"} {
		fmt.Fprintf(&at, "    - at: %s\n      webhook: {url: %q, secret: \"${HOOK_SECRET}\", timeout: 30s}\n", event, hooks.URL)
	}
	config := filepath.Join(f.dir, "replicator.yml")
	text := fmt.Sprintf("migration: jobs\nredis:\n  - name: sidekiq\n    source: {url: %q}\n    target: {url: %q}\ncutover:\n  freeze_budget: 30s\n  hooks:\n%sadmin: {listen: %q, tokens: {operator: %q}}\nmetrics: {listen: %q}\n",
		f.source.URL(), f.target.URL(), at.String(), address, token, metrics)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.env = []string{"HOOK_SECRET=" + rand.Text(), "REPLICATOR_ADDR=http://" + address, "REPLICATOR_TOKEN=" + token}
	d := &demo.Daemon{Executable: binary, Args: []string{"run", "--config", config}, Env: f.env, Log: f.log}
	if err := d.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		defer cancel()
		if err := d.Stop(ctx); err != nil {
			f.t.Error(err)
		}
	})
	f.until(ctx, "the daemon answers", func() bool {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// operate is what the operator's hooks do.
func (f *fleet) operate(ctx context.Context, event, direction string) error {
	switch event {
	case "before": // quiet, then end: no worker holds a job or waits for one when the freeze comes
		f.stopWorkers()
	case "switch":
		f.killEnqueuers() // their writes are held: none of them has run, nor will
		f.observe(ctx)
		f.mu.Lock()
		f.url = f.target.URL()
		if direction == "reverse" {
			f.url = f.source.URL()
		}
		f.mu.Unlock()
		f.startEnqueuers()
		f.startWorkers()
	case "abort":
		f.startWorkers()
	}
	return nil
}

// observe notes what the cutover met, and that both sides hold the same jobs.
func (f *fleet) observe(ctx context.Context) {
	s := &f.atSwitch
	s.enqueued, s.done, s.waiting = f.enqueued(), len(f.done()), f.waiting(ctx, f.source.URL())
	for set, n := range map[string]*int{"schedule": &s.scheduled, "retry": &s.retried} {
		a, b := members(ctx, f.t, f.source.URL(), set), members(ctx, f.t, f.target.URL(), set)
		if *n = len(a); !slices.Equal(a, b) {
			f.t.Errorf("at the switch the %s set has %d jobs on the source, %d on the target", set, len(a), len(b))
		}
	}
	if there := f.waiting(ctx, f.target.URL()); there != s.waiting {
		f.t.Errorf("at the switch %d jobs wait on the source, %d on the target", s.waiting, there)
	}
}

func (f *fleet) command(name string, args []string, env ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	c.Dir = filepath.Join("testdata", "sidekiq")
	c.Env = slices.Concat(os.Environ(), env, []string{"REDIS_URL=" + f.url, "LEDGER=" + f.ledger()})
	c.Stdout, c.Stderr = f.log, f.log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return c
}

func (f *fleet) start(c *exec.Cmd) *exec.Cmd {
	if err := c.Start(); err != nil {
		f.t.Errorf("start %s: %v: it comes with scripts/install-tools sidekiq", c.Path, err)
	}
	return c
}

func (f *fleet) startWorkers() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range 2 {
		f.workers = append(f.workers, f.start(f.command("sidekiq", []string{"-r", "./app.rb", "-c", "5", "-t", "20", "-q", "critical", "-q", "default"})))
	}
}

// stopWorkers has the workers take no further job (TSTP), finish those they have and end (TERM).
func (f *fleet) stopWorkers() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, sig := range []syscall.Signal{syscall.SIGTSTP, syscall.SIGTERM} {
		for _, c := range f.workers {
			if c.Process != nil {
				_ = c.Process.Signal(sig)
			}
		}
	}
	for _, c := range f.workers {
		end(c, syscall.SIGTERM)
	}
	f.workers = nil
}

func (f *fleet) startEnqueuers() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range enqueuers {
		f.enqueuers = append(f.enqueuers, f.start(f.command("ruby", []string{"enqueue.rb"}, "ACKED="+f.acked(i), fmt.Sprintf("FROM=%d", i),
			fmt.Sprintf("STEP=%d", enqueuers), fmt.Sprintf("JOBS=%d", f.jobs), fmt.Sprintf("RATE=%d", f.rate))))
	}
}

func (f *fleet) killEnqueuers() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.enqueuers {
		end(c, syscall.SIGKILL)
	}
	f.enqueuers = nil
}

func end(c *exec.Cmd, sig syscall.Signal) {
	if c.Process == nil || c.ProcessState != nil {
		return
	}
	_ = c.Process.Signal(sig)
	_ = c.Wait()
}

func (f *fleet) ruby(ctx context.Context, script string) {
	f.t.Helper()
	f.mu.Lock()
	c := f.command("ruby", []string{script})
	f.mu.Unlock()
	if err := f.start(c).Wait(); err != nil && ctx.Err() == nil {
		f.t.Errorf("%s: %v", script, err)
	}
}

// client runs a command of replicator's, which must succeed.
func (f *fleet) client(ctx context.Context, args ...string) {
	f.t.Helper()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = append(os.Environ(), f.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		f.t.Fatalf("replicator %v: %v\n%s", args, err, out)
	}
}

func (f *fleet) ledger() string     { return filepath.Join(f.dir, "ledger") }
func (f *fleet) acked(i int) string { return filepath.Join(f.dir, fmt.Sprintf("acked-%d", i)) }

// done are the jobs that the ledger has, in the order of their end.
func (f *fleet) done() []string { return lines(f.t, f.ledger()) }

func (f *fleet) enqueued() (n int) {
	for i := range enqueuers {
		n += len(lines(f.t, f.acked(i)))
	}
	return n
}

func lines(t *testing.T, path string) []string {
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	return strings.Fields(string(text[:bytes.LastIndexByte(text, '\n')+1]))
}

// waiting counts the jobs in the queues of a server.
func (f *fleet) waiting(ctx context.Context, url string) (n int) {
	c := dialRedis(f.t, url)
	defer c.Close()
	for _, queue := range []string{"queue:critical", "queue:default"} {
		l, err := c.LLen(ctx, queue).Result()
		if err != nil {
			f.t.Error(err)
		}
		n += int(l)
	}
	return n
}

// members are a sorted set's elements with their scores.
func members(ctx context.Context, t *testing.T, url, set string) []string {
	c := dialRedis(t, url)
	defer c.Close()
	zs, err := c.ZRangeWithScores(ctx, set, 0, -1).Result()
	if err != nil {
		t.Error(err)
	}
	out := make([]string, len(zs))
	for i, z := range zs {
		out[i] = fmt.Sprint(z.Score, z.Member)
	}
	return out
}

func dialRedis(t *testing.T, url string) *redis.Client {
	o, err := redis.ParseURL(url)
	if err != nil {
		t.Error(err)
		o = &redis.Options{}
	}
	return redis.NewClient(o)
}

// prove holds the ledger and the two sets against what was enqueued.
func (f *fleet) prove(ctx context.Context) {
	f.t.Helper()
	times := map[int]int{}
	for _, line := range f.done() {
		n, err := strconv.Atoi(line)
		if err != nil {
			f.t.Fatalf("the ledger has %q", line)
		}
		times[n]++
	}
	left := map[string]map[int]int{}
	for _, set := range []string{"schedule", "retry"} {
		left[set] = map[int]int{}
		for _, m := range members(ctx, f.t, f.target.URL(), set) {
			var job struct{ Args []int }
			if err := json.Unmarshal([]byte(m[strings.IndexByte(m, '{'):]), &job); err != nil || len(job.Args) != 1 {
				f.t.Fatalf("the %s set has %q: %v", set, m, err)
			}
			left[set][job.Args[0]]++
		}
	}
	for n := range f.jobs {
		var want [3]int // done, scheduled, to be retried
		switch {
		case n%100 == 7:
			want[2] = 1
		case n%50 == 3:
			want[1] = 1
		default:
			want[0] = 1
		}
		if got := [3]int{times[n], left["schedule"][n], left["retry"][n]}; got != want {
			f.t.Errorf("job %d was done %d times, is scheduled %d times and to be retried %d times; expected %v", n, got[0], got[1], got[2], want)
		}
	}
	f.t.Logf("%d jobs: %d done, %d scheduled, %d to be retried", f.jobs, len(times), len(left["schedule"]), len(left["retry"]))
}

func (f *fleet) until(ctx context.Context, what string, good func() bool) {
	f.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !good() {
		select {
		case <-ctx.Done():
			f.t.Errorf("waited in vain until %s: %d of %d enqueued, %d done", what, f.enqueued(), f.jobs, len(f.done()))
			f.prove(context.WithoutCancel(ctx))
			f.t.FailNow()
		case <-tick.C:
		}
	}
}
