package redissync

import (
	"context"
	"fmt"
	"strings"

	"replicator/internal/preflight"
)

// fallback names what is used instead of something that a server doesn't have or allow.
func (c *checker) fallback(at side, name, lacks, instead string) {
	c.add(preflight.Info, "redis-fallback", at.name, fmt.Sprintf("the %s %s", name, lacks), instead)
}

// node checks one server by itself. Both sides need the same, since a rollback goes the other way. key is a key that it would hold.
func (c *checker) node(ctx context.Context, at side, name, key string, s *session) {
	info, err := readInfo(ctx, s)
	if err != nil {
		c.fail(err, at)
		return
	}
	if key != "" && !c.commands(ctx, at, name, key, info, s) {
		return
	}
	c.notifications(ctx, at, name, s)
	c.holding(ctx, at, name, info, s)
	fd, err := openFeed(ctx, s.endpoint, c.p.o.connectionName("check-feed"), c.p.o.Notifications != "off")
	if err != nil {
		c.add(preflight.Error, "redis-feed", at.name, "the "+name+" refuses to report its changes: "+err.Error(), "its user needs CLIENT TRACKING, SUBSCRIBE and PSUBSCRIBE on all channels and keys (ACL SETUSER … allkeys allchannels)")
	} else {
		fd.close()
		c.add(preflight.OK, "redis-feed", at.name, "the "+name+" reports its changes by client-side caching's broadcast", "")
	}
	c.headroom(ctx, at, name, s)
}

// commands tries each command that will be needed in a form that changes nothing. It tells whether the server answers.
func (c *checker) commands(ctx context.Context, at side, name, key string, info serverInfo, s *session) bool {
	probes := []command{
		{"SCAN", "0", "COUNT", "1"}, {"EXISTS", key}, {"TYPE", key}, {"DUMP", key}, {"PTTL", key}, {"MEMORY", "USAGE", key}, {"TIME"}, {"MULTI"}, {"DISCARD"},
		{"UNLINK", key}, {"RESTORE", key, "0", "not a payload"}, {"CLIENT", "LIST"}, {"CLIENT", "ID"}, {"CLIENT", "KILL", "ID", "9223372036854775807"}, {"SELECT", "0"},
	}
	if info.version >= 70000 {
		probes = append(probes, command{"PEXPIRETIME", key})
	} else {
		c.fallback(at, name, "doesn't know PEXPIRETIME (Redis 7.0)", "expiries are computed from PTTL and TIME, exact to a millisecond")
	}
	if policy := info.fields["maxmemory_policy"]; !info.noTouchIsSafe() && (strings.Contains(policy, "lru") || strings.Contains(policy, "lfu")) {
		c.fallback(at, name, "("+product(info)+") doesn't know CLIENT NO-TOUCH, or may crash under it", "keys that are read for copying and comparing look recently used, which changes what maxmemory-policy "+policy+" evicts first")
	}
	good, multi := true, true
	for _, p := range probes {
		_, err := s.do(ctx, p...)
		if err == nil || p[0] == "RESTORE" && badPayload(err) || p[0] == "DISCARD" && !multi {
			continue
		}
		if !isReplyError(err) {
			c.fail(err, at)
			return false
		}
		if p[0] == "MEMORY" {
			c.fallback(at, name, "doesn't allow MEMORY USAGE", "sizes are unknown, so that big values are copied as a whole instead of in pieces")
			continue
		}
		good, multi = false, multi && p[0] != "MULTI"
		c.refused(at, name, p, err)
	}
	if !multi { // what follows would be run
		return true
	}
	// What is queued and then discarded isn't run, but refused if it isn't allowed.
	dryly := []command{
		{"SET", key, "v"}, {"APPEND", key, "v"}, {"RPUSH", key, "v"}, {"SADD", key, "v"}, {"HSET", key, "f", "v"}, {"ZADD", key, "1", "v"}, {"XADD", key, "*", "f", "v"},
		{"XGROUP", "CREATE", key, "g", "0"}, {"PEXPIREAT", key, "1"}, {"PERSIST", key}, {"PSETEX", key, "1", "v"}, {"HSETNX", key, "f", "v"}, {"RENAME", key, key},
	}
	for _, p := range dryly {
		err := dry(ctx, s, p)
		if err != nil && !isReplyError(err) {
			c.fail(err, at)
			return false
		}
		if err != nil {
			good = false
			c.refused(at, name, p, err)
		}
	}
	if good {
		c.add(preflight.OK, "redis-commands", at.name, "the "+name+" allows every command that is needed", "")
	}
	return true
}

