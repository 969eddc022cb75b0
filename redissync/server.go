package redissync

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serverInfo is what INFO says of one server (Redis documentation, "INFO").
type serverInfo struct {
	version   version
	runID     string
	replID    string
	role      string
	cluster   bool
	modules   []string
	databases map[int]int64 // keys per database
	expiring  int64         // hashes with fields that expire
	calls     map[string]int64
	fields    map[string]string
	nodes     []serverInfo // of a cluster's primaries, of which the rest is the sum
}

// version is major*10000 + minor*100 + patch of the Redis compatibility level; Valkey reports 7.2.4 there.
type version int

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100) }

func parseVersion(s string) version {
	var n [3]int
	for i, part := range strings.SplitN(s, ".", 3) {
		n[i], _ = strconv.Atoi(part)
	}
	return version(n[0]*10000 + n[1]*100 + n[2])
}

// readInfo asks for the sections that decisions rest on; sections are asked for one by one since only 7.0 takes several.
func readInfo(ctx context.Context, s *session, sections ...string) (serverInfo, error) {
	if len(sections) == 0 {
		sections = []string{"server", "replication", "keyspace", "commandstats", "memory", "cluster", "modules"}
	}
	var nodes []serverInfo
	err := s.everyNode(ctx, func(n *session) error {
		l, err := n.open(ctx)
		if err != nil {
			return err
		}
		info, err := infoOn(ctx, l, sections...)
		nodes = append(nodes, info)
		return err
	})
	if err != nil {
		return serverInfo{}, err
	}
	return mergeInfo(nodes), nil
}

func infoOn(ctx context.Context, l *link, sections ...string) (serverInfo, error) {
	cmds := make([]command, len(sections))
	for i, name := range sections {
		cmds[i] = command{"INFO", name}
	}
	vs, err := l.pipe(ctx, cmds)
	if err != nil {
		return serverInfo{}, err
	}
	info := serverInfo{databases: map[int]int64{}, calls: map[string]int64{}, fields: map[string]string{}}
	for _, v := range vs {
		if err := v.err(); err != nil {
			return serverInfo{}, fmt.Errorf("INFO: %w", err)
		}
		info.parse(v.str)
	}
	return info, nil
}

func (i *serverInfo) parse(text string) {
	for line := range strings.Lines(text) {
		name, val, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || strings.HasPrefix(name, "#") {
			continue
		}
		switch {
		case name == "module":
			i.modules = append(i.modules, between(val, "name=", ","))
		case strings.HasPrefix(name, "db") && strings.HasPrefix(val, "keys="):
			db, err := strconv.Atoi(name[2:])
			n, _ := strconv.ParseInt(between(val, "keys=", ","), 10, 64)
			for _, name := range []string{",subexpiry=", ",keys_with_volatile_items="} { // Redis and Valkey
				hashes, _ := strconv.ParseInt(between(val+",", name, ","), 10, 64)
				i.expiring += hashes
			}
			if err == nil {
				i.databases[db] = n
			}
		case strings.HasPrefix(name, "cmdstat_"):
			n, _ := strconv.ParseInt(between(val, "calls=", ","), 10, 64)
			i.calls[strings.ToLower(strings.TrimPrefix(name, "cmdstat_"))] = n
		default:
			i.fields[name] = val
		}
	}
	i.version = parseVersion(i.fields["redis_version"])
	i.runID, i.replID, i.role = i.fields["run_id"], i.fields["master_replid"], i.fields["role"]
	i.cluster = i.fields["cluster_enabled"] == "1" || i.fields["redis_mode"] == "cluster"
}

// noTouchIsSafe tells whether the server has CLIENT NO-TOUCH, and not the versions of it that crash (see link.unnoticed).
func (i serverInfo) noTouchIsSafe() bool {
	if v := parseVersion(i.fields["valkey_version"]); v != 0 {
		return v < 80100 || v >= 90000
	}
	return i.version >= 70200 && i.version < 80000 || i.version >= 80400
}

// fieldExpiry tells whether fields of hashes may have expiries of their own (Redis 7.4 and Valkey 9.0, "HPEXPIRE").
func (i serverInfo) fieldExpiry() bool {
	if v := parseVersion(i.fields["valkey_version"]); v != 0 {
		return v >= 90000
	}
	return i.version >= 70400
}

func between(s, from, to string) string {
	_, s, ok := strings.Cut(s, from)
	if !ok {
		return ""
	}
	s, _, _ = strings.Cut(s, to)
	return s
}

func (i serverInfo) keys() (n int64) {
	for _, k := range i.databases {
		n += k
	}
	return n
}

