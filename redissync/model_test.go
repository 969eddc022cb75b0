package redissync

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"replicator/internal/redistest"
)

// randomCommand is one thing that an application may do, over few keys so that types and operations collide.
func randomCommand(r *rand.Rand) []command {
	k := func() string { return fmt.Sprintf("k%d", r.IntN(40)) }
	n := func(below int) string { return strconv.Itoa(r.IntN(below)) }
	w := func() string { return fmt.Sprintf("w%d", r.IntN(12)) }
	ms := func() string { return []string{"1", "5", "20", "300", "60000"}[r.IntN(5)] }
	one := func(args ...string) []command { return []command{args} }
	switch r.IntN(46) {
	case 0:
		return one("SET", k(), w())
	case 1:
		return one("SET", k(), w(), "PX", ms())
	case 2:
		return one("DEL", k(), k())
	case 3:
		return one("INCR", k())
	case 4:
		return one("APPEND", k(), w())
	case 5:
		return one("GETDEL", k())
	case 6:
		return one("RPUSH", k(), w(), w(), w())
	case 7:
		return one("LPOP", k(), n(4))
	case 8:
		return one("LMOVE", k(), k(), "LEFT", "RIGHT")
	case 9:
		return one("LTRIM", k(), "0", n(10))
	case 10:
		return one("SADD", k(), w(), n(100), n(100))
	case 11:
		return one("SPOP", k())
	case 12:
		return one("SMOVE", k(), k(), w())
	case 13:
		return one("SUNIONSTORE", k(), k(), k())
	case 14:
		return one("HSET", k(), w(), w(), w(), n(1000))
	case 15:
		return one("HDEL", k(), w())
	case 16:
		return one("HINCRBY", k(), "n"+n(5), n(9))
	case 17:
		return one("ZADD", k(), fmt.Sprint(r.NormFloat64()), w(), n(9), w())
	case 18:
		return one("ZPOPMIN", k())
	case 19:
		return one("ZINCRBY", k(), "0.1", w())
	case 20:
		return one("ZREMRANGEBYRANK", k(), "0", "1")
	case 21:
		return one("XADD", k(), "*", w(), w())
	case 22:
		return one("XGROUP", "CREATE", k(), "g"+n(2), "0", "MKSTREAM")
	case 23:
		return one("XREADGROUP", "GROUP", "g"+n(2), w(), "COUNT", "2", "STREAMS", k(), ">")
	case 24:
		return one("XAUTOCLAIM", k(), "g"+n(2), w(), "0", "0")
	case 25:
		return one("XTRIM", k(), "MAXLEN", n(5))
	case 26:
		return one("PFADD", k(), w(), w())
	case 27:
		return one("SETBIT", k(), n(5000), "1")
	case 28:
		return one("EXPIRE", k(), "1000")
	case 29:
		return one("PEXPIRE", k(), ms())
	case 30:
		return one("PERSIST", k())
	case 31:
		return one("PEXPIREAT", k(), strconv.FormatInt(time.Now().UnixMilli()+int64(r.IntN(2000))-500, 10))
	case 32:
		return one("RENAME", k(), k())
	case 33:
		return one("MOVE", k(), n(4))
	case 34:
		return one("COPY", k(), k(), "DB", n(4), "REPLACE")
	case 35:
		return one("EVAL", "redis.call('SET',KEYS[1],ARGV[1]); redis.call('DEL',KEYS[2]); return redis.call('RPUSH',KEYS[3],ARGV[1])", "3", k(), k(), k(), w())
	case 36:
		return []command{{"MULTI"}, {"SET", k(), w()}, {"INCR", k()}, {"DEL", k()}, {"EXPIRE", k(), "50"}, {"EXEC"}}
	case 37:
		return []command{{"MULTI"}, {"SELECT", n(4)}, {"HSET", k(), w(), w()}, {"EXEC"}}
	case 38:
		return one("SORT", k(), "ALPHA", "STORE", k())
	case 39:
		return one("GETEX", k(), "PX", ms())
	case 40:
		return one("BITOP", "NOT", k(), k())
	case 41:
		return one("GEOADD", k(), "13.3", "38.1", w())
	case 42:
		return one("BLPOP", k(), k(), "0.001")
	case 43:
		return one("SETRANGE", k(), n(3000), w())
	case 44:
		return []command{{"SELECT", n(4)}}
	default:
		return one("XDEL", k(), "0-1")
	}
}

// storm runs random commands on a server from several clients, and now and then a command on whole databases, until stop is closed.
type storm struct {
	wg   sync.WaitGroup
	stop chan struct{}
	mu   sync.Mutex
	ops  int
}

func startStorm(srv *redistest.Server, seed uint64, clients int, upheavals bool) *storm {
	s := &storm{stop: make(chan struct{})}
	for i := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		s.wg.Go(func() { s.client(srv, r, upheavals && i == 0) })
	}
	return s
}

