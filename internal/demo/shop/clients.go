package shop

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

// clients are the application's connections to one side.
type clients struct {
	at    Endpoint
	pool  *pgxpool.Pool // nil without Postgres
	redis *redis.Client // nil without Redis
	cache *redis.Client // the same server's second database
}

// dial opens the clients of a side. They connect when first used; the error is about the URLs.
func dial(ctx context.Context, at Endpoint, workers int) (*clients, error) {
	c := &clients{at: at}
	if at.PostgresURL != "" {
		config, err := pgxpool.ParseConfig(at.PostgresURL)
		if err != nil {
			return nil, fmt.Errorf("parse the %s Postgres URL: %w", at.Name, err)
		}
		config.MaxConns = int32(workers) + 2
		config.ConnConfig.ConnectTimeout = 5 * time.Second
		config.ConnConfig.RuntimeParams["application_name"] = "shop"
		if c.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
			return nil, fmt.Errorf("open a pool on the %s Postgres: %w", at.Name, err)
		}
	}
	if at.RedisURL != "" {
		options, err := redis.ParseURL(at.RedisURL)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("parse the %s Redis URL: %w", at.Name, err), c.close())
		}
		options.ClientName = "shop"
		options.MaxRetries = -1 // the library would repeat what may have happened already, unknown to the ledger
		options.ReadTimeout = 5 * time.Second
		options.PoolSize = workers + 2
		cache := *options
		cache.DB = cacheDatabase
		c.redis, c.cache = redis.NewClient(options), redis.NewClient(&cache)
	}
	return c, nil
}

// close cuts the Redis connections at once, in use or not, so that nothing is written through them afterwards, and ends the
// Postgres pool when what is in flight has ended (the old side's gate refuses what is still to come).
func (c *clients) close() error {
	var err error
	if c.redis != nil {
		err = errors.Join(c.redis.Close(), c.cache.Close())
	}
	if c.pool != nil {
		c.pool.Close()
	}
	return err
}

// closer closes clients in the background and can be waited for.
type closer struct{ running sync.WaitGroup }

func (c *closer) close(old *clients) {
	if old.redis != nil {
		_ = errors.Join(old.redis.Close(), old.cache.Close()) // nothing is left to do about a connection that won't close
	}
	c.running.Go(func() {
		if old.pool != nil {
			old.pool.Close()
		}
	})
}

// unknownError marks an attempt that broke off without an answer: it may have happened.
type unknownError struct{ err error }

func (e unknownError) Error() string { return "outcome unknown: " + e.err.Error() }
func (e unknownError) Unwrap() error { return e.err }

// temporaryPostgres says whether the same transaction may succeed later: the gate, a lost race, a server that is going or coming,
// a broken connection. (PostgreSQL documentation, "PostgreSQL Error Codes".)
func temporaryPostgres(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return true // the connection, not the statement
	}
	for _, class := range []string{"25006", "08", "40", "53", "55P03", "57"} {
		if strings.HasPrefix(pg.Code, class) {
			return true
		}
	}
	return false
}

// commitOutcome classifies what COMMIT returned: nil is committed; an error that the server answered with, the session living on,
// is not committed; anything else is unknown.
func commitOutcome(err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil, errors.Is(err, pgx.ErrTxCommitRollback), errors.Is(err, pgx.ErrTxClosed):
		return err
	case errors.As(err, &pg) && pg.Severity == "ERROR":
		return err
	}
	return unknownError{err}
}

// redisOutcome classifies what a Redis command returned: an error reply or a failed dial means that nothing was written; any
// other broken connection is unknown.
func redisOutcome(err error) error {
	var reply redis.Error
	var op *net.OpError
	switch {
	case err == nil, errors.As(err, &reply), errors.Is(err, redis.ErrClosed), errors.Is(err, redis.ErrPoolTimeout):
		return err
	case errors.As(err, &op) && op.Op == "dial":
		return err
	}
	return unknownError{err}
}

// temporaryRedis says whether the same command may succeed later.
func temporaryRedis(err error) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return true
	}
	for _, code := range []string{"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "UNBLOCKED"} {
		if strings.HasPrefix(reply.Error(), code) {
			return true
		}
	}
	return false
}
