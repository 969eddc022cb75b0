package redissync

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"replicator/internal/preflight"
)

// cluster checks how a side is laid out, and returns that; nil if it can't be relied on.
func (c *checker) cluster(ctx context.Context, at side, s *session) *layout {
	l, err := s.agreed(ctx)
	if err != nil {
		c.fail(err, at)
		return nil
	}
	if !l.cluster {
		return l
	}
	if n := l.unowned(); n > 0 {
		c.add(preflight.Error, "redis-cluster-slots", at.name, fmt.Sprintf("%d of the %s cluster's %d slots are held by no primary", n, at.name, slotCount), "assign them, or bring the missing primaries back: redis-cli --cluster fix")
		return nil
	}
	c.add(preflight.OK, "redis-cluster", at.name, fmt.Sprintf("the %s is a cluster of %d primaries", at.name, len(l.nodes)), "")
	if l.moving {
		c.add(preflight.Warning, "redis-cluster-moving", at.name, "slots of the "+at.name+" cluster are being moved", "everything is compared again until it is over: end it before a cutover (redis-cli --cluster check)")
	}
	return l
}

// acrossKeys are commands that take several keys: in a cluster all of them must be in one slot (Redis documentation, "Redis cluster
// specification", hash tags).
var acrossKeys = strings.Fields(`bitop blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin copy eval evalsha eval_ro evalsha_ro exec fcall
	fcall_ro geosearchstore lmove lmpop mget mset msetnx multi pfcount pfmerge rename renamenx rpoplpush sdiff sdiffstore sinter sinterstore
	smove sort sunion sunionstore xread xreadgroup zdiff zdiffstore zinter zinterstore zmpop zrangestore zunion zunionstore`)

// perNode are commands that in a cluster concern one primary only.
var perNode = strings.Fields("dbsize flushall flushdb keys randomkey scan script|load wait")

// crossSlot names what a source that is no cluster has been asked to do, since it started, that a cluster may refuse.
func (c *checker) crossSlot(source serverInfo) {
	used := func(names []string) (out []string) {
		names = slices.Clone(names)
		slices.SortStableFunc(names, func(a, b string) int { return int(source.calls[b] - source.calls[a]) })
		for _, n := range names {
			if source.calls[n] > 0 {
				out = append(out, fmt.Sprintf("%s (%d)", strings.ReplaceAll(n, "|", " "), source.calls[n]))
			}
		}
		return out
	}
	if names := used(acrossKeys); len(names) > 0 {
		c.add(preflight.Warning, "redis-cross-slot", "source", "the source was asked for commands that may take keys of several slots: "+strings.Join(names, ", "),
			"the target is a cluster, which refuses them (CROSSSLOT) unless all keys of one command, script or transaction share a slot: give such keys a {hash tag}, or take a target without cluster mode; replicator sees the commands, not their keys")
	}
	if names := used(perNode); len(names) > 0 {
		c.add(preflight.Info, "redis-cross-slot", "source", "the source was asked for commands that concern one primary of a cluster only: "+strings.Join(names, ", "), "see that the application's client runs them on every primary")
	}
	c.add(preflight.Info, "redis-cross-slot", "target", "the target is a cluster", "the application's client must speak Redis Cluster; scripts must be loaded on, or sent to, each primary")
}

// keyOn is a key, never written, in a slot that the node holds; empty if it holds none.
func (l *layout) keyOn(i int) string {
	if !l.cluster {
		return ownPrefix + "absent"
	}
	for slot, shard := range l.owner {
		if int(shard) == i {
			return fmt.Sprintf("%s{%s}absent", ownPrefix, slotTags()[slot])
		}
	}
	return ""
}

// eachNode calls f for each primary of a layout with what stands for it in messages.
func (l *layout) eachNode(at side, s *session, f func(i int, n *session, name string)) {
	if !l.cluster {
		f(0, s, at.name)
		return
	}
	for i, n := range l.nodes {
		f(i, s.node(n.address), at.name+"'s primary "+n.address)
	}
}

// sameServers tells whether two sides have a server in common.
func sameServers(a, b serverInfo) bool {
	ids := strings.Split(b.runID, ",")
	return slices.ContainsFunc(strings.Split(a.runID, ","), func(id string) bool { return slices.Contains(ids, id) })
}