// upheavals sums the calls of the commands that change keys without any event that names them.
func (i serverInfo) upheavals() (n int64) {
	for _, c := range []string{"swapdb", "flushall", "flushdb", "restore-asking"} {
		n += i.calls[c]
	}
	return n + i.calls["debug"]
}

// functionCalls sums the calls that change the server's functions.
func (i serverInfo) functionCalls() (n int64) {
	for _, c := range []string{"load", "delete", "flush", "restore"} {
		n += i.calls["function|"+c]
	}
	return n
}

// clock measures how far the server's clock is ahead of ours, by the fastest of a few exchanges, and how exact that is. Of a cluster, it
// is the middle of its primaries' clocks, and as exact as these agree.
func clock(ctx context.Context, s *session) (ahead, exact time.Duration, err error) {
	var least, most time.Duration
	first := true
	err = s.everyNode(ctx, func(n *session) error {
		a, e, err := nodeClock(ctx, n)
		if err != nil {
			return err
		}
		if first {
			least, most, first = a, a, false
		}
		least, most, exact = min(least, a), max(most, a), max(exact, e)
		return nil
	})
	return (least + most) / 2, exact + (most-least)/2, err
}

func nodeClock(ctx context.Context, s *session) (ahead, exact time.Duration, err error) {
	exact = time.Hour
	for range 7 {
		before := time.Now()
		v, err := s.do(ctx, "TIME")
		if err != nil {
			return 0, 0, err
		}
		took := time.Since(before)
		if len(v.items) != 2 {
			return 0, 0, fmt.Errorf("TIME: unexpected reply")
		}
		sec, _ := strconv.ParseInt(v.items[0].str, 10, 64)
		usec, _ := strconv.ParseInt(v.items[1].str, 10, 64)
		if took < exact {
			exact = took
			ahead = time.UnixMicro(sec*1e6 + usec).Sub(before.Add(took / 2))
		}
	}
	return ahead, exact / 2, nil
}

// clockOffset is what must be added to an expiry read on origin so that it falls on the same instant on destination: zero where
// the clocks agree well enough, so that equal expiries stay equal. Slack is how far expiries of a key copied earlier, or in the other
// direction, may differ because the offset was measured anew.
func clockOffset(ctx context.Context, origin, destination *session) (offset, slack time.Duration, err error) {
	a, exactA, err := clock(ctx, origin)
	if err != nil {
		return 0, 0, err
	}
	b, exactB, err := clock(ctx, destination)
	if err != nil {
		return 0, 0, err
	}
	offset, slack = judgeOffset(b-a, exactA+exactB)
	return offset, slack, nil
}

// agreeing is up to where two clocks count as the same, so that equal expiries stay equal.
const agreeing = 2 * time.Millisecond

// drifting is how far clocks that nobody keeps in step may drift between two measurements.
const drifting = 25 * time.Millisecond

func judgeOffset(ahead, exact time.Duration) (offset, slack time.Duration) {
	if ahead.Abs() <= agreeing+exact {
		if exact < time.Millisecond {
			return 0, 0
		}
		return 0, 3 * exact // measured again, the same clocks may seem to differ by so much more
	}
	return ahead.Round(time.Millisecond), drifting + 2*exact
}

// clientInfo is one line of CLIENT LIST.
type clientInfo struct {
	id, name, flags string
	addr, cmd       string
	idle            int // seconds
}

// doer runs one command; a link or a session.
type doer interface {
	do(ctx context.Context, args ...string) (value, error)
}

func listClients(ctx context.Context, s doer) ([]clientInfo, error) {
	v, err := s.do(ctx, "CLIENT", "LIST")
	if err != nil {
		return nil, err
	}
	return parseClients(v.str), nil
}

func parseClients(text string) []clientInfo {
	var out []clientInfo
	for line := range strings.Lines(text) {
		line = " " + strings.TrimSpace(line) + " "
		idle, _ := strconv.Atoi(between(line, " idle=", " "))
		out = append(out, clientInfo{id: between(line, " id=", " "), name: between(line, " name=", " "), flags: between(line, " flags=", " "),
			addr: between(line, " addr=", " "), cmd: between(line, " cmd=", " "), idle: idle})
	}
	return out
}

func mergeDatabases(ms ...map[int]int64) []int {
	set := map[int]struct{}{}
	for _, m := range ms {
		for db := range m {
			set[db] = struct{}{}
		}
	}
	return sortedInts(set)
}

func subtract(a, b []int) []int {
	return slices.DeleteFunc(slices.Clone(a), func(x int) bool { return slices.Contains(b, x) })
}
