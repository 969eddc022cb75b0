package redissync

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// A feed that isn't read for a while makes the server keep what it has to tell. The server ends such a connection at the output buffer
// limit of class "pubsub" (redis.conf, client-output-buffer-limit); up to there the buffer takes part of its memory, and makes it evict keys
// where maxmemory is reached. So the room is watched, and a feed that falls behind is cut by ourselves before it takes half of it.

// assumedLimit is the default hard limit of class pubsub, taken where the server doesn't tell.
const assumedLimit = 32 << 20

// leastCut is up to where a feed may fall behind in any case.
const leastCut = 1 << 20

// room is how much memory a server has left, and how much of it our feed may take.
type room struct {
	left     int64 // bytes; -1 if unknown
	system   bool  // there is no maxmemory: left is of the machine's memory
	limit    int64 // of the pubsub class in bytes; 0: none
	assumed  bool  // the server doesn't tell it
	evicts   bool
	buffered int64 // what the server keeps for our feed now; -1 if unknown
}

// readRoom asks a server for its room. The limit is asked for only where known is nil, or as it is there otherwise.
func readRoom(ctx context.Context, s *session, known *room) (room, error) {
	info, err := readInfo(ctx, s, "memory")
	if err != nil {
		return room{}, err
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(info.fields[name], 10, 64)
		if err != nil {
			return -1
		}
		return n
	}
	r := room{left: -1, buffered: -1, limit: assumedLimit, assumed: true}
	used, most, system, rss := number("used_memory"), number("maxmemory"), number("total_system_memory"), number("used_memory_rss")
	switch {
	case most > 0 && used >= 0:
		r.left = max(0, most-used)
	case system > 0 && rss >= 0:
		r.left, r.system = max(0, system-rss), true
	}
	r.evicts = cmp.Or(info.fields["maxmemory_policy"], "noeviction") != "noeviction"
	if known != nil {
		r.limit, r.assumed = known.limit, known.assumed
		return r, nil
	}
	v, err := s.do(ctx, "CONFIG", "GET", "client-output-buffer-limit")
	if err != nil && !isReplyError(err) {
		return room{}, err
	}
	if text, ok := v.field("client-output-buffer-limit"); ok && err == nil { // managed servers forbid CONFIG
		if limit, ok := pubsubLimit(text.str); ok {
			r.limit, r.assumed = limit, false
		}
	}
	return r, nil
}

// pubsubLimit reads the hard limit of class pubsub, or the soft one where there is no hard one, out of the directive's text.
func pubsubLimit(text string) (int64, bool) {
	f := strings.Fields(text)
	for i := 0; i+3 < len(f); i += 4 {
		if f[i] != "pubsub" {
			continue
		}
		hard, err1 := strconv.ParseInt(f[i+1], 10, 64)
		soft, err2 := strconv.ParseInt(f[i+2], 10, 64)
		return cmp.Or(hard, soft), err1 == nil && err2 == nil
	}
	return 0, false
}

// cut is from where on a feed is ended by ourselves.
func (r room) cut() int64 {
	cut := cmp.Or(r.limit, assumedLimit) / 2
	if r.left >= 0 {
		cut = min(cut, max(r.left/2, leastCut))
	}
	return cut
}

// finding says what is wrong with the room, if anything is.
func (r room) finding(at side, name string) (preflight.Finding, bool) {
	f := preflight.Finding{Code: "redis-memory-headroom", Severity: preflight.Warning, Side: at.name}
	limit := fmt.Sprintf("%d MB", r.limit>>20)
	if r.limit < 1<<20 {
		limit = fmt.Sprintf("%d kB", r.limit>>10)
	}
	if r.assumed {
		limit += " (the default, as the server doesn't tell its own)"
	}
	harm := "a write of the application may then be refused"
	switch {
	case r.system:
		harm = "the server may then run out of memory"
	case r.evicts:
		harm = "keys are then evicted earlier"
	}
	switch {
	case r.limit == 0:
		f.Message = fmt.Sprintf("the %s sets no limit to what it keeps for a reader of class pubsub that has stalled", name)
		f.Hint = "set one, such as: CONFIG SET client-output-buffer-limit \"pubsub 32mb 8mb 60\""
		return f, true
	case r.left >= 0 && r.left < r.limit:
		what := "below its maxmemory"
		if r.system {
			what = "of the machine's memory"
		}
		f.Message = fmt.Sprintf("the %s has %d MB left %s, less than the %s that unread changes may take there while replicator is stalled: %s", name, r.left>>20, what, limit, harm)
		f.Hint = "raise maxmemory or make room, or lower the limit: CONFIG SET client-output-buffer-limit \"pubsub 8mb 4mb 60\""
		return f, true
	}
	return f, false
}

