package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// A session is one process's way into a limiter. Its methods are safe for
// concurrent use by different callers, and a caller is one goroutine.
type session interface {
	// Admit returns when the caller may send a request.
	Admit(ctx context.Context, caller int) error
	// Release tells that the request has ended. Where there is nothing to tell,
	// it does nothing.
	Release(ctx context.Context, caller int) error
	Close() error
}

// An impl is a limiter that is compared.
type impl struct {
	name string
	// does says what one admission covers, for the table.
	does string
	// commands are those that the client sends. What scripts call inside is part
	// of their time and not counted twice.
	commands []string
	// serial marks a limiter that lets one caller in at a time by design.
	serial bool
	open   func(setup) (session, error)
}

// setup says what a session works with.
type setup struct {
	url     string
	account string // the name of the shared account
	worker  string
	callers int
}

// client returns a pool as large as the number of callers: no peer waits for a
// connection.
func (s setup) client() (*redis.Client, error) {
	opts, err := redis.ParseURL(s.url)
	if err != nil {
		return nil, err
	}
	opts.PoolSize = max(10, s.callers)
	return redis.NewClient(opts), nil
}

// impls lists everybody, ours first, the floor last.
var impls = []impl{
	fleetlimit,
	redisRate,
	redisRateAutoPipeline,
	redisRateSemaphore,
	tokenBucketBuffer,
	throttledGCRA,
	rueidisLimiter,
	redisLock,
	emptyScript,
	ping,
}

func implOf(name string) (impl, error) {
	i := slices.IndexFunc(impls, func(i impl) bool { return i.name == name })
	if i < 0 {
		return impl{}, fmt.Errorf("no implementation is called %q", name)
	}
	return impls[i], nil
}

// The limit that all measurements work under: so high that nobody ever waits for
// budget, and the cost alone shows. Requests per minute.
const farLimit = 1_000_000_000
