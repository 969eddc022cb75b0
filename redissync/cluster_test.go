package redissync

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// clusterRig is a rig of which either side may be a cluster.
type clusterRig struct {
	*rig
	sides [2]*redistest.Cluster // source and target; nil: a single server
}

func newClusterRig(t *testing.T, source, target *redistest.Cluster) *clusterRig {
	t.Helper()
	r := &rig{t: t}
	at := func(c *redistest.Cluster) (*redistest.Server, *client) {
		if c == nil {
			s := redistest.Start(t, redistest.Options{})
			return s, dialServer(t, s)
		}
		e, err := parseEndpoint(c.URL(), TLS{CAFile: c.CAFile()})
		if err != nil {
			t.Fatal(err)
		}
		x := &client{t, &session{endpoint: e, name: "application"}}
		t.Cleanup(x.s.close)
		x.do("PING") // it knows the other nodes from now on
		return c.Primaries[0], x
	}
	r.source, r.a = at(source)
	r.target, r.b = at(target)
	r.o = Options{Migration: "shop", Name: "cache", SourceURL: r.source.URL(), TargetURL: r.target.URL(), Epoch: 1, Log: testLog(t), BigBytes: 8 << 10}
	for i, c := range []*redistest.Cluster{source, target} {
		if c != nil {
			[]*TLS{&r.o.SourceTLS, &r.o.TargetTLS}[i].CAFile = c.CAFile()
		}
	}
	return &clusterRig{r, [2]*redistest.Cluster{source, target}}
}

// ctx has the time that a failover may take on a busy machine.
func (r *clusterRig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	r.t.Cleanup(cancel)
	return ctx
}

// threeNodes starts a cluster, of REPLICATOR_TEST_CLUSTER_REDIS if that is set.
func threeNodes(t *testing.T) *redistest.Cluster {
	t.Helper()
	return redistest.StartCluster(t, 3, redistest.Options{Version: os.Getenv("REPLICATOR_TEST_CLUSTER_REDIS")})
}

// fillCluster writes values of every type, of which some are big, under keys that go to every primary.
func fillCluster(c *client) {
	everyType(c, "0")
	for i := range 300 {
		c.do("SET", fmt.Sprintf("key%d", i), "v")
	}
	for i := range 3 {
		c.do(append([]string{"SADD", fmt.Sprintf("bigset%d", i)}, strings.Fields(manyPairs(2000))...)...)
		c.do(append([]string{"RPUSH", fmt.Sprintf("biglist%d", i)}, strings.Fields(manyPairs(2000))...)...)
		c.do("SET", fmt.Sprintf("big}string{%d", i), strings.Repeat("x", 100<<10))
	}
	for _, k := range []string{"{}x", "{tag}:1", "{tag}:2", "a}b", "x{y"} {
		c.do("SET", k, k, "PX", "600000")
	}
}

// clusterStorm writes at random through one session each until it ends: single keys, and transactions and scripts within a slot.
type clusterStorm struct {
	stop chan struct{}
	wg   sync.WaitGroup
}

func startClusterStorm(t *testing.T, url string, tls TLS, clients int) *clusterStorm {
	s := &clusterStorm{stop: make(chan struct{})}
	seed := testSeed(t)
	for i := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		s.wg.Go(func() {
			e, _ := parseEndpoint(url, tls)
			c := &session{endpoint: e, name: "storm"}
			defer c.close()
			for {
				select {
				case <-s.stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				c.exec(ctx, 0, []unit{slotCommands(r)}) // what fails meanwhile isn't of interest: both sides are compared afterwards
				cancel()
			}
		})
	}
	t.Cleanup(s.end)
	return s
}

func (s *clusterStorm) end() {
	select {
	case <-s.stop:
	default:
		close(s.stop)
	}
	s.wg.Wait()
}

