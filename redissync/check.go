package redissync

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"replicator/internal/preflight"
)

// checker collects findings of one pair.
type checker struct {
	p        *Pair
	findings []preflight.Finding
}

func (c *checker) add(s preflight.Severity, code, side, message, hint string) {
	c.findings = append(c.findings, preflight.Finding{Code: code, Severity: s, Pair: c.p.o.Name, Side: side, Message: message, Hint: hint})
}

func (c *checker) fail(err error, at side) {
	_, f := problemOf(err, at, "")
	c.add(preflight.Error, f.Code, at.name, f.Message, f.Hint)
}

// Check probes both servers for everything that copying, cutover and rollback will need, and changes nothing. It never fails: what
// can't be reached is a finding too. What was probed and is good is there as well.
func Check(ctx context.Context, o Options) []preflight.Finding {
	p := New(o)
	c := &checker{p: p}
	if p.err != nil {
		c.add(preflight.Error, "redis-url", "", p.err.Error(), "correct the URL in the configuration")
		return c.findings
	}
	var infos [2]serverInfo
	var sessions [2]*session
	reached := true
	for i, at := range []side{p.source, p.target} {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		sessions[i] = &session{endpoint: at.endpoint, name: o.connectionName("check")}
		defer sessions[i].close()
		info, err := readInfo(ctx, sessions[i])
		if err != nil {
			c.fail(err, at)
			reached = false
			continue
		}
		infos[i] = info
		c.add(preflight.OK, "redis-reachable", at.name, fmt.Sprintf("the %s is %s with %d keys", at.name, product(info), info.keys()), "")
		reached = c.server(ctx, at, info, sessions[i]) && reached
	}
	if reached {
		c.together(ctx, infos[0], infos[1], sessions[0], sessions[1])
	}
	return c.findings
}

// product is the server's name and version for people.
func product(i serverInfo) string {
	if v := i.fields["valkey_version"]; v != "" {
		return "Valkey " + v
	}
	return "Redis " + i.version.String()
}

// server checks one side by itself. It tells whether the side can be asked about keys.
func (c *checker) server(ctx context.Context, at side, info serverInfo, s *session) bool {
	if info.version < 60000 {
		c.add(preflight.Error, "redis-version", at.name, "the "+at.name+" is "+product(info)+", which can't report its changes", "upgrade it to Redis 6.2 or newer, or Valkey")
	}
	if info.role != "master" {
		c.add(preflight.Error, "redis-not-primary", at.name, "the "+at.name+" is a replica", "give the address of the primary, as the provider's primary endpoint does")
	}
	if len(info.modules) > 0 {
		sev := preflight.Warning
		if at.name == "source" {
			sev = preflight.Error
		}
		c.add(sev, "redis-modules", at.name, "the "+at.name+" has modules loaded: "+strings.Join(info.modules, ", "), "keys of module types can't be carried over: remove them and unload the modules, or exclude this server")
	}
	l := c.cluster(ctx, at, s)
	if l == nil {
		return false
	}
	l.eachNode(at, s, func(i int, n *session, name string) { c.node(ctx, at, name, l.keyOn(i), n) })
	return true
}

// together checks what depends on both sides.
func (c *checker) together(ctx context.Context, source, target serverInfo, s, t *session) {
	if sameServers(source, target) {
		c.add(preflight.Error, "redis-same-server", "", "source and target are the same server", "give two different servers")
		return
	}
	if target.cluster && !source.cluster {
		c.crossSlot(source)
	}
	c.order(ctx, source, target, s)
	for _, db := range c.p.o.ownDatabases(mergeDatabases(source.databases)) {
		if _, err := t.do(ctx, "SELECT", strconv.Itoa(db)); err != nil {
			c.add(preflight.Error, "redis-databases", "target", fmt.Sprintf("the source uses database %d with %d keys, which the target doesn't have: %v", db, source.databases[db], err), "raise `databases` on the target (a cluster has database 0 only), or name those to move: databases: [0]")
		}
	}
	t.close() // back to database 0
	c.targetContents(ctx, t)
	c.payloads(ctx, s, t)
	c.memory(source, target)
	if a, exact, err := clock(ctx, s); err == nil {
		if b, exactB, err := clock(ctx, t); err == nil && (b-a).Abs() > time.Second+exact+exactB {
			c.add(preflight.Warning, "redis-clock", "", fmt.Sprintf("the servers' clocks differ by %v", (b-a).Round(time.Millisecond)), "expiries are corrected by the difference; better synchronise the clocks (NTP)")
		}
	}
	if source.version >= 70000 {
		v, err := s.do(ctx, "FUNCTION", "LIST")
		if isReplyError(err) {
			c.add(preflight.Warning, "redis-functions", "source", "the source doesn't tell its functions: "+err.Error(), "allow its user FUNCTION LIST, or load the functions into the target yourself")
		}
		if err == nil && len(v.items) > 0 && target.version < 70000 {
			c.add(preflight.Error, "redis-functions", "target", fmt.Sprintf("the source has %d function libraries, which %s doesn't know", len(v.items), product(target)), "take a target of Redis 7.0 or newer, or Valkey")
		} else if err == nil && len(v.items) > 0 {
			c.loading(ctx, t)
		}
	}
	switch {
	case source.expiring > 0 && !target.fieldExpiry():
		c.add(preflight.Error, "redis-field-expiry", "target", fmt.Sprintf("%d hashes of the source have fields that expire by themselves, which %s doesn't know", source.expiring, product(target)),
			"take a target of Redis 7.4, Valkey 9.0 or newer, or exclude the keys: they would not be copied")
	case target.fieldExpiry() && !source.fieldExpiry():
		c.add(preflight.Info, "redis-field-expiry", "source", "the target knows fields that expire by themselves (HPEXPIRE), which "+product(source)+" doesn't", "don't use them as long as a rollback is to stay possible")
	}
	if c.p.source.endpoint.database > 0 || c.p.target.endpoint.database > 0 {
		c.add(preflight.Info, "redis-url-database", "", "a URL names a database: all databases are moved, each to the one of the same number", "name certain databases in the configuration if not all are to be moved")
	}
}

