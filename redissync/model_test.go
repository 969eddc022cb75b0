package redissync

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// Operations of one run of the model, both directions together.
const (
	fewOperations  = 6000
	manyOperations = 200_000
)

// model is a pair between two servers of which each stands behind a stable address, and an application that does anything at random.
type model struct {
	*rig
	versions   [2]string
	options    [2]redistest.Options
	fronts     [2]*proxy
	heir       *redistest.Server
	heirClient *client
	fields     bool
	functions  bool
	pace       time.Duration // of each client while the application is taken over
	rand       *rand.Rand
	sent       int64
	worked     int64
	gaps       int
}

// trouble is something that happens while the application goes on; it begins with the storm and returns when it is done.
type trouble struct {
	name string
	act  func(m *model, s *storm, operations int, reverse bool)
	// before prepares it.
	before func(m *model, reverse bool)
}

var troubles = []trouble{
	{name: "none", act: func(*model, *storm, int, bool) {}},
	{name: "feed cut every second", act: cutEverySecond},
	{name: "every connection cut", act: func(m *model, s *storm, operations int, _ bool) {
		for i := range 3 {
			eventually(m.t, "a part of the storm", func() bool { return s.sent.Load() >= int64(operations*i/4) })
			for _, c := range []*client{m.a, m.b} {
				c.s.close()
				c.try("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			}
		}
	}},
	{name: "daemon replaced", act: func(m *model, s *storm, operations int, reverse bool) {
		s.half(m.t, operations)
		m.gaps += int(m.pair.Status().Gaps)
		m.stop()
		m.o.Epoch++
		m.rig.run(reverse)
	}},
	{name: "servers stalled", act: func(m *model, s *storm, operations int, _ bool) {
		s.half(m.t, operations)
		stall(m.source)
		stall(m.target)
	}},
	{name: "follower restarted empty", act: func(m *model, s *storm, operations int, reverse bool) {
		s.half(m.t, operations)
		follower := m.target
		if reverse {
			follower = m.source
		}
		_ = follower.Kill()
		if err := follower.Start(m.ctx()); err != nil {
			m.t.Fatal(err)
		}
	}},
	{name: "origin fails over", before: (*model).raiseHeir, act: func(m *model, s *storm, operations int, reverse bool) {
		s.half(m.t, operations)
		m.failOver(reverse)
	}},
}

// TestModel compares every key, value and expiry of two servers after storms of random operations and each kind of trouble, in both
// directions with a cutover under load between them and a rollback at the end. In short a diagonal of the versions; in a soak every pair
// with either feed and 200 thousand operations each. One of them alone: -run 'TestModel/^redis-6.0_to_valkey-9.1$/^broadcast$'.
func TestModel(t *testing.T) {
	t.Parallel()
	type run struct {
		source, target string
		feeds          []string
	}
	runs := []run{
		{"redis-6.0", "redis-8.0", []string{"notifications"}}, {"", "valkey-9.1", []string{"broadcast"}}, {"redis-8.0", "valkey-9.1", []string{"notifications"}},
		{"valkey-8.1", "redis-6.0", []string{"broadcast"}}, {"valkey-9.1", "valkey-8.0", []string{"broadcast"}}, {"", "", []string{"pieces"}},
	}
	operations := fewOperations
	if soak() {
		operations, runs = manyOperations, nil
		for _, source := range redistest.Versions {
			for _, target := range redistest.Versions {
				feeds := []string{"broadcast", "notifications"}
				if source == "" && target == "" {
					feeds = append(feeds, "pieces")
				}
				runs = append(runs, run{source, target, feeds})
			}
		}
	}
	for i, x := range runs {
		t.Run(versionName(x.source)+"_to_"+versionName(x.target), func(t *testing.T) {
			if !soak() {
				t.Parallel()
			}
			for _, feed := range x.feeds {
				t.Run(feed, func(t *testing.T) {
					mine := troubles
					if !soak() { // each kind twice among the runs
						mine = []trouble{troubles[(2*i+1)%len(troubles)], troubles[(2*i+2)%len(troubles)]}
					}
					thereAndBack(t, x.source, x.target, feed, mine, operations)
				})
			}
		})
	}
}

// thereAndBack runs one pair of the model.
func thereAndBack(t *testing.T, source, target, feed string, mine []trouble, operations int) {
	started := time.Now()
	seed := testSeed(t)
	m := newModel(t, source, target, feed, seed)
	each := operations / 2 / len(mine)
	if feed == "pieces" {
		each /= 10 // dozens of commands for each copy
	}
	m.rig.run(false)
	for _, reverse := range []bool{false, true} {
		for _, trouble := range mine {
			m.round(trouble, each, reverse)
		}
		m.turn(reverse)
	}
	t.Logf("model: %s to %s, %s, forward and reverse: %d operations, %d of them effective, %d gaps, %.1f s, 0 differences, seed %d",
		versionName(source), versionName(target), feed, m.sent, m.worked, m.gaps+int(m.pair.Status().Gaps), time.Since(started).Seconds(), seed)
}

func versionName(v string) string {
	if v == "" {
		return "redis-7.0"
	}
	return v
}

func newModel(t *testing.T, source, target, feed string, seed uint64) *model {
	t.Helper()
	m := &model{pace: 5 * time.Millisecond, versions: [2]string{source, target}, rand: rand.New(rand.NewPCG(seed, 99))}
	for i, v := range m.versions {
		m.options[i] = redistest.Options{Version: v}
		if feed == "notifications" {
			m.options[i].Settings = map[string]string{"notify-keyspace-events": "KEA"}
		}
	}
	m.rig = newRig(t, m.options[0], m.options[1])
	m.fronts = [2]*proxy{startProxy(t, m.source.Address()), startProxy(t, m.target.Address())}
	m.o.SourceURL, m.o.TargetURL = m.url(0), m.url(1)
	m.a, m.b = dialURL(t, m.o.SourceURL), dialURL(t, m.o.TargetURL)
	if feed == "pieces" {
		m.o.BigBytes = 1
		m.patience = 3 * time.Minute // a turn takes 2 s on two idle cores, and more than 40 beside two dozen busy processes
	}
	if feed == "pieces" || !soak() { // the race detector is slow
		m.pace = 50 * time.Millisecond
	}
	ctx := m.ctx()
	m.fields, m.functions = true, true
	for _, c := range []*client{m.a, m.b} {
		info, err := readInfo(ctx, c.s, "server")
		if err != nil {
			t.Fatal(err)
		}
		m.fields = m.fields && info.fieldExpiry()
		m.functions = m.functions && info.version >= 70000
	}
	return m
}

func (m *model) url(side int) string {
	return (&url.URL{Scheme: "redis", Host: m.fronts[side].listener.Addr().String()}).String()
}

// held tells whether the origin can hold writes itself; else the application is stopped before the freeze.
func (m *model) held(reverse bool) bool { return m.versions[origin(reverse)] != "redis-6.0" }

func origin(reverse bool) int {
	if reverse {
		return 1
	}
	return 0
}

// storm begins a storm on the side where the application is.
func (m *model) storm(reverse, upheavals bool, clients, operations int, pace time.Duration) *storm {
	s := &storm{url: m.url(origin(reverse)), upheavals: upheavals, fields: m.fields, functions: m.functions, pace: pace}
	return s.start(m.rand.Uint64(), clients, operations)
}

func (m *model) count(s *storm) { m.sent, m.worked = m.sent+s.sent.Load(), m.worked+s.worked.Load() }

// round is a storm with a trouble, after which both sides must become equal.
func (m *model) round(x trouble, operations int, reverse bool) {
	m.t.Helper()
	started := time.Now()
	if x.before != nil {
		x.before(m, reverse)
	}
	s := m.storm(reverse, true, 4, operations, 0)
	x.act(m, s, operations, reverse)
	s.finish(m.t, m.ctx())
	m.count(s)
	stormed := time.Since(started)
	m.compare()
	if m.t.Failed() {
		m.t.Fatalf("after %s, reverse %v", x.name, reverse)
	}
	m.t.Logf("%s, reverse %v: %d operations in %v, equal after %v", x.name, reverse, s.sent.Load(), stormed.Round(time.Millisecond), (time.Since(started) - stormed).Round(time.Millisecond))
}

// compare waits until the destination has everything, and compares.
func (m *model) compare() {
	m.t.Helper()
	m.a.s.close() // they may have been cut
	m.b.s.close()
	for _, c := range []*client{m.a, m.b} { // a client that was cut off while it had keys evicted
		c.do("CONFIG", "SET", "maxmemory", "0")
	}
	caughtUp := make(chan error, 1)
	go func() { caughtUp <- m.pair.CaughtUp(m.ctx()) }()
	for waiting := true; waiting; {
		select {
		case err := <-caughtUp:
			if err != nil {
				m.t.Fatalf("not caught up: %v; status %+v", err, m.pair.Status())
			}
			waiting = false
		case <-time.After(100 * time.Millisecond):
			// A FLUSHALL just before a failover looks like a loss of data: the operator has to say that it isn't.
			if hasProblem(m.pair.Status(), "redis-origin-empty") {
				m.t.Log("the origin is said to be right as it is")
				if err := m.pair.Resync(m.ctx()); err != nil {
					m.t.Fatal(err)
				}
			}
		}
	}
	m.equal()
}

// turn takes the application to the other side while it goes on.
func (m *model) turn(reverse bool) {
	m.t.Helper()
	started := time.Now()
	defer func() { m.t.Logf("turned, reverse %v: %v", reverse, time.Since(started).Round(time.Millisecond)) }()
	rep, err := m.pair.VerifyNow(m.ctx())
	if err != nil || rep.Mismatches != 0 {
		m.t.Fatalf("verify: %+v, %v", rep, err)
	}
	ctx := m.ctx()
	// Without SWAPDB and FLUSH in a row, which would keep the reconcile from ever ending.
	s := m.storm(reverse, false, 2, 0, m.pace)
	m.caughtUp()
	held := m.held(reverse)
	if !held {
		s.end()
	}
	upToArmTimes(m.t, ctx, m.pair, reverse, 1)
	m.equal()
	if a, b := functionsOf(m.a), functionsOf(m.b); m.functions && a != b {
		m.t.Fatalf("functions %s on the source, %s on the target", a, b)
	}
	switchOver(m.t, ctx, m.pair, reverse)
	// The storm's clients come back at once, unlike an application that was told where to go: they are told to stop first, with their
	// writes held.
	if held {
		close(s.stop)
	}
	retire(m.t, ctx, m.pair, reverse)
	s.wg.Wait()
	m.count(s)
	m.compare()
}

// cutEverySecond cuts the feed at least three times, however long the storm has to be for that.
func cutEverySecond(m *model, s *storm, _ int, reverse bool) {
	interval := time.Second
	if !soak() {
		interval = 200 * time.Millisecond
	}
	c := dialURL(m.t, m.url(origin(reverse)))
	defer c.s.close()
	var more *storm
	for range 3 {
		timer := time.NewTimer(interval)
		<-timer.C
		if more == nil && s.left.Load() <= 0 {
			more = m.storm(reverse, true, 2, 0, 5*time.Millisecond)
		}
		c.do("CLIENT", "KILL", "TYPE", "pubsub")
	}
	if more != nil {
		more.end()
		m.count(more)
	}
}

// dropEmptyHashes removes what COPY makes of a hash whose fields have all expired but aren't removed yet, in Valkey 9.1.2: a hash without fields that
// never goes away, and that ends every process which saves it (dismissHashObject: "hashtableSize(ht) != 0"), so that no replica gets in step.
const dropEmptyHashes = `
for db = 0, 15 do
  redis.call('SELECT', db)
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'TYPE', 'hash', 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
      if redis.call('HLEN', key) == 0 then redis.call('DEL', key) end
    end
  until cursor == '0'
end`

// raiseHeir makes a replica of the side where the application is.
func (m *model) raiseHeir(reverse bool) {
	m.t.Helper()
	o := m.options[origin(reverse)]
	o.Settings = maps.Clone(o.Settings)
	if o.Settings == nil {
		o.Settings = map[string]string{}
	}
	o.Settings["repl-diskless-load"] = "on-empty-db" // else it waits for a file to be on disk, which takes as long as others write there
	heir := redistest.Start(m.t, o)
	c := dialServer(m.t, heir)
	old := m.source
	if reverse {
		old = m.target
	}
	if strings.HasPrefix(o.Version, "valkey-9") {
		dialServer(m.t, old).do("EVAL", dropEmptyHashes, "0")
	}
	c.do("REPLICAOF", "127.0.0.1", fmt.Sprint(old.Port()))
	defer func() {
		if m.t.Failed() {
			m.t.Logf("the replica's log:\n%s\nits primary's:\n%s", heir.Log(), old.Log())
		}
	}()
	eventually(m.t, "the replica is in step", func() bool {
		info, err := readInfo(m.ctx(), c.s, "replication")
		return err == nil && info.fields["master_link_status"] == "up"
	})
	m.heir, m.heirClient = heir, c
}

// failOver kills the side where the application is, with what it hadn't replicated, and leads its address to the replica.
func (m *model) failOver(reverse bool) {
	m.t.Helper()
	at := &m.source
	if reverse {
		at = &m.target
	}
	if err := (*at).Kill(); err != nil {
		m.t.Fatal(err)
	}
	m.heirClient.do("REPLICAOF", "NO", "ONE")
	*at = m.heir
	m.fronts[origin(reverse)].lead(m.heir.Address())
}

// stall stops a server for a moment.
func stall(srv *redistest.Server) {
	pid := srv.Pid()
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	timer := time.NewTimer(150 * time.Millisecond)
	<-timer.C
	_ = syscall.Kill(pid, syscall.SIGCONT)
}
