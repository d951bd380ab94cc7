package lua

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	redisrate "github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"
)

// A judged client runs redis_rate's script on a real Redis under the virtual clock
// of the test. Its keys then must not expire by the real one.
type judged struct {
	*redis.Client
	t *testing.T
	s *server
}

func (j judged) EvalSha(ctx context.Context, _ string, _ []string, _ ...any) *redis.Cmd {
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(noScript{})
	return cmd
}

type noScript struct{}

func (noScript) Error() string { return "NOSCRIPT the script must be sent" }
func (noScript) RedisError()   {}

func (j judged) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	for old, new := range map[string]string{
		`redis.call("TIME")`:           j.s.clockInLua(),
		`"EX", math.ceil(reset_after)`: `"EX", 3600`,
	} {
		if strings.Count(script, old) != 1 {
			j.t.Fatalf("redis_rate's script has no %s", old)
		}
		script = strings.Replace(script, old, new, 1)
	}
	return j.Client.Eval(ctx, script, keys, args...)
}

// TestPaceAgreesWithRedisRate compares the pace gate alone with another GCRA. The
// window gate is out of the way: the sequences are shorter than the limit.
func TestPaceAgreesWithRedisRate(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		limiter := redisrate.NewLimiter(s.rdb)
		if s.mini == nil {
			limiter = redisrate.NewLimiter(judged{s.rdb, t, s})
		}
		cases := 0
		rapid.Check(t, func(t *rapid.T) {
			s.reset(t)
			cases++
			p := limits{
				limit: rapid.SampledFrom([]int{500, 600, 1000}).Draw(t, "limit"), headroom: 1,
				window: rapid.SampledFrom([]float64{10_000, 60_000, 3_600_000}).Draw(t, "window"),
				burst:  rapid.IntRange(1, 20).Draw(t, "burst"),
			}
			c := comparison{t: t, s: s, p: p, limiter: limiter, key: fmt.Sprint(s.prefix, cases)}
			interval := p.window / float64(p.limit) * 1000 // µs
			for range rapid.IntRange(1, 40).Draw(t, "calls") {
				step := rapid.SampledFrom([]float64{0, 0, interval / 7, interval, 5 * interval}).Draw(t, "scale")
				s.advance(time.Duration(rapid.Float64Range(0, step).Draw(t, "step")) * time.Microsecond)
				if !c.compare(rapid.IntRange(1, 5).Draw(t, "n")) {
					return
				}
			}
		})
	})
}

type comparison struct {
	t       *rapid.T
	s       *server
	p       limits
	limiter *redisrate.Limiter
	key     string
}

func (c comparison) theirs(n int) *redisrate.Result {
	c.s.writeClock(c.t)
	limit := redisrate.Limit{Rate: c.p.limit, Burst: c.p.burst, Period: seconds(c.p.window)}
	r, err := c.limiter.AllowN(context.Background(), c.key, limit, n)
	if err != nil {
		c.t.Fatalf("redis_rate: %v", err)
	}
	return r
}

// compare asks both for n at once, and returns false when the bucket is so near to
// a whole number that rounding decides: redis_rate keeps ten microseconds.
func (c comparison) compare(n int) (goOn bool) {
	const near = 0.1 // ms
	ours := c.s.admit(c.t, c.p, ask{worker: "a", endpoint: -1, n: n})
	got := c.theirs(n)
	if got.Allowed != 0 && ours.granted == n {
		return true
	}
	if got.Allowed != 0 || ours.granted == n {
		// One has refused. If only just, that is no difference.
		if got.Allowed == 0 && milliseconds(got.RetryAfter) < near {
			return false
		}
		if got.Allowed != 0 && ours.wait <= 1+near && ours.granted == n-1 {
			return false
		}
		c.t.Fatalf("of %d permits %d were granted (wait %v ms); redis_rate allows %d (retry after %v)",
			n, ours.granted, ours.wait, got.Allowed, got.RetryAfter)
	}
	// redis_rate takes all or nothing: let it take what we gave, and no more.
	if ours.granted > 0 {
		if part := c.theirs(ours.granted); part.Allowed == 0 {
			if milliseconds(part.RetryAfter) < near {
				return false
			}
			c.t.Fatalf("%d permits were granted, redis_rate wants %v for them", ours.granted, part.RetryAfter)
		}
	}
	next := c.theirs(1)
	if next.Allowed != 0 {
		if ours.wait <= 1+near {
			return false
		}
		c.t.Fatalf("redis_rate allows one more than %d of %d; we say wait %v ms", ours.granted, n, ours.wait)
	}
	if want := max(1, milliseconds(next.RetryAfter)); math.Abs(ours.wait-want) > near {
		c.t.Fatalf("wait %v ms, redis_rate says %v ms", ours.wait, want)
	}
	return true
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
