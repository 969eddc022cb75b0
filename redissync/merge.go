package redissync

import (
	"slices"
	"strconv"
	"strings"
)

// summed are the fields of INFO that add up over a cluster's primaries.
var summed = []string{"used_memory", "maxmemory", "expired_keys", "evicted_keys", "connected_clients", "blocked_clients"}

// mergeInfo is what a cluster's primaries are together: sums where numbers add up, the oldest version, and what one of them says
// otherwise. A single server's stays as it is.
func mergeInfo(nodes []serverInfo) serverInfo {
	if len(nodes) == 1 {
		return nodes[0]
	}
	oldest := slices.MinFunc(nodes, func(a, b serverInfo) int { return int(a.version) - int(b.version) })
	m := serverInfo{version: oldest.version, role: "master", cluster: true, databases: map[int]int64{}, calls: map[string]int64{}, fields: map[string]string{}, nodes: nodes}
	for k, v := range oldest.fields {
		m.fields[k] = v
	}
	var runs, repls []string
	sums := map[string]int64{}
	for _, n := range nodes {
		runs, repls = append(runs, n.runID), append(repls, n.replID)
		if n.role != "master" {
			m.role = n.role
		}
		m.expiring += n.expiring
		for db, keys := range n.databases {
			m.databases[db] += keys
		}
		for c, calls := range n.calls {
			m.calls[c] += calls
		}
		for _, name := range n.modules {
			if !slices.Contains(m.modules, name) {
				m.modules = append(m.modules, name)
			}
		}
		for _, f := range summed {
			if v, err := strconv.ParseInt(n.fields[f], 10, 64); err == nil {
				sums[f] += v
			}
		}
	}
	for f, v := range sums {
		m.fields[f] = strconv.FormatInt(v, 10)
	}
	m.runID, m.replID = strings.Join(runs, ","), strings.Join(repls, ",")
	return m
}