// rdbVersion is the version of the payloads that a server makes and understands.
func rdbVersion(i serverInfo) int {
	valkey := parseVersion(i.fields["valkey_version"])
	switch {
	case valkey >= 90000:
		return 80
	case valkey > 0:
		return 11
	case i.version >= 70400:
		return 12
	case i.version >= 70200:
		return 11
	case i.version >= 70000:
		return 10
	}
	return 9
}

func (c *checker) order(ctx context.Context, source, target serverInfo, s *session) {
	from, to := rdbVersion(source), rdbVersion(target)
	if k, err := s.do(ctx, "RANDOMKEY"); err == nil && !k.null {
		if size, err := s.do(ctx, "MEMORY", "USAGE", k.str); err == nil && size.num < batchBytes {
			if v, err := s.do(ctx, "DUMP", k.str); err == nil && len(v.str) > 10 {
				from = int(binary.LittleEndian.Uint16([]byte(v.str[len(v.str)-10:])))
			}
		}
	}
	switch {
	case from > to:
		c.add(preflight.Warning, "redis-version-order", "target", fmt.Sprintf("%s (payload version %d) is older than the source's %s (%d)", product(target), to, product(source), from),
			"values of encodings that the target doesn't know are written by commands, which is slower: better take a target of the same or a newer version")
	case from < to:
		c.add(preflight.Info, "redis-version-order", "target", fmt.Sprintf("%s is newer than the source's %s: after the switch, values go back to an older version", product(target), product(source)),
			"a rollback writes values by commands where the source doesn't know their encoding")
	}
}

func (c *checker) targetContents(ctx context.Context, t *session) {
	v, err := t.do(ctx, "HGETALL", c.p.o.stateKey())
	if err != nil {
		c.fail(err, c.p.target)
		return
	}
	if len(v.items) > 0 {
		c.add(preflight.Info, "redis-resuming", "target", "the target was claimed by this migration before: it is made equal to the source again", "")
		return
	}
	n, err := c.p.foreignKeys(ctx)
	if err != nil {
		c.fail(err, c.p.target)
		return
	}
	if n > 0 && !c.p.o.Resuming {
		_, f := problemOf(targetNotEmpty(n), c.p.target, "")
		c.add(preflight.Error, f.Code, "target", f.Message, f.Hint)
		return
	}
	c.add(preflight.OK, "redis-target-empty", "target", "the target holds no keys", "")
}

func (c *checker) memory(source, target serverInfo) {
	limit, _ := strconv.ParseInt(target.fields["maxmemory"], 10, 64)
	used, _ := strconv.ParseInt(source.fields["used_memory"], 10, 64)
	policy := target.fields["maxmemory_policy"]
	if policy != "" && policy != "noeviction" {
		c.add(preflight.Warning, "redis-eviction", "target", "the target may drop keys when its memory is full (maxmemory-policy "+policy+")",
			"set maxmemory-policy noeviction on the target until the cutover is done, unless the keys are a mere cache")
	}
	switch {
	case limit == 0:
	case used > limit:
		c.add(preflight.Error, "redis-memory", "target", fmt.Sprintf("the source uses %d MB; the target's maxmemory is %d MB", used>>20, limit>>20), "take a larger target")
	case used > limit*8/10:
		c.add(preflight.Warning, "redis-memory", "target", fmt.Sprintf("the source uses %d MB; the target's maxmemory is %d MB", used>>20, limit>>20), "take a larger target, or watch its memory")
	}
}
