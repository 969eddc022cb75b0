package shop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"replicator/internal/demo/ledger"
)

// The kinds of Redis writes that the ledger proves.
const (
	kindOrders   = "orders" // all Postgres transactions
	kindJobs     = "jobs"
	kindActivity = "activity"
	kindViews    = "views"
)

// enqueue puts a job into the queue or the schedule once, however often it is called with the same id.
var enqueue = redis.NewScript(`
if not redis.call('SET', KEYS[1], '1', 'NX', 'EX', 3600) then return 0 end
redis.call('SADD', KEYS[2], 'default')
if ARGV[2] == '0' then redis.call('LPUSH', KEYS[3], ARGV[1]) else redis.call('ZADD', KEYS[4], ARGV[2], ARGV[1]) end
return 1`)

// promote moves jobs that are due from the schedule into the queue.
var promote = redis.NewScript(`
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 10)
for _, job in ipairs(due) do
  if redis.call('ZREM', KEYS[1], job) == 1 then redis.call('LPUSH', KEYS[2], job) end
end
return #due`)

// chunk bounds the lists and streams that hold the proof, so that each stays a small key.
const chunk = 200

// redisKind picks what a Redis worker writes next.
func redisKind(r *rand.Rand) string {
	switch n := r.IntN(100); {
	case n < 45:
		return kindJobs
	case n < 70:
		return kindActivity
	}
	return kindViews
}

// redisWrite fixes the parameters of one Redis write and returns its attempt.
func redisWrite(r *rand.Rand, w *ledger.Write) func(context.Context, *clients) error {
	number, seq := w.Worker.Number, w.Sequence
	switch w.Worker.Kind {
	case kindJobs:
		job, delay := fmt.Sprintf(`{"class":"ShipOrder","jid":"%s","args":[%d]}`, w.ID, r.IntN(1000)), time.Duration(0)
		if r.IntN(3) == 0 {
			delay = time.Duration(r.IntN(5000)) * time.Millisecond
		}
		return func(ctx context.Context, c *clients) error {
			score := "0"
			if delay > 0 {
				score = fmt.Sprintf("%.3f", float64(time.Now().Add(delay).UnixMilli())/1000)
			}
			return enqueue.Eval(ctx, c.redis, []string{"job:" + w.ID, "queues", "queue:default", "schedule"}, job, score).Err()
		}
	case kindActivity:
		key := fmt.Sprintf("activity:%d:%d", number, seq/chunk)
		return func(ctx context.Context, c *clients) error {
			err := c.redis.XAdd(ctx, &redis.XAddArgs{Stream: key, ID: fmt.Sprintf("%d-1", seq), Values: []any{"write", w.ID}}).Err()
			if err != nil && strings.Contains(err.Error(), "equal or smaller than the target stream top item") {
				return nil // an earlier attempt did it: this worker's ids only grow
			}
			return err
		}
	default:
		session, user := fmt.Sprintf("session:%d", r.IntN(2000)), r.IntN(1000)
		return func(ctx context.Context, c *clients) error {
			p := c.redis.TxPipeline()
			p.Incr(ctx, viewsKey(number))
			p.HSet(ctx, session, "user", user, "seen", w.ID)
			p.Expire(ctx, session, 30*time.Minute)
			_, err := p.Exec(ctx)
			return err
		}
	}
}

func viewsKey(worker int) string { return fmt.Sprintf("views:worker:%d", worker) }

// housekeeping does one of the many small things that applications do in Redis besides and of which nobody keeps a book: locks,
// caches, rankings, taking jobs from the queue. It tells an error only so that the worker knows to look around.
func housekeeping(ctx context.Context, c *clients, r *rand.Rand, worker, tick int) error {
	n := r.IntN(1000)
	switch r.IntN(8) {
	case 0, 1: // take a job; a job is always in exactly one list
		return ignoreNil(c.redis.RPopLPush(ctx, "queue:default", fmt.Sprintf("done:%d:%d", worker, tick/chunk)).Err())
	case 2:
		return promote.Eval(ctx, c.redis, []string{"schedule", "queue:default"}, float64(time.Now().UnixMilli())/1000).Err()
	case 3: // a lock that is held for moments only
		return ignoreNil(c.redis.SetArgs(ctx, fmt.Sprintf("lock:%d", n%50), worker, redis.SetArgs{Mode: "NX", TTL: time.Duration(5+r.IntN(500)) * time.Millisecond}).Err())
	case 4:
		return c.redis.Del(ctx, fmt.Sprintf("lock:%d", n%50), fmt.Sprintf("session:%d", n)).Err()
	case 5:
		return c.cache.Set(ctx, fmt.Sprintf("cache:%d", n), fmt.Sprintf("<li>%x</li>", r.Uint64()), time.Duration(1+r.IntN(60))*time.Second).Err()
	case 6:
		return c.redis.ZIncrBy(ctx, "leaderboard", r.NormFloat64()*10, fmt.Sprintf("user:%d", n)).Err()
	default:
		return c.redis.XAdd(ctx, &redis.XAddArgs{Stream: "activity", MaxLen: 500, Approx: true, Values: []any{"user", n}}).Err()
	}
}

func ignoreNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}
