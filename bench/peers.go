package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislimiter"
	"github.com/throttled/throttled/v2"
	store "github.com/throttled/throttled/v2/store/goredisstore.v9"
)

var errLimited = errors.New("limited, though the limit is far")

// calls is a session made of functions.
type calls struct {
	admit   func(ctx context.Context, caller int) error
	release func(ctx context.Context, caller int) error // nil: nothing to tell
	close   func() error
}

func (c calls) Admit(ctx context.Context, caller int) error { return c.admit(ctx, caller) }
func (c calls) Release(ctx context.Context, caller int) error {
	if c.release == nil {
		return nil
	}
	return c.release(ctx, caller)
}
func (c calls) Close() error { return c.close() }

// overRedis builds a session on a go-redis client.
func overRedis(build func(s setup, rdb *redis.Client) (calls, error)) func(setup) (session, error) {
	return func(s setup) (session, error) {
		rdb, err := s.client()
		if err != nil {
			return nil, err
		}
		c, err := build(s, rdb)
		if err != nil {
			rdb.Close()
			return nil, err
		}
		c.close = rdb.Close
		return c, nil
	}
}

var rateLimit = redis_rate.Limit{Rate: farLimit, Burst: farLimit, Period: time.Minute}

func allow(limiter *redis_rate.Limiter, key string) func(context.Context, int) error {
	return func(ctx context.Context, _ int) error {
		result, err := limiter.Allow(ctx, key, rateLimit)
		if err == nil && result.Allowed == 0 {
			err = errLimited
		}
		return err
	}
}

var redisRate = impl{
	name: "redis_rate", does: "pace", commands: []string{"evalsha", "eval"},
	open: overRedis(func(s setup, rdb *redis.Client) (calls, error) {
		return calls{admit: allow(redis_rate.NewLimiter(rdb), s.account)}, nil
	}),
}

var redisRateAutoPipeline = impl{
	name: "redis_rate+autopipeline", does: "pace", commands: []string{"evalsha", "eval"},
	open: overRedis(func(s setup, rdb *redis.Client) (calls, error) {
		pipeline, err := rdb.AutoPipeline()
		if err != nil {
			return calls{}, err
		}
		return calls{admit: allow(redis_rate.NewLimiter(pipeline), s.account)}, nil
	}),
}

// A semaphore as people write it: leases in a sorted set by expiry. The expired
// are removed, one is added, and if it stands too far back it is taken out again.
var redisRateSemaphore = impl{
	name: "redis_rate+semaphore", does: "pace, slot; release",
	commands: []string{"evalsha", "eval", "zremrangebyscore", "zadd", "zrank", "zrem"},
	open: overRedis(func(s setup, rdb *redis.Client) (calls, error) {
		pace := allow(redis_rate.NewLimiter(rdb), s.account)
		key := "semaphore:" + s.account
		lease := make([]string, s.callers)
		for i := range lease {
			lease[i] = s.worker + ":" + strconv.Itoa(i)
		}
		return calls{
			admit: func(ctx context.Context, caller int) error {
				if err := pace(ctx, caller); err != nil {
					return err
				}
				now := time.Now()
				pipe := rdb.Pipeline()
				pipe.ZRemRangeByScore(ctx, key, "-inf", strconv.FormatInt(now.UnixMilli(), 10))
				pipe.ZAdd(ctx, key, redis.Z{Score: float64(now.Add(30 * time.Second).UnixMilli()), Member: lease[caller]})
				rank := pipe.ZRank(ctx, key, lease[caller])
				if _, err := pipe.Exec(ctx); err != nil {
					return err
				}
				if rank.Val() >= 10_000 {
					return errLimited
				}
				return nil
			},
			release: func(ctx context.Context, caller int) error {
				return rdb.ZRem(ctx, key, lease[caller]).Err()
			},
		}, nil
	}),
}

var throttledGCRA = impl{
	name: "throttled/v2", does: "pace", commands: []string{"evalsha", "eval", "time", "get", "set", "setnx", "expire"},
	open: overRedis(func(s setup, rdb *redis.Client) (calls, error) {
		st, err := store.NewCtx(rdb, "throttled:")
		if err != nil {
			return calls{}, err
		}
		limiter, err := throttled.NewGCRARateLimiterCtx(st, throttled.RateQuota{
			MaxRate: throttled.PerMin(farLimit), MaxBurst: farLimit,
		})
		if err != nil {
			return calls{}, err
		}
		limiter.SetMaxCASAttemptsLimit(1 << 20) // its callers race for one value
		return calls{admit: func(ctx context.Context, _ int) error {
			limited, _, err := limiter.RateLimitCtx(ctx, s.account, 1)
			if err == nil && limited {
				err = errLimited
			}
			return err
		}}, nil
	}),
}

var rueidisLimiter = impl{
	name: "rueidislimiter", does: "fixed window", commands: []string{"evalsha", "eval"},
	open: func(s setup) (session, error) {
		opts, err := rueidis.ParseURL(s.url)
		if err != nil {
			return nil, err
		}
		opts.DisableCache = true
		rdb, err := rueidis.NewClient(opts)
		if err != nil {
			return nil, err
		}
		limiter, err := rueidislimiter.NewRateLimiter(rueidislimiter.RateLimiterOption{
			ClientBuilder: func(rueidis.ClientOption) (rueidis.Client, error) { return rdb, nil },
			KeyPrefix:     "rueidislimiter", Limit: farLimit, Window: time.Minute,
		})
		if err != nil {
			rdb.Close()
			return nil, err
		}
		return calls{
			admit: func(ctx context.Context, _ int) error {
				result, err := limiter.Allow(ctx, s.account)
				if err == nil && !result.Allowed {
					err = errLimited
				}
				return err
			},
			close: func() error { rdb.Close(); return nil },
		}, nil
	},
}

// A lock is a semaphore with one slot: only one caller of the fleet is inside.
var redisLock = impl{
	name: "redislock", does: "one slot; release", serial: true, commands: []string{"evalsha", "eval"},
	open: overRedis(func(s setup, rdb *redis.Client) (calls, error) {
		locker := redislock.New(rdb)
		locks := make([]*redislock.Lock, s.callers)
		retry := &redislock.Options{RetryStrategy: redislock.LinearBackoff(time.Millisecond)}
		return calls{
			admit: func(ctx context.Context, caller int) (err error) {
				ctx, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				locks[caller], err = locker.Obtain(ctx, "redislock:"+s.account, 30*time.Second, retry)
				return err
			},
			release: func(ctx context.Context, caller int) error { return locks[caller].Release(ctx) },
		}, nil
	}),
}

var returnOne = redis.NewScript("return 1")

var emptyScript = impl{
	name: "empty script", does: "nothing: the floor of a script", commands: []string{"evalsha", "eval"},
	open: overRedis(func(s setup, rdb *redis.Client) (calls, error) {
		return calls{admit: func(ctx context.Context, _ int) error {
			return returnOne.Run(ctx, rdb, []string{s.account}).Err()
		}}, nil
	}),
}

var ping = impl{
	name: "PING", does: "nothing: the floor of a round trip", commands: []string{"ping"},
	open: overRedis(func(_ setup, rdb *redis.Client) (calls, error) {
		return calls{admit: func(ctx context.Context, _ int) error {
			if err := rdb.Ping(ctx).Err(); err != nil {
				return fmt.Errorf("PING: %w", err)
			}
			return nil
		}}, nil
	}),
}
