package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/lua"
)

// BenchmarkScript measures what Redis spends on one call, many calls in a pipeline:
// used-µs/op is the CPU of the server process, stat-µs/op what INFO commandstats says.
func BenchmarkScript(b *testing.B) {
	rdb := redistest.Start(b).Client(b)
	b.Run("empty", func(b *testing.B) {
		runScript(b, rdb, returnOne, func(pipe redis.Pipeliner, _ []string) *redis.Cmd {
			return returnOne.EvalSha(b.Context(), pipe, []string{"x"})
		})
	})
	b.Run("redis_rate", func(b *testing.B) {
		recorder := &recorder{UniversalClient: rdb}
		if _, err := redis_rate.NewLimiter(recorder).Allow(b.Context(), "script", rateLimit); err != nil {
			b.Fatal(err)
		}
		allow := redis.NewScript(recorder.script)
		runScript(b, rdb, allow, func(pipe redis.Pipeliner, _ []string) *redis.Cmd {
			return allow.EvalSha(b.Context(), pipe, recorder.keys, recorder.args...)
		})
	})
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("exchange/permits=%d", n), func(b *testing.B) {
			account := newScriptAccount("script", 1_000_000_000, 100_000)
			runScript(b, rdb, lua.Exchange, func(pipe redis.Pipeliner, last []string) *redis.Cmd {
				var back []string
				if last != nil {
					back = account.leases(last)
				}
				c := account.call(back, n)
				return lua.Exchange.EvalSha(b.Context(), pipe, c.keys, c.args...)
			})
		})
	}
}

// recorder learns which script a limiter calls, and how.
type recorder struct {
	redis.UniversalClient
	script string
	keys   []string
	args   []any
}

func (r *recorder) EvalSha(ctx context.Context, _ string, keys []string, args ...any) *redis.Cmd {
	r.keys, r.args = keys, args
	cmd := redis.NewCmd(ctx)
	cmd.SetErr(noScript("NOSCRIPT no matching script"))
	return cmd
}

func (r *recorder) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	r.script = script
	return r.UniversalClient.Eval(ctx, script, keys, args...)
}

type noScript string

func (e noScript) Error() string { return string(e) }
func (noScript) RedisError()     {}

const depth = 50

// runScript calls a script b.N times in pipelines. A call gets the answer to the one
// in its place in the pipeline before.
func runScript(b *testing.B, rdb *redis.Client, script *redis.Script, call func(redis.Pipeliner, []string) *redis.Cmd) {
	if err := script.Load(b.Context(), rdb).Err(); err != nil {
		b.Fatal(err)
	}
	var answers [depth][]string
	round := func(n int) {
		pipe := rdb.Pipeline()
		var cmds [depth]*redis.Cmd
		for i := range n {
			cmds[i] = call(pipe, answers[i])
		}
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Fatal(err)
		}
		for i := range n {
			answers[i], _ = cmds[i].StringSlice() // those of other scripts are none
		}
	}
	round(depth)
	before, err := readStats(b.Context(), rdb)
	if err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for done := 0; done < b.N; done += depth {
		round(min(depth, b.N-done))
	}
	b.StopTimer()
	after, err := readStats(b.Context(), rdb)
	if err != nil {
		b.Fatal(err)
	}
	used := after.since(before)
	_, cpu := used.sum([]string{"evalsha"})
	b.ReportMetric(used.process/float64(b.N), "used-µs/op")
	b.ReportMetric(cpu/float64(b.N), "stat-µs/op")
}
