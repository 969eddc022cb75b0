package shop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"
)

// cacheDatabase is a second Redis database that the shop uses, as applications do on a standalone server.
const cacheDatabase = 1

// loadRedis fills the shop's Redis: sessions, counters, queues in Sidekiq's manner, a leaderboard, streams, and a cache in a
// second database.
func loadRedis(ctx context.Context, url string, size Size) (keys int64, err error) {
	options, err := redis.ParseURL(url)
	if err != nil {
		return 0, err
	}
	main := redis.NewClient(options)
	cacheOptions := *options
	cacheOptions.DB = cacheDatabase
	cache := redis.NewClient(&cacheOptions)
	defer func() { err = errors.Join(err, main.Close(), cache.Close()) }()

	r := rand.New(rand.NewPCG(size.Seed, 2))
	p, c := main.Pipeline(), cache.Pipeline()
	flush := func() error {
		_, err1 := p.Exec(ctx)
		_, err2 := c.Exec(ctx)
		return errors.Join(err1, err2)
	}
	for i := range size.Keys {
		switch {
		case i%10 < 6:
			key := fmt.Sprintf("session:%d", i)
			p.HSet(ctx, key, "user", 1+r.IntN(max(size.Users, 1)), "csrf", r.Uint64(), "flash", "wêlcome\x00\xff")
			p.Expire(ctx, key, time.Hour+time.Duration(r.IntN(3600))*time.Second)
		case i%10 < 8:
			p.Set(ctx, fmt.Sprintf("views:%d", i), r.IntN(100_000), 0)
		default:
			c.Set(ctx, fmt.Sprintf("cache:%d", i), fmt.Sprintf("<li>%x</li>", r.Uint64()), time.Hour+time.Duration(r.IntN(3600))*time.Second)
		}
		if i%1000 == 999 {
			if err := flush(); err != nil {
				return 0, err
			}
		}
	}
	p.SAdd(ctx, "queues", "default", "mailers")
	for i := range size.Keys / 20 {
		p.LPush(ctx, "queue:mailers", fmt.Sprintf(`{"class":"WelcomeMail","jid":"%x","args":[%d]}`, r.Uint64(), i))
		p.ZAdd(ctx, "schedule", redis.Z{Score: float64(time.Now().Add(time.Hour).Unix()) + r.Float64(), Member: fmt.Sprintf(`{"class":"Remind","args":[%d]}`, i)})
		p.ZAdd(ctx, "leaderboard", redis.Z{Score: r.NormFloat64() * 1e6, Member: fmt.Sprintf("user:%d", i)})
		p.HSet(ctx, "carts", fmt.Sprintf("cart:%d", i), r.IntN(100))
		p.SAdd(ctx, "online", r.IntN(size.Keys))
		p.XAdd(ctx, &redis.XAddArgs{Stream: "activity", Values: []any{"user", i, "action", "login"}})
	}
	p.SetBit(ctx, "seen", 100_003, 1)
	p.PFAdd(ctx, "visitors", 1, 2, 3, 4)
	if err := flush(); err != nil {
		return 0, err
	}
	n, err1 := main.DBSize(ctx).Result()
	m, err2 := cache.DBSize(ctx).Result()
	return n + m, errors.Join(err1, err2)
}
