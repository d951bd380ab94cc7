package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// A growth is something that gets large, and the state that it leaves in Redis.
type growth struct {
	name  string
	sizes func(extent) []int
	// prepare returns the accounts to use, in a state of this size.
	prepare func(ctx context.Context, rdb *redis.Client, size int) ([]scriptAccount, error)
}

// title names the case in the output.
func (g growth) title() string { return "growth: " + g.name }

var growths = []growth{
	{"accounts", func(e extent) []int { return e.accounts }, func(ctx context.Context, rdb *redis.Client, size int) ([]scriptAccount, error) {
		accounts := make([]scriptAccount, size)
		for i := range accounts {
			accounts[i] = newScriptAccount(fmt.Sprint("accounts-", i), 1_000_000, 10_000)
			if _, err := accounts[i].call(nil, 1).run(ctx, rdb); err != nil {
				return nil, err
			}
		}
		return accounts, nil
	}},
	{"slots in use", func(e extent) []int { return e.slots }, func(ctx context.Context, rdb *redis.Client, size int) ([]scriptAccount, error) {
		a := newScriptAccount(fmt.Sprint("slots-", size), 1_000_000, size+10)
		for held := 0; held < size; held += 10 {
			if _, err := a.call(nil, 10).run(ctx, rdb); err != nil {
				return nil, err
			}
		}
		return []scriptAccount{a}, nil
	}},
	{"limit per minute, half of it used", func(e extent) []int { return e.limits }, func(ctx context.Context, rdb *redis.Client, size int) ([]scriptAccount, error) {
		var accounts []scriptAccount
		for i := range 100 { // of the small limit one account would not do
			a := newScriptAccount(fmt.Sprint("limit-", size, "-", i), size, 10_000)
			// Spread over the window, as a fleet at work would have spent it.
			const lots = 30
			var ops []any
			for n := range lots {
				ops = append(ops, "spent", size/2/lots, minute*n/lots)
			}
			if _, err := a.tell(ops...).run(ctx, rdb); err != nil {
				return nil, err
			}
			accounts = append(accounts, a)
		}
		return accounts, nil
	}},
}

// grow measures the script's time with a small and a large state, in turns, and
// returns a row for each size: PerSecond and the latencies are those of one caller
// that calls the script, without a coordinator.
func grow(ctx context.Context, rdb *redis.Client, o options, g growth) ([]row, error) {
	sizes := g.sizes(o.extent)
	accounts := make([][]scriptAccount, len(sizes))
	for i, size := range sizes {
		var err error
		if accounts[i], err = g.prepare(ctx, rdb, size); err != nil {
			return nil, fmt.Errorf("size %d: %w", size, err)
		}
	}
	all := make([][]row, len(sizes))
	for range 5 * o.repeats {
		for i := range sizes {
			r, err := growOnce(ctx, rdb, accounts[i])
			if err != nil {
				return nil, fmt.Errorf("size %d: %w", sizes[i], err)
			}
			r.Case, r.Size = g.title(), sizes[i]
			all[i] = append(all[i], r)
		}
	}
	var rows []row
	for i := range all {
		m := median(all[i])
		key := accounts[i][0].keys
		var err error
		if m.AccountBytes, err = memory(ctx, rdb, key[0], key[1]); err != nil {
			return nil, err
		}
		rows = append(rows, m)
	}
	return rows, nil
}

// growOnce makes 25 admissions, each with the release of the one before.
func growOnce(ctx context.Context, rdb *redis.Client, accounts []scriptAccount) (row, error) {
	before, err := readStats(ctx, rdb)
	if err != nil {
		return row{}, err
	}
	const calls = 25
	var latencies histogram
	start := time.Now()
	for range calls {
		a := accounts[rand.N(len(accounts))]
		asked := time.Now()
		v, err := a.call(nil, 1).run(ctx, rdb)
		if err != nil {
			return row{}, err
		}
		latencies.add(time.Since(asked))
		// The request was never sent: the state stays as large as it was.
		if lease := a.leases(v); len(lease) == 1 {
			number := lease[0][strings.LastIndex(lease[0], ":")+1:]
			if _, err := a.tell("return", 1, lease[0], number).run(ctx, rdb); err != nil {
				return row{}, err
			}
		} else {
			return row{}, errLimited
		}
	}
	elapsed := time.Since(start)
	after, err := readStats(ctx, rdb)
	if err != nil {
		return row{}, err
	}
	used := after.since(before)
	count, cpu := used.sum(fleetlimit.commands)
	return row{
		Impl: fleetlimit.name, Callers: 1, Processes: 1, Repeats: 1,
		PerSecond: calls / elapsed.Seconds(),
		P50:       micros(latencies.quantile(0.5)), P99: micros(latencies.quantile(0.99)),
		RedisCPU: cpu / calls, ProcessCPU: used.process / calls, Commands: count / calls,
	}, nil
}

func memory(ctx context.Context, rdb *redis.Client, keys ...string) (bytes float64, err error) {
	for _, key := range keys {
		n, err := rdb.MemoryUsage(ctx, key).Result()
		if err != nil && err != redis.Nil {
			return 0, err
		}
		bytes += float64(n)
	}
	return bytes, nil
}