// runRoom watches the memory of the origin's servers and what they keep for the feeds.
func (f *flow) runRoom(ctx context.Context) error {
	sessions, known := map[string]*session{}, map[string]*room{}
	defer func() {
		for _, s := range sessions {
			s.close()
		}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for n := 0; ; n++ {
		if n%60 == 0 { // a limit may be set anew
			clear(known)
		}
		f.lookAtRoom(ctx, sessions, known)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lookAtRoom reads the room of every server that has a feed, and keeps the tightest.
func (f *flow) lookAtRoom(ctx context.Context, sessions map[string]*session, known map[string]*room) {
	f.mu.Lock()
	fs := f.feed
	f.mu.Unlock()
	key := direction(f.reverse) + " room"
	var tightest *room
	if fs != nil {
		for _, fd := range fs.all {
			s := sessions[fd.endpoint.address]
			if s == nil {
				s = &session{endpoint: fd.endpoint, name: f.pair.o.connectionName(f.role("room"))}
				sessions[fd.endpoint.address] = s
			}
			r, err := readRoom(ctx, s, known[fd.endpoint.address])
			if err == nil {
				r.buffered, err = f.watchBuffer(ctx, s, fd, r.cut())
			}
			if err != nil { // the watch names what is wrong with the server
				f.room.Store(nil)
				return
			}
			known[fd.endpoint.address] = &r
			if tightest == nil || r.left-r.limit < tightest.left-tightest.limit {
				tightest = &r
			}
		}
	}
	f.room.Store(tightest)
	if tightest == nil {
		return
	}
	if x, bad := tightest.finding(f.origin, f.origin.name); bad {
		f.pair.problem(f.origin.name+" "+key, x)
	} else {
		f.pair.solved(f.origin.name, key)
	}
}

// watchBuffer returns what a server keeps for a feed, -1 if it doesn't tell, and ends the feed where that is too much. What it had to
// report is a gap then, like any other interruption.
func (f *flow) watchBuffer(ctx context.Context, s *session, fd *feed, cut int64) (int64, error) {
	if fd.id == "" {
		return -1, nil
	}
	v, err := s.do(ctx, "CLIENT", "LIST", "ID", fd.id)
	if isReplyError(err) { // Redis 6.0 has no filter
		v, err = s.do(ctx, "CLIENT", "LIST")
	}
	if isReplyError(err) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	for line := range strings.Lines(v.str) {
		if between(" "+line, " id=", " ") != fd.id {
			continue
		}
		kept, err := strconv.ParseInt(between(line, " omem=", " "), 10, 64)
		if err != nil {
			return -1, nil
		}
		if kept <= cut {
			return kept, nil
		}
		f.log.Warn("the feed is ended, since the server keeps too much for it", "bytes", kept, "bound", cut)
		f.pair.problemFor(f.origin.name+" "+direction(f.reverse)+" feed behind", preflight.Finding{Code: "redis-feed-behind", Severity: preflight.Warning, Side: f.origin.name,
			Message: fmt.Sprintf("the %s kept %d kB of changes that replicator hadn't read yet; to spare its memory the feed was ended, and both sides are reconciled", f.origin.name, kept>>10),
			Hint:    "give replicator more CPU, or a faster network to the " + f.origin.name + ", if this comes again"}, 10*time.Minute)
		if _, err := s.do(ctx, "CLIENT", "KILL", "ID", fd.id); err != nil && !isReplyError(err) {
			return kept, err
		}
		fd.close()
		return kept, nil
	}
	return -1, nil
}

// headroom is the room of the active flow's origin, nil while unknown.
func (p *Pair) headroom() *room {
	p.mu.Lock()
	f := p.active
	p.mu.Unlock()
	if f == nil {
		return nil
	}
	return f.room.Load()
}

// Memory tells, for the server that takes the application's writes, how many bytes of memory it has left, up to where it lets our feed's
// buffer grow, and how large that is now; nil where it doesn't tell.
func (p *Pair) Memory() (left, limit, buffered *float64) {
	r := p.headroom()
	if r == nil {
		return nil, nil, nil
	}
	known := func(n int64, ok bool) *float64 {
		if !ok {
			return nil
		}
		x := float64(n)
		return &x
	}
	return known(r.left, r.left >= 0), known(r.limit, r.limit > 0), known(r.buffered, r.buffered >= 0)
}

// headroom checks a server's memory: the feed listens to the source, and after the switch to the target.
func (c *checker) headroom(ctx context.Context, at side, name string, s *session) {
	r, err := readRoom(ctx, s, nil)
	if err != nil {
		c.fail(err, at)
		return
	}
	if x, bad := r.finding(at, name); bad {
		c.add(x.Severity, x.Code, at.name, x.Message, x.Hint)
	} else if r.left >= 0 {
		limit := fmt.Sprintf("%d MB", r.limit>>20)
		if r.assumed {
			limit += " (assumed: CONFIG GET is not allowed)"
		}
		c.add(preflight.OK, x.Code, at.name, fmt.Sprintf("the %s has %d MB of memory left; a stalled feed may take %s", name, r.left>>20, limit), "")
	}
}
