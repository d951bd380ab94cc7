package fleetsim

import (
	"context"
	"time"

	"github.com/go-redis/redis_rate/v10"
)

// What a team writes that shares one limit through Redis: redis_rate before every
// request, its RetryAfter as the wait, and reaction to 429s on top. The three
// differ in rate and burst.
var (
	RedisRateBurstLimit = Strategy{"redis_rate-burst-limit", func(p *Process) (Guard, error) {
		return newRedisRate(p, func(limit int) (int, int) { return limit, limit }), nil
	}}
	RedisRateBurst1 = Strategy{"redis_rate-burst-1", func(p *Process) (Guard, error) {
		return newRedisRate(p, func(limit int) (int, int) { return limit, 1 }), nil
	}}
	RedisRate90 = Strategy{"redis_rate-90", func(p *Process) (Guard, error) {
		return newRedisRate(p, func(limit int) (int, int) { return limit * 9 / 10, max(1, limit/10) }), nil
	}}
)

func newRedisRate(p *Process, of func(limit int) (rate, burst int)) Guard {
	s := p.World.scenario
	rate, burst := of(s.API.Limit)
	limit := redis_rate.Limit{Rate: rate, Burst: burst, Period: s.API.Window}
	limiter := redis_rate.NewLimiter(p.Redis)
	admit := func(ctx context.Context) error {
		for {
			res, err := limiter.Allow(ctx, apiKey, limit)
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return err
			case res.Allowed > 0:
				return nil
			}
			sleep(ctx, max(res.RetryAfter, time.Millisecond))
		}
	}
	return newReactive(p, throttled{admit, p.Base})
}
