package main

import (
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// The commands of mennanov/limiters: a token bucket whose state the client reads,
// computes and writes back, and a buffer of concurrent requests in a sorted set,
// both behind a mutex of the process and without a distributed lock (its cheapest
// configuration, which lets processes overwrite each other's state). The module
// itself is not on every module proxy, so what it sends is sent here.
var tokenBucketBuffer = impl{
	name: "mennanov/limiters (its commands)", does: "pace, slot; release",
	commands: []string{"mget", "multi", "set", "exec", "zremrangebyscore", "zadd", "zcount", "zrem"},
	open: overRedis(func(s setup, rdb *redis.Client) (calls, error) {
		bucket := &clientBucket{rdb: rdb, last: s.account + "/last", available: s.account + "/available"}
		buffer := &clientBuffer{rdb: rdb, key: s.account + "/buffer"}
		request := make([]string, s.callers)
		for i := range request {
			request[i] = s.worker + ":" + strconv.Itoa(i)
		}
		return calls{
			admit: func(ctx context.Context, caller int) error {
				if err := bucket.take(ctx); err != nil {
					return err
				}
				return buffer.add(ctx, request[caller])
			},
			release: func(ctx context.Context, caller int) error {
				return rdb.ZRem(ctx, buffer.key, request[caller]).Err()
			},
		}, nil
	}),
}

type clientBucket struct {
	rdb             *redis.Client
	last, available string

	mu sync.Mutex
}

const tokenEvery = time.Minute / farLimit // 60 ns

func (b *clientBucket) take(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	state, err := b.rdb.MGet(ctx, b.last, b.available).Result()
	if err != nil {
		return err
	}
	last, tokens := int64(0), int64(farLimit)
	if s, ok := state[0].(string); ok {
		if last, err = strconv.ParseInt(s, 10, 64); err != nil {
			return err
		}
	}
	if s, ok := state[1].(string); ok {
		if tokens, err = strconv.ParseInt(s, 10, 64); err != nil {
			return err
		}
	}
	now := time.Now().UnixNano()
	if fresh := (now - last) / int64(tokenEvery); fresh > 0 {
		last, tokens = now, min(farLimit, tokens+fresh)
	}
	if tokens < 1 {
		return errLimited
	}
	_, err = b.rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.Set(ctx, b.last, last, time.Minute)
		tx.Set(ctx, b.available, tokens-1, time.Minute)
		return nil
	})
	return err
}

type clientBuffer struct {
	rdb *redis.Client
	key string

	mu sync.Mutex
}

func (b *clientBuffer) add(ctx context.Context, request string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	pipe := b.rdb.Pipeline()
	pipe.ZRemRangeByScore(ctx, b.key, "-inf", strconv.FormatInt(now.Add(-30*time.Second).UnixNano(), 10))
	pipe.ZAdd(ctx, b.key, redis.Z{Score: float64(now.UnixNano()), Member: request})
	count := pipe.ZCount(ctx, b.key, "-inf", "+inf")
	if _, err := pipe.Exec(ctx); err != nil {
		return err
	}
	if count.Val() > 10_000 {
		return errLimited
	}
	return nil
}
