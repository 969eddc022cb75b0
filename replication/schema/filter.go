package schema

import (
	"strings"

	"replicator/replication"
)

// Filter says which tables are replicated. A pattern is schema.table, where * stands for any run of characters; one without a dot is
// a table's name in any schema. An empty Include means all; Exclude wins. A partition is also matched by the names of the
// partitioned tables above it.
type Filter struct{ Include, Exclude []string }

// Match tells whether the table is replicated; above are the partitioned tables that it is a partition of.
func (f Filter) Match(name replication.TableName, above ...replication.TableName) bool {
	some := func(patterns []string) bool {
		for _, p := range patterns {
			if matches(p, name) {
				return true
			}
			for _, a := range above {
				if matches(p, a) {
					return true
				}
			}
		}
		return false
	}
	return (len(f.Include) == 0 || some(f.Include)) && !some(f.Exclude)
}

func matches(pattern string, n replication.TableName) bool {
	if !strings.Contains(pattern, ".") {
		return glob(pattern, n.Name)
	}
	return glob(pattern, n.String())
}

// glob matches with * alone, in time linear in the text for each star.
func glob(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}
