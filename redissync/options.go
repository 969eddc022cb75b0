package redissync

import (
	"cmp"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"time"

	"replicator/metrics"
)

// Options say what one pair of Redis servers is and how it is synchronised.
type Options struct {
	// Migration and Name are the names of the migration and of this pair.
	Migration, Name string
	// SourceURL and TargetURL are redis[s]://[USER][:PASSWORD@]HOST[:PORT].
	SourceURL, TargetURL string
	// SourceTLS and TargetTLS say how rediss:// servers are trusted.
	SourceTLS, TargetTLS TLS
	// Epoch is the leader's term. Connections carry it in their names; those of older terms are cut.
	Epoch int64
	// Databases are those to move; empty means all. Other databases of the target are never touched.
	Databases []int
	// Include and Exclude are patterns of keys (*, ? and \ to quote); no Include means every key.
	Include, Exclude []string
	// Notifications says whether keyspace notifications are listened to beside the broadcast: "auto" (default; they cost nothing
	// where they are off), "off".
	Notifications string
	// Workers is the number of keys' lanes; 4 if zero.
	Workers int
	// BigBytes is the size in the origin's memory from which a key is copied in pieces; 16 MB if zero.
	BigBytes int64
	// Resuming makes Check accept a target that already holds keys.
	Resuming bool
	// ExpiryTolerance is how far expiries may differ in a verification; 5 ms if zero.
	ExpiryTolerance time.Duration
	// QuietFor is how long nothing may have been written before an origin that can't be held counts as quiet; 2 s if zero.
	QuietFor time.Duration
	// Lease is how long the lead outlives its holder's last sign of life; 10 s if zero.
	Lease   time.Duration
	Log     *slog.Logger
	Metrics *metrics.Redis
}

// ownPrefix begins the names of the few keys that replicator itself makes. They are never copied, deleted or compared.
const ownPrefix = "__replicator__:"

var unsafeInName = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

func sanitize(s string) string { return unsafeInName.ReplaceAllString(s, "_") }

// connectionName is replicator:MIGRATION:PAIR:ROLE:eEPOCH, as CLIENT LIST shows it.
func (o Options) connectionName(role string) string {
	return fmt.Sprintf("%s%s:e%d", o.namePrefix(), role, o.Epoch)
}

func (o Options) namePrefix() string {
	return "replicator:" + sanitize(o.Migration) + ":" + sanitize(o.Name) + ":"
}

// own is one of replicator's own keys. All of a migration's are in one slot of a cluster.
func (o Options) own(what string) string { return ownPrefix + "{" + o.Migration + "}:" + what }

// stateKey is the hash on the target that tells a later process that the target's keys are ours.
func (o Options) stateKey() string { return o.own("pair:" + o.Name) }

func (o Options) workers() int {
	if o.Workers <= 0 {
		return 4
	}
	return o.Workers
}

func (o Options) quietFor() time.Duration { return cmp.Or(o.QuietFor, 2*time.Second) }

func (o Options) lease() time.Duration { return cmp.Or(o.Lease, 10*time.Second) }

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log.With("pair", o.Name)
}

// ownsDatabase tells whether the database is ours to move.
func (o Options) ownsDatabase(db int) bool {
	return len(o.Databases) == 0 || slices.Contains(o.Databases, db)
}

// owns tells whether a key of a database of ours is ours to move.
func (o Options) owns(key string) bool {
	if strings.HasPrefix(key, ownPrefix) {
		return false
	}
	if len(o.Include) > 0 && !slices.ContainsFunc(o.Include, func(p string) bool { return matches(p, key) }) {
		return false
	}
	return !slices.ContainsFunc(o.Exclude, func(p string) bool { return matches(p, key) })
}

func (o Options) ownDatabases(dbs []int) []int {
	return slices.DeleteFunc(dbs, func(db int) bool { return !o.ownsDatabase(db) })
}

// matches tells whether s is of the form p, in which * stands for any bytes, ? for one, and \ quotes the next.
func matches(p, s string) bool {
	back, mark := -1, 0 // the last * and where its match began
	i, j := 0, 0
	for j < len(s) {
		switch {
		case i < len(p) && p[i] == '*':
			back, mark = i, j
			i++
			continue
		case i < len(p) && p[i] == '?':
			i, j = i+1, j+1
			continue
		case i+1 < len(p) && p[i] == '\\' && p[i+1] == s[j]:
			i, j = i+2, j+1
			continue
		case i < len(p) && p[i] != '\\' && p[i] == s[j]:
			i, j = i+1, j+1
			continue
		}
		if back < 0 {
			return false
		}
		mark++
		i, j = back+1, mark
	}
	return strings.Trim(p[i:], "*") == ""
}
