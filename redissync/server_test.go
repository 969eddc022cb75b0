package redissync

import (
	"testing"
	"time"
)

func TestExpiriesAreCorrectedOnlyForClocksThatDiffer(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ ahead, exact, offset, slack time.Duration }{
		{0, ms / 2, 0, 0}, {-2 * ms, 0, 0, 0}, {3 * ms, 2 * ms, 0, 6 * ms}, {15 * ms, ms, 15 * ms, 27 * ms}, {-2 * time.Second, ms, -2 * time.Second, 27 * ms}, {300 * ms, 25 * ms, 300 * ms, 75 * ms},
	} {
		offset, slack := judgeOffset(c.ahead, c.exact)
		if offset != c.offset || slack != c.slack {
			t.Errorf("ahead %v exact %v: offset %v slack %v", c.ahead, c.exact, offset, slack)
		}
	}
	// Whatever is measured later of the same clocks, a key copied earlier stays within the slack.
	for ahead := -60 * ms; ahead <= 60*ms; ahead += ms {
		const exact = 2 * ms
		for noise := -exact; noise <= exact; noise += ms {
			then, _ := judgeOffset(ahead, exact)
			now, slack := judgeOffset(ahead+noise, exact)
			if (then - now).Abs() > slack+5*ms {
				t.Errorf("ahead %v then %v, now %v: slack %v", ahead, then, now, slack)
			}
		}
	}
}

func TestInfoIsRead(t *testing.T) {
	i := serverInfo{databases: map[int]int64{}, calls: map[string]int64{}, fields: map[string]string{}}
	i.parse("# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.0.1\r\nrun_id:abc\r\n# Keyspace\r\ndb0:keys=3,expires=1,avg_ttl=0\r\ndb11:keys=1,expires=0\r\n" +
		"cmdstat_swapdb:calls=2,usec=1\r\ncmdstat_function|load:calls=4,usec=1\r\nmodule:name=search,ver=1,api=1\r\nrole:master\r\ncluster_enabled:0\r\n")
	if i.version != 70204 || i.runID != "abc" || i.keys() != 4 || i.databases[11] != 1 || i.upheavals() != 2 || i.functionCalls() != 4 || len(i.modules) != 1 ||
		i.modules[0] != "search" || i.cluster || product(i) != "Valkey 8.0.1" || rdbVersion(i) != 11 {
		t.Errorf("%+v", i)
	}
}

func TestNoTouchIsNotUsedWhereItCrashesTheServer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		redis, valkey string
		want          bool
	}{{"7.0.15", "", false}, {"7.2.0", "", true}, {"7.4.1", "", true}, {"8.0.2", "", false}, {"8.2.2", "", false}, {"8.4.0", "", true},
		{"7.2.4", "8.0.1", true}, {"7.2.4", "8.1.1", false}, {"7.2.4", "9.1.2", true}} {
		i := serverInfo{version: parseVersion(c.redis), fields: map[string]string{"valkey_version": c.valkey}}
		if got := i.noTouchIsSafe(); got != c.want {
			t.Errorf("Redis %s, Valkey %s: %v", c.redis, c.valkey, got)
		}
	}
}
