package fleetsim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// Process is one worker of the fleet, with connections of its own.
type Process struct {
	World *World
	// Number says which of the fleet it is, from 0, and Life how often it was
	// started anew.
	Number, Life int
	// Redis is its client; it must not retry, so that each command is counted.
	Redis *redis.Client
	// Base is its way to the API, without any restraint.
	Base http.RoundTripper

	redis, api *link
	transport  *http.Transport
	guard      Guard
	client     *http.Client
	ctx        context.Context // ends with the process
	cancel     context.CancelFunc
	dead       bool // guarded by World.mu
	stopped    sync.Once
}

// Name names this life of the process.
func (p *Process) Name() string { return fmt.Sprintf("p%d-%d", p.Number, p.Life) }

// Rand is randomness of this life of the process; each stream is another.
func (p *Process) Rand(stream uint64) *rand.Rand {
	return p.World.rand(uint64(p.Number)<<32 | uint64(p.Life)<<8 | stream)
}

func (w *World) startProcess(number, life int) {
	p := &Process{World: w, Number: number, Life: life}
	p.redis = newLink(func(context.Context) (net.Conn, error) { return redistest.Dial(w.Redis) })
	p.api = newLink(func(ctx context.Context) (net.Conn, error) { return w.listener.DialContext(ctx, "", "") })
	p.transport = &http.Transport{DialContext: p.api.DialContext, MaxIdleConnsPerHost: 1000}
	p.Base = &departure{world: w, process: number, base: p.transport, rng: p.Rand(1)}
	p.Redis = redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Dialer: p.redis.DialContext, DisableIdentity: true, Protocol: 2, MaxRetries: -1,
		PoolSize: 1000, // who waits for a connection shares a pool of timers with all bubbles
	})
	p.Redis.AddHook(counter{&w.commands})
	guard, err := w.strategy.New(p)
	if err != nil {
		w.t.Fatal(err)
	}
	p.guard, p.client = guard, &http.Client{Transport: guard}
	p.ctx, p.cancel = context.WithCancel(w.ctx)

	w.mu.Lock()
	w.processes[number] = p
	w.wireRedis(p)
	p.api.set(!w.apiAway)
	w.mu.Unlock()
	for i, load := range w.scenario.Fleet.Loads {
		w.running.Go(func() {
			load.Arrival.play(p.ctx, crew{
				callers: load.Callers, process: number, processes: w.scenario.Fleet.Processes,
				rng: p.Rand(uint64(16 + i)), call: func(ctx context.Context) { w.call(ctx, p, load) },
			})
		})
	}
}

// stop ends a process in good order.
func (p *Process) stop() {
	p.stopped.Do(func() {
		p.cancel()
		p.guard.Close()
		p.transport.CloseIdleConnections()
		p.Redis.Close()
	})
}

// crash ends a process as SIGKILL would: its connections break off, and what it
// would say on its way out reaches nobody.
func (w *World) crash(number int, restartAfter time.Duration) {
	w.mu.Lock()
	p := w.processes[number]
	if p.dead { // it has not been started anew
		w.mu.Unlock()
		return
	}
	p.dead = true
	w.crashes = append(w.crashes, Crashed{p.Name(), w.now()})
	w.mu.Unlock()
	p.redis.cut(errKilled)
	p.api.cut(errKilled)
	p.cancel()
	w.running.Go(p.stop) // ends what still runs in the bubble
	w.at(restartAfter, func() { w.startProcess(number, p.Life+1) })
}

func (w *World) setRedisAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.redisAway = away
	for _, p := range w.processes {
		w.wireRedis(p)
	}
}

// breakRedis does something to Redis that breaks all connections.
func (w *World) breakRedis(meanwhile func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.processes {
		p.redis.set(false)
	}
	meanwhile()
	for _, p := range w.processes {
		w.wireRedis(p)
	}
}

// cutOff counts by one more, or less, what keeps a process from Redis alone.
func (w *World) cutOff(number, by int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts[number] += by
	w.wireRedis(w.processes[number])
}

// wireRedis makes a process's way to Redis what it should be. w.mu must be held.
func (w *World) wireRedis(p *Process) { p.redis.set(!w.redisAway && w.cuts[p.Number] == 0) }

func (w *World) setAPIAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.apiAway = away
	for _, p := range w.processes {
		p.api.set(!away)
	}
}

// counter counts the commands that a process sends to Redis, without those with which the
// client opens a connection.
type counter struct{ n *atomic.Int64 }

func (c counter) count(cmds ...redis.Cmder) {
	for _, cmd := range cmds {
		if cmd.Name() != "hello" {
			c.n.Add(1)
		}
	}
}

func (counter) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.count(cmd)
		return next(ctx, cmd)
	}
}
func (c counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.count(cmds...)
		return next(ctx, cmds)
	}
}
