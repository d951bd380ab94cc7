package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/metrics"
	"github.com/fleetlimit/fleetlimit/page"
)

const serveAbout = `Runs one worker that sends the mix for ever, as a service would, until it is stopped.
All workers that use the same Redis and the same API key share the key's budget.

It logs in JSON on stderr, and serves the live page, /metrics for Prometheus and /healthz.`

// redisVariable holds the URL of the Redis, whose password a command line would show.
const redisVariable = "REDIS_URL"

// failurePause is how long a caller waits after a failure, so that an API that is
// away is not asked in a tight loop.
const failurePause = time.Second

func runServe(ctx context.Context, args []string, t terminal) error {
	fs := newFlagSet("workerdemo serve", serveAbout, t.out)
	redisURL := fs.redis("`URL` of the Redis that the fleet shares; better in the environment as "+redisVariable+", where ps does not show its password", false)
	upstream := fs.upstream("base `URL` of the API, to which /responses is appended (required)", true)
	key := fs.key()
	account := fs.text("account", "", "`name` of the account in Redis and in metrics; default: a hash of the API key")
	tier := fs.tier()
	headroom := fs.headroom(tier)
	m := fs.mix()
	addr := fs.text("http", "127.0.0.1:9464", "`address` on which to serve the live page, /metrics and /healthz; empty: none")
	fs.checks = append(fs.checks, func() error {
		*redisURL = cmp.Or(*redisURL, os.Getenv(redisVariable))
		switch {
		case *redisURL == "":
			return &usageError{"-redis is missing: want the URL of a Redis, in the flag or as " + redisVariable}
		case *key == "":
			return &usageError{"-api-key is missing: workers with the same key share its budget; set it or " + keyVariable}
		}
		return nil
	})
	if err := fs.parse(args); err != nil {
		return err
	}
	s := setup{Redis: *redisURL, Upstream: *upstream, Key: *key, Plan: plan{Tier: *tier, Headroom: *headroom}}
	log := slog.New(slog.NewJSONHandler(t.err, nil))
	return serve(ctx, s, *account, *m, *addr, log)
}

// serve is a worker whose work has no end.
func serve(ctx context.Context, s setup, account string, m mix, addr string, log *slog.Logger) error {
	conns, err := dial(s)
	if err != nil {
		return err
	}
	defer conns.redis.Close()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	told, err := metrics.New(registry, metrics.Options{})
	if err != nil {
		return err
	}
	c, err := coordinator.New(conns.redis, s.Plan.policy(), coordinator.Options{
		APIKey: s.Key, Account: account, Logger: log, Events: told.Events(),
	})
	if err != nil {
		return err
	}
	defer c.Close() // what it could not give back ends by itself
	defer told.Watch(c)()

	w := &worker{
		base: strings.TrimSuffix(s.Upstream, "/"), key: s.Key, policy: c.Policy(),
		profile: profileFor(s.Upstream), out: json.NewEncoder(io.Discard),
	}
	transport, err := client.New(c, w.profile, told.Client(client.Options{Base: conns.api}))
	if err != nil {
		return err
	}
	w.http = transport.Client()
	defer w.http.CloseIdleConnections()
	if addr != "" {
		live, err := page.New(conns.redis, page.Options{Accounts: []string{c.Account()}})
		if err != nil {
			return err
		}
		defer live.Close()
		at, stop, err := serveOperator(addr, registry, live, log)
		if err != nil {
			return err
		}
		defer stop()
		addr = at // of port 0 nobody would know which one it has become
	}
	log.Info("the worker has begun", "account", c.Account(), "worker", c.Worker(), "tier", s.Plan.Tier, "http", addr)
	w.workOn(ctx, m, log)
	log.Info("the worker ends", "worker", c.Worker())
	return nil
}

// workOn keeps callers at every endpoint of the mix, as many as its weight, until the
// context ends.
func (w *worker) workOn(ctx context.Context, m mix, log *slog.Logger) {
	var items atomic.Int64
	var callers sync.WaitGroup
	for _, share := range m {
		for range min(share.weight, callersPerEndpoint) {
			callers.Go(func() {
				for ctx.Err() == nil {
					it := item{ID: int(items.Add(1)), Endpoint: share.endpoint}
					err := w.do(ctx, &call{item: it, begun: time.Now()})
					if err == nil || ctx.Err() != nil {
						continue
					}
					log.Warn("a request failed", "endpoint", it.Endpoint, "err", w.hideKey(err.Error()))
					_ = sleep(ctx, failurePause) // the loop looks at the context
				}
			})
		}
	}
	callers.Wait()
}

// runGet is what a container without a shell asks about itself.
func runGet(ctx context.Context, args []string, t terminal) error {
	if len(args) != 1 {
		return &usageError{"get: want one URL"}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
	if err != nil {
		return &usageError{fmt.Sprintf("get %q: not a URL", args[0])}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(t.out, io.LimitReader(resp.Body, 16<<20)); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("get %s: %s", args[0], resp.Status)
	}
	return nil
}
