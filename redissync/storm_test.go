package redissync

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pipelined is how many operations a client of a storm sends at once.
const pipelined = 16

// storm runs random operations on a server from several clients until its budget is spent or it is ended. With upheavals, its first client
// also does now and then what concerns whole databases: SWAPDB, FLUSHDB, FLUSHALL, eviction, new functions.
type storm struct {
	url       string
	upheavals bool
	fields    bool
	functions bool
	pace      time.Duration // each client rests so long after each batch

	wg     sync.WaitGroup
	once   sync.Once
	stop   chan struct{}
	spent  chan struct{} // closed when the budget is spent
	left   atomic.Int64
	sent   atomic.Int64 // operations the server answered
	worked atomic.Int64 // those of them it didn't refuse
}

// start begins a storm of the given number of operations; none means no bound.
func (s *storm) start(seed uint64, clients, operations int) *storm {
	s.stop, s.spent = make(chan struct{}), make(chan struct{})
	s.left.Store(int64(operations))
	if operations == 0 {
		s.left.Store(1 << 60)
	}
	for i := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		s.wg.Go(func() { s.client(r, s.upheavals && i == 0) })
	}
	return s
}

func (s *storm) client(r *rand.Rand, upheavals bool) {
	e, _ := parseEndpoint(s.url, TLS{})
	c := &session{endpoint: e, name: "storm"}
	defer c.close()
	ops := &operations{r: r, fields: s.fields, functions: s.functions}
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		if s.left.Add(-pipelined) < 0 {
			s.once.Do(func() { close(s.spent) })
			return
		}
		var batch [][]command
		for range pipelined {
			batch = append(batch, ops.next())
		}
		if upheavals && r.IntN(60) == 0 {
			batch = append(batch, s.upheaval(r, c)...)
		}
		rest := s.pace
		if s.send(c, batch) != nil { // the server is gone for the moment: what it didn't answer is still to be done
			s.left.Add(pipelined)
			rest = 2 * time.Millisecond
		}
		if rest > 0 {
			rested := time.NewTimer(rest)
			select {
			case <-s.stop:
			case <-rested.C:
			}
		}
	}
}

func (s *storm) send(c *session, batch [][]command) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	l, err := c.open(ctx)
	if err != nil {
		return err
	}
	var all []command
	for _, cmds := range batch {
		all = append(all, cmds...)
	}
	replies, err := l.pipe(ctx, all)
	if err != nil {
		return err
	}
	at := -1
	for _, cmds := range batch {
		at += len(cmds)
		s.sent.Add(1)
		if replies[at].err() == nil {
			s.worked.Add(1)
		}
	}
	return nil
}

// upheaval is something that concerns more than single keys.
func (s *storm) upheaval(r *rand.Rand, c *session) [][]command {
	switch r.IntN(12) {
	case 0, 1:
		return [][]command{{{"FLUSHDB"}}}
	case 2:
		return [][]command{{{"FLUSHALL", "ASYNC"}}}
	case 3, 4:
		return [][]command{{{"SWAPDB", "0", "1"}}}
	case 5:
		return [][]command{{{"SWAPDB", "2", "3"}}}
	case 6, 7:
		if s.functions {
			return [][]command{{library(r.IntN(5))}}
		}
	}
	return s.squeeze(r, c)
}

// squeeze has the server evict keys, by one policy or another.
func (s *storm) squeeze(r *rand.Rand, c *session) [][]command {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	info, err := readInfo(ctx, c, "memory")
	if err != nil {
		return nil
	}
	used, _ := strconv.Atoi(info.fields["used_memory"])
	policy := strings.Fields("allkeys-random allkeys-lru allkeys-lfu volatile-ttl volatile-random volatile-lru")[r.IntN(6)]
	batch := [][]command{{{"CONFIG", "SET", "maxmemory-policy", policy}}, {{"CONFIG", "SET", "maxmemory", strconv.Itoa(used - r.IntN(40000))}}}
	ops := &operations{r: r, fields: s.fields, functions: s.functions}
	for range 8 {
		batch = append(batch, ops.next())
	}
	return append(batch, []command{{"CONFIG", "SET", "maxmemory", "0"}})
}

// finish waits until the budget is spent.
func (s *storm) finish(t *testing.T, ctx context.Context) {
	t.Helper()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		close(s.stop)
		t.Fatalf("the storm doesn't end: %d operations answered", s.sent.Load())
	}
}

// end stops the clients and waits for them.
func (s *storm) end() {
	close(s.stop)
	s.wg.Wait()
}

// half waits until half of n operations are answered.
func (s *storm) half(t *testing.T, n int) {
	t.Helper()
	eventually(t, "half of the storm", func() bool { return s.sent.Load() >= int64(n/2) })
}

func testSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("REPLICATOR_SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("seed %d: repeat with REPLICATOR_SEED=%d", seed, seed)
	return seed
}
