package metrics

import "github.com/prometheus/client_golang/prometheus"

// RedisReading is what a Redis pair knows at the moment of a scrape; nil means unknown and is left out.
type RedisReading struct {
	// LagSeconds is the age of the oldest change that is not written on the target, 0 if there is none.
	LagSeconds *float64
	// DirtyKeys is how many keys wait to be copied or are being copied.
	DirtyKeys *float64
	// MemoryHeadroomBytes is the memory that the server which takes the application's writes has left.
	MemoryHeadroomBytes *float64
	// FeedBufferBytes is what that server keeps for our feed, and FeedBufferLimitBytes up to where it would.
	FeedBufferBytes, FeedBufferLimitBytes *float64
}

// Redis counts what one Redis pair does.
type Redis struct {
	copied     prometheus.Counter
	gaps       prometheus.Counter
	mismatches *mismatches
}

// NewRedis builds the metrics of the named pair and registers them; read is called at every scrape, from the scraper's goroutine,
// and must return at once.
func NewRedis(reg prometheus.Registerer, pair string, read func() RedisReading) *Redis {
	l := pairLabel(pair)
	r := &Redis{
		copied:     counter("replicator_redis_copied_keys_total", "Keys written to or deleted from the target because of the scan or of a change.", l),
		gaps:       counter("replicator_redis_gaps_total", "Interruptions of the change feed, each healed by comparing both sides whole.", l),
		mismatches: newMismatches(l),
	}
	register(reg, r.copied, r.gaps, r.mismatches, readings[RedisReading]{
		read: read,
		gauges: []reading[RedisReading]{
			{description("replicator_redis_lag_seconds", "Age of the oldest source change that is not yet written on the target; 0 if there is none.", l), func(r RedisReading) *float64 { return r.LagSeconds }},
			{description("replicator_redis_dirty_keys", "Keys that wait to be copied to the target or are being copied.", l), func(r RedisReading) *float64 { return r.DirtyKeys }},
			{description("replicator_redis_memory_headroom_bytes", "Memory left on the server that takes the application's writes: below maxmemory, or of the machine where there is none.", l), func(r RedisReading) *float64 { return r.MemoryHeadroomBytes }},
			{description("replicator_redis_feed_buffer_bytes", "Changes that the server keeps in its memory because the feed has not read them yet.", l), func(r RedisReading) *float64 { return r.FeedBufferBytes }},
			{description("replicator_redis_feed_buffer_limit_bytes", "Up to where the server keeps such changes before it ends the feed; 32 MB is assumed where it does not tell.", l), func(r RedisReading) *float64 { return r.FeedBufferLimitBytes }},
		},
	})
	return r
}

// Copied counts keys written to, or deleted from, the target.
func (r *Redis) Copied(n int) {
	if r == nil || n <= 0 {
		return
	}
	r.copied.Add(float64(n))
}

// Gap counts one interruption of the change feed.
func (r *Redis) Gap() {
	if r == nil {
		return
	}
	r.gaps.Inc()
}

// VerifyMismatches records how many keys the last finished verification found to differ.
func (r *Redis) VerifyMismatches(n int) {
	if r == nil {
		return
	}
	r.mismatches.set(n)
}
