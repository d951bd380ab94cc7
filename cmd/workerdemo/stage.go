package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redisurl"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// The demo's mock is quick: chats of 0.3 to 0.9 s, and video analyses of 1.2 to 6 s.
const (
	timeScale = 0.01

	// demoLeaseTTL lets the audience see a dead worker's slots come back.
	demoLeaseTTL = 3 * time.Second

	// demoJobTTL outlives the longest analysis, which nobody may watch if its
	// worker dies before it could tell of it.
	demoJobTTL = 8 * time.Second
)

// openRedis connects to a Redis and makes sure that it answers.
func openRedis(ctx context.Context, url string) (redis.UniversalClient, error) {
	rdb, err := redisurl.Open(url)
	if err != nil {
		return nil, fmt.Errorf("-redis %q is no URL of a Redis: %w", redisurl.Hide(url), err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := rdb.Ping(ctx).Err(); err != nil {
		rdb.Close()
		return nil, fmt.Errorf("-redis %q does not answer: %w", redisurl.Hide(url), err)
	}
	return rdb, nil
}

// mockConfig is the demo's API. Nobody outside knows when a fixed window begins,
// so it begins anywhere.
func mockConfig(tier mavera.Tier, mode mockapi.Mode, scale float64) mockapi.Config {
	cfg := mockapi.Config{Tier: string(tier), Mode: mode, TimeScale: scale, Seed: mathrand.Uint64()}
	if mode == mockapi.Fixed {
		cfg.Phase = mathrand.N(time.Minute)
	}
	return cfg
}

// serveMock serves a mock API on an address and returns its base URL.
func serveMock(cfg mockapi.Config, addr string) (api *mockapi.API, url string, stop func(), err error) {
	if api, err = mockapi.New(cfg); err != nil {
		return nil, "", nil, err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, "", nil, fmt.Errorf("starting the mock API: %w", err)
	}
	server := &http.Server{Handler: api, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	stop = func() {
		api.Close()
		server.Close()
		<-ended // http.ErrServerClosed
	}
	return api, "http://" + listener.Addr().String() + "/api/v1", stop, nil
}

// runID tells the workers of one run from those of another at the same account.
func runID() string { return strings.ToLower(rand.Text()[:6]) }

// madeUpKey is sent where no key was given. A mock accepts any; a new one for
// each run gives each its own account in Redis.
func madeUpKey() string { return "mvra_test_" + strings.ToLower(rand.Text()) }

// dial connects a worker to real servers.
func dial(s setup) (connections, error) {
	rdb, err := redisurl.Open(s.Redis)
	if err != nil {
		return connections{}, fmt.Errorf("the setup has no URL of a Redis: %w", err)
	}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.MaxIdleConns, base.MaxIdleConnsPerHost = 0, 256
	return connections{rdb, base}, nil
}