func slotCommands(r *rand.Rand) unit {
	n := r.IntN(200)
	a, b := fmt.Sprintf("{%d}a", n), fmt.Sprintf("{%d}b", n)
	v := fmt.Sprint(r.IntN(1000))
	var cmds []command
	switch r.IntN(12) {
	case 0:
		cmds = []command{{"SET", a, v}}
	case 1:
		cmds = []command{{"SET", a, v, "PX", fmt.Sprint(1 + r.IntN(3000))}}
	case 2:
		cmds = []command{{"DEL", a, b}}
	case 3:
		cmds = []command{{"RENAME", a, b}}
	case 4:
		cmds = []command{{"DEL", b}, {"HSET", b, v, v, "f", v}}
	case 5:
		cmds = []command{{"MULTI"}, {"DEL", a}, {"RPUSH", a, v, v}, {"EXPIRE", a, "1000"}, {"EXEC"}}
	case 6:
		cmds = []command{{"EVAL", "redis.call('SET', KEYS[1], ARGV[1]) redis.call('DEL', KEYS[2])", "2", a, b, v}}
	case 7:
		cmds = []command{{"SADD", fmt.Sprintf("set%d", n), v, v + "x", v + "y"}}
		a = fmt.Sprintf("set%d", n)
	case 8:
		a = fmt.Sprintf("zset%d", n)
		cmds = []command{{"ZADD", a, v, v}, {"ZREM", a, fmt.Sprint(r.IntN(1000))}}
	case 9:
		cmds = []command{{"COPY", a, b, "REPLACE"}}
	case 10:
		a = fmt.Sprintf("stream%d", n%20)
		cmds = []command{{"XADD", a, "MAXLEN", "20", "*", "f", v}}
	case 11:
		a = fmt.Sprintf("grow%d", n%10) // grows beyond what is copied as a whole
		cmds = []command{{"RPUSH", a, strings.Repeat(v, 20)}, {"LTRIM", a, "-400", "-1"}}
	}
	return unit{a, cmds}
}

// cutOver moves the pair once, with counters running, and compares.
func (r *clusterRig) cutOver(app *counters, reverse bool) {
	r.t.Helper()
	ctx := r.ctx()
	to := r.target
	if reverse {
		to = r.source
	}
	upToArm(r.t, ctx, r.pair, reverse)
	r.equal()
	switchOver(r.t, ctx, r.pair, reverse)
	app.side.Store(to)
	before := app.acked[0].Load()
	retire(r.t, ctx, r.pair, reverse)
	r.a.s.close()
	r.b.s.close()
	eventually(r.t, "the application writes on the other side", func() bool { return app.acked[0].Load() > before+10 })
	r.caughtUp()
}

// finished compares for the last time, and removes what replicator made.
func (r *clusterRig) finished(app *counters) {
	r.t.Helper()
	app.end()
	r.a.s.close()
	r.b.s.close()
	r.caughtUp()
	app.check(r.t, r.a, "source")
	app.check(r.t, r.b, "target")
	r.equal()
	if s := r.pair.Status(); len(s.Problems) > 0 {
		r.t.Errorf("status %+v", s)
	}
	if err := r.stop(); err != nil {
		r.t.Fatal(err)
	}
	if err := r.pair.Finish(r.ctx()); err != nil {
		r.t.Fatal(err)
	}
	for _, c := range []*client{r.a, r.b} {
		c.s.close()
		err := scanAll(r.ctx(), c.s, 0, func(keys []string) error {
			for _, k := range keys {
				if strings.HasPrefix(k, ownPrefix) {
					r.t.Errorf("left behind: %q", k)
				}
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// TestCutoversWithClusters moves a busy application there, back, and there again, from and to every kind of side.
func TestCutoversWithClusters(t *testing.T) {
	t.Parallel()
	for name, kinds := range map[string][2]bool{"standalone to cluster": {false, true}, "cluster to cluster": {true, true}, "cluster to standalone": {true, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sides [2]*redistest.Cluster
			for i, cluster := range kinds {
				if cluster {
					sides[i] = threeNodes(t)
				}
			}
			r := newClusterRig(t, sides[0], sides[1])
			fillCluster(r.a)
			for _, c := range sides[:1] { // functions belong to each primary
				servers := []*redistest.Server{r.source}
				if c != nil {
					servers = c.Primaries
				}
				for _, s := range servers {
					if _, err := s.Do(r.ctx(), "FUNCTION", "LOAD", "#!lua name=shop\nredis.register_function('price', function() return 7 end)"); err != nil {
						t.Fatal(err)
					}
				}
			}
			r.run(false)
			r.caughtUp()
			r.equal()
			app := runCounters(t, r.source, 8)
			eventually(t, "the application writes", func() bool { return app.acked[0].Load() > 0 })
			for _, reverse := range []bool{false, true, false} {
				r.cutOver(app, reverse)
			}
			for _, s := range r.servers(1) {
				if v, err := s.Do(r.ctx(), "FCALL", "price", "0"); v != "7" {
					t.Errorf("the function wasn't carried over: %q, %v", v, err)
				}
			}
			r.finished(app)
		})
	}
}

// servers are those of the source (0) or the target (1).
func (r *clusterRig) servers(i int) []*redistest.Server {
	if c := r.sides[i]; c != nil {
		return c.Primaries
	}
	return []*redistest.Server{[]*redistest.Server{r.source, r.target}[i]}
}
