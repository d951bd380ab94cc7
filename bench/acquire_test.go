package main

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/go-redis/redis_rate/v10"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// BenchmarkAcquire times one admission with its release, beside redis_rate's Allow, with
// as many callers at once as the name says: for benchstat.
func BenchmarkAcquire(b *testing.B) {
	server := redistest.Start(b)
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("fleetlimit/callers=%d", callers), func(b *testing.B) {
			session, err := fleetlimit.open(setup{
				url: server.URL, callers: callers, account: fmt.Sprint("acquire-", callers), worker: "w",
			})
			if err != nil {
				b.Fatal(err)
			}
			defer session.Close()
			atOnce(b, callers, func(caller int) error {
				if err := session.Admit(b.Context(), caller); err != nil {
					return err
				}
				return session.Release(b.Context(), caller)
			})
		})
		b.Run(fmt.Sprintf("redis_rate/callers=%d", callers), func(b *testing.B) {
			limiter := redis_rate.NewLimiter(server.Client(b))
			atOnce(b, callers, func(int) error {
				_, err := limiter.Allow(b.Context(), "acquire", rateLimit)
				return err
			})
		})
	}
}

// atOnce lets so many callers share b.N calls.
func atOnce(b *testing.B, callers int, call func(caller int) error) {
	var next atomic.Int32
	b.SetParallelism(callers) // times GOMAXPROCS, of which the surplus has nothing to do
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		caller := int(next.Add(1)) - 1
		if caller >= callers {
			return
		}
		for pb.Next() {
			if err := call(caller); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