func (c *checker) refused(at side, name string, p command, err error) {
	code, hint := classify(err, at)
	word := p[0]
	if word == "CLIENT" || word == "XGROUP" || word == "FUNCTION" {
		word += " " + p[1]
	}
	c.add(preflight.Error, code, at.name, fmt.Sprintf("%s on the %s: %v", word, name, err), hint)
}

// dry asks whether a command would be accepted, without running it. MULTI must be allowed.
func dry(ctx context.Context, s *session, cmd command) error {
	l, err := s.open(ctx)
	if err != nil {
		return err
	}
	vs, err := l.pipe(ctx, []command{{"MULTI"}, cmd, {"DISCARD"}})
	if err != nil {
		return err
	}
	return vs[1].err()
}

// notifications tells whether the second feed is there; it costs nothing where it is off.
func (c *checker) notifications(ctx context.Context, at side, name string, s *session) {
	v, err := s.do(ctx, "CONFIG", "GET", "notify-keyspace-events")
	switch {
	case c.p.o.Notifications == "off":
	case err != nil || len(v.items) != 2:
		c.add(preflight.OK, "redis-notifications", at.name, "whether the "+name+" has keyspace notifications on can't be read: they are used if they come", "")
	case strings.Contains(v.items[1].str, "E") && strings.ContainsAny(v.items[1].str, "Ag"):
		c.add(preflight.OK, "redis-notifications", at.name, "the "+name+" has keyspace notifications on ("+v.items[1].str+"): they are used beside the broadcast", "")
	default:
		c.add(preflight.OK, "redis-notifications", at.name, "the "+name+" has keyspace notifications off: the broadcast alone reports every change, without the database's number", "")
	}
}

// holding tells by what a cutover will hold the server's writes.
func (c *checker) holding(ctx context.Context, at side, name string, info serverInfo, s *session) {
	var err error
	why := "is " + product(info) + ", which can't hold writes alone (CLIENT PAUSE … WRITE)"
	if info.version >= 60200 {
		if _, err = s.do(ctx, "CLIENT", "PAUSE", "0", "WRITE"); err == nil {
			err = dry(ctx, s, command{"CLIENT", "UNPAUSE"})
		}
		if err == nil {
			return
		}
		if !isReplyError(err) {
			c.fail(err, at)
			return
		}
		why = "doesn't allow CLIENT PAUSE and UNPAUSE"
	}
	c.add(preflight.Warning, "redis-pause", at.name, fmt.Sprintf("the %s %s: a cutover from there waits until nobody writes", name, why),
		"stop all writers by a hook at: before; the cutover proves that nothing is written any more, and gives up otherwise. Better allow it: ACL SETUSER … +client|pause +client|unpause")
}

// loading tells whether the target takes the functions that the source has.
func (c *checker) loading(ctx context.Context, t *session) {
	for _, p := range []command{{"FUNCTION", "LIST", "WITHCODE"}, {"FUNCTION", "LOAD", "REPLACE", "x"}, {"FUNCTION", "DELETE", "x"}} {
		err := t.everyNode(ctx, func(n *session) error { return dry(ctx, n, p) })
		if isReplyError(err) {
			c.refused(c.p.target, "target", p, err)
		} else if err != nil {
			c.fail(err, c.p.target)
			return
		}
	}
}