func (s *storm) client(srv *redistest.Server, r *rand.Rand, upheavals bool) {
	e, _ := parseEndpoint(srv.URL(), TLS{})
	c := &session{endpoint: e, name: "storm"}
	defer c.close()
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			return
		default:
		}
		cmds := randomCommand(r)
		if upheavals && r.IntN(2000) == 0 {
			cmds = [][]command{{{"FLUSHDB"}}, {{"SWAPDB", "0", "1"}}, {{"SWAPDB", "2", "3"}}, {{"FLUSHALL"}}}[r.IntN(4)]
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if l, err := c.open(ctx); err == nil {
			l.pipe(ctx, cmds)
		}
		cancel()
		s.mu.Lock()
		s.ops++
		s.mu.Unlock()
	}
}

func (s *storm) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ops
}

func (s *storm) end() int {
	close(s.stop)
	s.wg.Wait()
	return s.ops
}

func testSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("REPLICATOR_SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("seed %d: repeat with REPLICATOR_SEED=%d", seed, seed)
	return seed
}

// TestRandomOperations compares both sides after storms of random commands during which feeds are cut, every connection is cut,
// the process is replaced, and the pair is turned round.
func TestRandomOperations(t *testing.T) {
	rounds := 1
	if soak() {
		rounds = 20
	}
	for name, c := range map[string]struct {
		notifications string
		bigBytes      int64
	}{"broadcast": {}, "with notifications": {notifications: "KEA"}, "in pieces": {bigBytes: 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := testSeed(t)
			r := rand.New(rand.NewPCG(seed, 99))
			o := redistest.Options{}
			if c.notifications != "" {
				o.Settings = map[string]string{"notify-keyspace-events": c.notifications}
			}
			rig := newRig(t, o, o)
			rig.o.BigBytes = c.bigBytes
			rig.run(false)
			ops := 0
			for round := range rounds {
				for _, reverse := range []bool{false, true} {
					if c.bigBytes > 0 && !soak() && reverse {
						break // piece by piece is slow, and the same in both directions
					}
					ops += stormAndCompare(t, rig, r, seed+uint64(round)*2, reverse)
				}
			}
			t.Logf("%d operations, %d gaps", ops, rig.pair.Status().Gaps)
		})
	}
}

func stormAndCompare(t *testing.T, rig *rig, r *rand.Rand, seed uint64, reverse bool) int {
	t.Helper()
	srv, app := rig.source, rig.a
	if reverse {
		srv, app = rig.target, rig.b
	}
	ops := 0
	troubles := []func(){
		func() {},
		func() { app.try("CLIENT", "KILL", "TYPE", "pubsub") },
		func() {
			rig.a.try("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			rig.b.try("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		},
		func() { rig.stop(); rig.o.Epoch++; rig.run(reverse) },
		func() { stall(rig.source); stall(rig.target) },
		func() { // the side that follows comes back empty
			follower := rig.target
			if reverse {
				follower = rig.source
			}
			_ = follower.Kill()
			if err := follower.Start(rig.ctx()); err != nil {
				t.Fatal(err)
			}
		},
		func() { rig.stop(); rig.o.Epoch++; rig.run(reverse) },
	}
	if !soak() && (rig.o.BigBytes > 0 || rig.short) {
		troubles = troubles[2:3]
	}
	clients := 4
	if rig.o.BigBytes > 0 {
		clients = 2
	}
	for _, trouble := range troubles {
		s := startStorm(srv, r.Uint64(), clients, true)
		for range 3 {
			pause := time.NewTimer(time.Duration(50+r.IntN(150)) * time.Millisecond)
			<-pause.C
			rig.a.s.close()
			rig.b.s.close()
			trouble()
		}
		ops += s.end()
		rig.a.s.close()
		rig.b.s.close()
		rig.caughtUp()
		rig.equal()
		rep, err := rig.pair.VerifyNow(rig.ctx())
		if err != nil || rep.Mismatches != 0 {
			t.Fatalf("verify: %+v, %v", rep, err)
		}
	}
	if rig.holdless() {
		return ops
	}
	// Turn round under load; at the freeze both sides are equal although the application goes on trying.
	// Without SWAPDB and FLUSH in a row, which would keep the reconcile from ever ending.
	s := startStorm(srv, r.Uint64(), clients, false)
	ctx := rig.ctx()
	rig.caughtUp()
	upToArm(t, ctx, rig.pair, reverse)
	rig.equal()
	switchOver(t, ctx, rig.pair, reverse)
	retireWhile(t, ctx, rig, s, reverse)
	rig.caughtUp()
	rig.equal()
	return ops
}

// stall stops a server for a moment.
func stall(srv *redistest.Server) {
	pid := srv.Pid()
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	timer := time.NewTimer(150 * time.Millisecond)
	<-timer.C
	_ = syscall.Kill(pid, syscall.SIGCONT)
}

// retireWhile ends the old side's clients. The storm's clients come back at once, unlike an application that was told where to go;
// so they are told to stop first, with their writes held.
func retireWhile(t *testing.T, ctx context.Context, rig *rig, s *storm, reverse bool) {
	t.Helper()
	close(s.stop)
	retire(t, ctx, rig.pair, reverse)
	s.wg.Wait()
	rig.a.s.close()
	rig.b.s.close()
}
