package redissync

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"replicator/internal/retry"
)

// unheard is how long a feed may stay silent before it counts as broken. Every second it is asked for a sign of life.
const unheard = 10 * time.Second

// dummyChannel is subscribed to so that the connection belongs to the server's client class "pubsub": a stalled reader is then cut
// at that class's output buffer limit, and no idle timeout applies (redis.conf, client-output-buffer-limit).
const dummyChannel = "__replicator__:feed"

// feed is the connection on which the origin says which keys change: client-side caching's broadcast and, where they are on,
// keyspace notifications (Redis documentation, "Client-side caching" and "Redis keyspace notifications").
type feed struct {
	link     *link
	endpoint endpoint
	id       string // the connection's number on the server; empty if it doesn't tell

	mu      sync.Mutex // guards writes and what follows
	pongs   map[string]chan struct{}
	counter int
	closed  bool
}

// feedHandler hears what a feed reports. Its methods never block.
type feedHandler interface {
	changedNames(names []string)
	changedKey(db int, key string)
	flushed()
}

// openFeed connects and subscribes; when it returns, every later change will be reported.
func openFeed(ctx context.Context, e endpoint, name string, notifications bool) (*feed, error) {
	l, err := dial(ctx, e, name, true)
	if err != nil {
		return nil, err
	}
	f := &feed{link: l, endpoint: e, pongs: map[string]chan struct{}{}}
	if id, err := l.do(ctx, "CLIENT", "ID"); err == nil {
		f.id = strconv.FormatInt(id.num, 10)
	}
	stop := l.bound(ctx)
	defer stop()
	if err := f.subscribe(notifications); err != nil {
		l.close()
		return nil, fmt.Errorf("subscribe to changes on %s: %w", e.address, err)
	}
	return f, nil
}

func (f *feed) subscribe(notifications bool) error {
	cmds := []command{{"CLIENT", "TRACKING", "ON", "BCAST"}, {"SUBSCRIBE", dummyChannel}}
	want := 2
	if notifications {
		cmds = append(cmds, command{"PSUBSCRIBE", "__keyevent@*__:*"})
		want++
	}
	var out []byte
	for _, c := range cmds {
		out = appendCommand(out, c)
	}
	if _, err := f.link.conn.Write(out); err != nil {
		return err
	}
	for got := 0; got < want; {
		v, err := f.link.in.read()
		if err != nil {
			return err
		}
		if err := v.err(); err != nil {
			return err
		}
		// What is reported before the last confirmation is covered by the reconcile that follows.
		if v.kind != kindPush || len(v.items) > 0 && strings.HasSuffix(v.items[0].str, "subscribe") {
			got++
		}
	}
	return nil
}

// listen reads until the connection breaks or ctx ends. Any error is a gap: something may have been missed.
func (f *feed) listen(ctx context.Context, h feedHandler) error {
	stop := context.AfterFunc(ctx, f.close)
	defer stop()
	defer f.close()
	for {
		v, err := f.link.in.read()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("read the feed: %w", err)
		}
		if v.kind != kindPush {
			if err := v.err(); err != nil {
				return fmt.Errorf("read the feed: %w", err)
			}
			f.pong(v.str)
			continue
		}
		if err := dispatch(v, h); err != nil {
			return err
		}
	}
}

func dispatch(v value, h feedHandler) error {
	if len(v.items) < 2 {
		return errors.New("read the feed: push without content")
	}
	switch v.items[0].str {
	case "invalidate":
		if v.items[1].null {
			h.flushed()
			return nil
		}
		h.changedNames(v.items[1].strings())
	case "pmessage":
		if len(v.items) != 4 {
			return errors.New("read the feed: malformed notification")
		}
		if db, err := strconv.Atoi(between(v.items[2].str, "__keyevent@", "__:")); err == nil {
			h.changedKey(db, v.items[3].str)
		}
	case "message", "tracking-redir-broken":
	default:
		return fmt.Errorf("read the feed: unexpected %s", v.items[0].str)
	}
	return nil
}

// ping returns once everything that the server had reported before the call has been handled.
func (f *feed) ping(ctx context.Context) error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return net.ErrClosed
	}
	f.counter++
	token := "replicator-" + strconv.Itoa(f.counter)
	done := make(chan struct{})
	f.pongs[token] = done
	f.link.conn.SetWriteDeadline(time.Now().Add(unheard))
	_, err := f.link.conn.Write(appendCommand(nil, command{"PING", token}))
	f.mu.Unlock()
	if err != nil {
		f.close()
		return err
	}
	timer := time.NewTimer(unheard)
	defer timer.Stop()
	select {
	case <-done:
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.pongs[token] != nil {
			return net.ErrClosed
		}
		return nil
	case <-timer.C:
		f.close()
		return errors.New("no answer on the feed")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *feed) pong(token string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.pongs[token]; c != nil && !f.closed { // a reply may have been read before the feed was closed
		delete(f.pongs, token)
		close(c)
	}
}

// close ends the connection; pings that wait fail.
func (f *feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	f.link.conn.Close()
	for _, c := range f.pongs {
		close(c)
	}
}

// runPulse asks the feed every second whether it is alive, and until when it has reported everything. A feed that doesn't answer is cut.
func (f *flow) runPulse(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		f.mu.Lock()
		fd := f.feed
		f.mu.Unlock()
		if fd != nil {
			asked := time.Now()
			if err := fd.ping(ctx); err == nil {
				f.mu.Lock()
				f.heard = asked
				f.mu.Unlock()
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// runFeed keeps the flow's feed connected. Each time the subscription stands again, a reconcile makes good what may have been missed.
func (f *flow) runFeed(ctx context.Context) error {
	for first := true; ; first = false {
		var fd *feeds
		err := retry.Do(ctx, f.policy("feed", f.origin), func(ctx context.Context) (err error) {
			fd, err = openFeeds(ctx, f.origin.endpoint, f.pair.o.connectionName(f.role("feed")), f.pair.o.Notifications != "off")
			return err
		})
		if err != nil {
			return err
		}
		f.feedUp(fd, first)
		err = fd.listen(ctx, f)
		f.feedDown(err)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
