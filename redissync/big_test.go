package redissync

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"replicator/internal/redistest"
)

func TestBigKeysMoveInPiecesWhileTheyAreWrittenTo(t *testing.T) {
	t.Parallel()
	r := newRig(t, redistest.Options{Settings: map[string]string{"slowlog-log-slower-than": "1000000"}}, redistest.Options{})
	r.o.BigBytes = 200 << 10
	everyType(r.a, "0")
	value := strings.Repeat("v", 100)
	var cmds []command
	for i := range 8000 {
		n := fmt.Sprint(i)
		cmds = append(cmds, command{"HSET", "hash:huge", n, value}, command{"ZADD", "zset:huge", n + ".5", "m" + n}, command{"SADD", "set:huge", "m" + n},
			command{"RPUSH", "list:huge", n + value})
	}
	cmds = append(cmds, command{"SETRANGE", "string:huge", "5000000", "end"}, command{"EXPIRE", "hash:huge", "1000"})
	if _, err := r.a.s.link.pipe(r.ctx(), cmds); err != nil {
		t.Fatal(err)
	}
	writer, stop := dialServer(t, r.source), make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := fmt.Sprint(i % 8000)
			for _, c := range []command{{"HSET", "hash:huge", n, fmt.Sprint(i)}, {"ZINCRBY", "zset:huge", "1", "m" + n}, {"SREM", "set:huge", "m" + n}, {"LPOP", "list:huge"}, {"RPUSH", "list:huge", n}, {"APPEND", "string:huge", n}} {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				if _, err := writer.s.do(ctx, c...); err != nil {
					t.Error(err)
				}
				cancel()
			}
		}
	}()
	p := r.run(false)
	r.caughtUp()
	copied := p.Status().KeysCopied
	eventually(t, "big keys are copied again while they change", func() bool { return p.Status().KeysCopied > copied+3 })
	close(stop)
	<-done
	r.caughtUp()
	r.equal()
	if rep, err := p.VerifyNow(r.ctx()); err != nil || rep.Mismatches > 0 || rep.Moving > 0 {
		t.Fatalf("verify: %+v, %v", rep, err)
	}
	for _, c := range []string{"dump", "restore", "hgetall", "smembers"} {
		for side, c2 := range map[string]*client{"source": r.a, "target": r.b} {
			usec := between(c2.do("INFO", "commandstats").str+"\r", "cmdstat_"+c+":", "\r")
			t.Logf("%s: %s %s", side, c, usec)
		}
	}
	// A difference within a big key is found, and reconciled.
	r.b.do("HSET", "hash:huge", "7", "changed")
	rep, err := p.VerifyNow(r.ctx())
	if err != nil || rep.Mismatches != 1 || rep.Differences[0].Key != "hash:huge" {
		t.Fatalf("verify after a stray write: %+v, %v", rep, err)
	}
	if err := p.Resync(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.a.do("DEL", "zset:huge")
	r.a.do("PEXPIRE", "list:huge", "1")
	r.caughtUp()
	r.equal()
	if v := r.b.do("KEYS", "*temporary*"); len(v.items) > 0 {
		t.Errorf("left behind: %q", v.strings())
	}
	if s := p.Status(); len(s.Problems) > 1 {
		t.Errorf("problems: %+v", s.Problems)
	}
}