// queue measures what it costs that many workers wait for a budget that is far too
// small: commands for each admission.
func queue(ctx context.Context, rdb *redis.Client, o options, size int) (row, error) {
	const limit = 600 // requests per minute: the highest tier
	opts := *rdb.Options()
	opts.PoolSize = 64
	shared := redis.NewClient(&opts)
	defer shared.Close()
	var (
		workers   []*coordinator.Coordinator
		callers   sync.WaitGroup
		granted   atomic.Int64
		failed    = make(chan error, 1)
		fleet, no = context.WithCancel(ctx)
	)
	defer no()
	for i := range size {
		c, err := coordinator.New(shared, coordinator.Policy{Limit: limit, Burst: limit / 2, Headroom: 1},
			coordinator.Options{
				Account: fmt.Sprint("queue-", size), Worker: fmt.Sprint("worker-", i),
				RedisTimeout: 20 * time.Second, // a thousand connections are made at once
				Logger:       slog.New(slog.DiscardHandler),
			})
		if err != nil {
			return row{}, err
		}
		workers = append(workers, c)
		for range max(1, 100/size) {
			callers.Go(func() {
				for {
					if _, err := c.Acquire(fleet, coordinator.Request{}); err != nil {
						if fleet.Err() == nil {
							select {
							case failed <- err:
							default:
							}
						}
						return
					}
					granted.Add(1)
				}
			})
		}
	}
	sleep := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := sleep(o.extent.waitingSettle); err != nil {
		return row{}, err
	}
	before, err := readStats(ctx, rdb)
	if err != nil {
		return row{}, err
	}
	first := granted.Load()
	start := time.Now()
	for n := int64(0); n == 0; n = granted.Load() - first { // of nothing there is no cost
		if err := sleep(o.extent.waitingOf); err != nil {
			return row{}, err
		}
	}
	n := float64(granted.Load() - first)
	after, err := readStats(ctx, rdb)
	if err != nil {
		return row{}, err
	}
	elapsed := time.Since(start)
	no()
	callers.Wait()
	var closing sync.WaitGroup
	for _, c := range workers {
		closing.Go(func() { c.Close() })
	}
	closing.Wait()
	used := after.since(before)
	count, cpu := used.sum(fleetlimit.commands)
	return row{
		Impl: fleetlimit.name, Case: waitingWorkers, Size: size, Callers: max(1, 100/size), Processes: 1,
		Repeats: 1, PerSecond: n / elapsed.Seconds(), RedisCPU: cpu / n, ProcessCPU: used.process / n, Commands: count / n,
	}, nil
}

// handOver measures how long a freed slot stays idle: from the call of Release in
// one worker to the return of Acquire in another that waits for it.
func handOver(ctx context.Context, rdb *redis.Client, times int) (row, error) {
	policy := coordinator.Policy{
		Limit: farLimit, Burst: farLimit, Headroom: 1,
		Endpoints: []coordinator.Endpoint{{Pattern: endpoint, Slots: 1}},
	}
	var workers [2]*coordinator.Coordinator
	for i := range workers {
		c, err := coordinator.New(rdb, policy, coordinator.Options{Account: "hand-over", Worker: fmt.Sprint("worker-", i)})
		if err != nil {
			return row{}, err
		}
		defer c.Close()
		workers[i] = c
	}
	wish := coordinator.Request{Endpoint: endpoint}
	held, err := workers[0].Acquire(ctx, wish)
	if err != nil {
		return row{}, err
	}
	var latencies histogram
	for i := range times {
		type grant struct {
			permit *coordinator.Permit
			at     time.Time
			err    error
		}
		got := make(chan grant)
		go func() {
			p, err := workers[(i+1)%2].Acquire(ctx, wish)
			got <- grant{p, time.Now(), err}
		}()
		for { // until it has its place in the queue
			n, err := rdb.ZCard(ctx, "fleetlimit:{hand-over}:queue:"+endpoint).Result()
			if err != nil {
				return row{}, err
			}
			if n == 1 {
				break
			}
			time.Sleep(200 * time.Microsecond)
		}
		time.Sleep(time.Millisecond) // its reply has arrived
		released := time.Now()
		held.Release()
		g := <-got
		if g.err != nil {
			return row{}, g.err
		}
		latencies.add(g.at.Sub(released))
		held = g.permit
	}
	held.Release()
	return row{
		Impl: fleetlimit.name, Case: freedSlot, Callers: 1, Processes: 2, Repeats: times,
		P50: micros(latencies.quantile(0.5)), P99: micros(latencies.quantile(0.99)),
	}, nil
}

// leaseMemory measures what a lease takes in Redis, in a set of a few and of many.
func leaseMemory(ctx context.Context, rdb *redis.Client) ([]row, error) {
	var rows []row
	for _, size := range []int{10, 1000} {
		a := newScriptAccount(fmt.Sprint("memory-", size), farLimit, size)
		for held := 0; held < size; held += 10 {
			if _, err := a.call(nil, 10).run(ctx, rdb); err != nil {
				return nil, err
			}
		}
		all, err := rdb.MemoryUsage(ctx, a.slots, 0).Result()
		if err != nil {
			return nil, err
		}
		r := row{Impl: fleetlimit.name, Case: leasesInMemory, Size: size, Callers: 1, Processes: 1, Repeats: 1, LeaseBytes: float64(all) / float64(size)}
		if r.AccountBytes, err = memory(ctx, rdb, a.keys[0], a.keys[1]); err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}
