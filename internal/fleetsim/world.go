package fleetsim

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

const apiKey = "mvra_live_simulated"

// World is a scenario while it runs.
type World struct {
	Upstream *mockapi.API
	Redis    *miniredis.Miniredis

	t        testing.TB
	scenario Scenario
	strategy Strategy
	listener *mockapi.PipeListener
	away     atomic.Bool
	commands atomic.Int64
	start    time.Time
	ctx      context.Context
	running  sync.WaitGroup

	mu        sync.Mutex
	processes []*process
	conns     map[net.Conn]bool
	calls     []call
}

// A call is one request of a caller.
type call struct {
	process int
	begun   time.Duration
	waited  time.Duration // until its first attempt left the process
	status  int           // 0: no answer
}

// Run plays the scenario with the strategy. It must be called in a bubble of
// testing/synctest.
func Run(t testing.TB, s Scenario, strategy Strategy) Result {
	t.Helper()
	s = s.withDefaults()
	cfg := mockapi.Config{
		Limit: s.API.Limit, Window: s.API.Window, Mode: s.API.Mode, Phase: s.API.Phase, Seed: s.Seed,
		Latency: map[string]mockapi.Latency{s.Fleet.Endpoint: s.API.Latency},
	}
	if s.API.Config != nil {
		s.API.Config(&cfg)
	}
	upstream, err := mockapi.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &World{
		Upstream: upstream, Redis: miniredis.NewMiniRedis(),
		t: t, scenario: s, strategy: strategy, start: time.Now(), conns: make(map[net.Conn]bool),
	}
	w.Redis.ClockTTL(true)
	w.listener = mockapi.ServePipe(w.delayed(upstream))
	ctx, cancel := context.WithTimeout(context.Background(), s.Length)
	defer cancel()
	w.ctx = ctx

	w.processes = make([]*process, s.Fleet.Processes)
	for i := range w.processes {
		w.startProcess(i)
	}
	for _, e := range s.Events {
		w.at(e.At, func() { e.Do(w) })
	}
	<-ctx.Done()
	w.running.Wait()
	stats := upstream.Stats()
	fleetUse, strangerUse := upstream.Utilization(0, s.Length)
	for _, p := range w.processes {
		p.stop()
	}
	w.listener.Close()
	upstream.Close()
	w.Redis.Close()
	sleep(context.Background(), time.Minute) // what has been told to end has ended
	return w.result(stats, fleetUse, strangerUse)
}

// delayed lets every request travel for a while before it arrives.
func (w *World) delayed(api http.Handler) http.Handler {
	jitter := w.scenario.API.Jitter
	if jitter <= 0 {
		return api
	}
	var mu sync.Mutex
	rng := w.rand(2000)
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		d := time.Duration(rng.Int64N(int64(jitter) + 1))
		mu.Unlock()
		time.Sleep(d)
		api.ServeHTTP(rw, r)
	})
}

// at does something after a while, unless the scenario has ended by then.
func (w *World) at(after time.Duration, do func()) {
	w.running.Go(func() {
		if after == 0 || sleep(w.ctx, after) {
			do()
		}
	})
}

func (w *World) must(err error) {
	if err != nil {
		w.t.Error(err)
	}
}

// A process is one worker of the fleet with its own connections.
type process struct {
	number    int
	rdb       *redis.Client
	transport *http.Transport
	guard     Guard
	cancel    context.CancelFunc
}

func (w *World) startProcess(i int) {
	p := &process{number: i, transport: w.listener.Transport()}
	p.rdb = redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Dialer: w.dialRedis, DisableIdentity: true, Protocol: 2, MaxRetries: -1,
	})
	p.rdb.AddHook(counter{&w.commands})
	guard, err := w.strategy.New(w, p.rdb, p.transport)
	if err != nil {
		w.t.Fatal(err)
	}
	p.guard = guard
	ctx, cancel := context.WithCancel(w.ctx)
	p.cancel = cancel
	w.mu.Lock()
	w.processes[i] = p
	w.mu.Unlock()
	client := &http.Client{Transport: guard}
	w.running.Go(func() {
		w.scenario.Fleet.Arrival.play(ctx, w.scenario.Fleet.Callers, w.rand(uint64(i)), func(ctx context.Context) {
			w.call(ctx, client, i)
		})
	})
}

// call is one request of one caller, its answer read to the end.
func (w *World) call(ctx context.Context, client *http.Client, process int) {
	method, path, _ := strings.Cut(w.scenario.Fleet.Endpoint, " ")
	c := call{process: process, begun: time.Since(w.start), waited: -1}
	stopwatch := &c
	ctx = context.WithValue(ctx, stopwatchKey{}, func() {
		if stopwatch.waited < 0 {
			stopwatch.waited = time.Since(w.start) - stopwatch.begun
		}
	})
	req, err := http.NewRequestWithContext(ctx, method, w.listener.URL()+path, strings.NewReader(`{"model":"mavera-1","input":"hello"}`))
	if err != nil {
		w.must(err)
		return
	}
	req.Header.Set("Authorization", "Bearer "+apiKey)
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err == nil {
		c.status = resp.StatusCode
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	} else if ctx.Err() == nil {
		sleep(ctx, 100*time.Millisecond) // as anybody would, rather than spin
	}
	w.mu.Lock()
	w.calls = append(w.calls, c)
	w.mu.Unlock()
}

type stopwatchKey struct{}

// departure wraps the transport below a strategy: here a request leaves.
type departure struct{ base http.RoundTripper }

func (d departure) RoundTrip(r *http.Request) (*http.Response, error) {
	if stop, ok := r.Context().Value(stopwatchKey{}).(func()); ok {
		stop()
	}
	return d.base.RoundTrip(r)
}

// stop ends a process in good order.
func (p *process) stop() {
	p.cancel()
	p.guard.Close()
	p.transport.CloseIdleConnections()
	p.rdb.Close()
}

// crash ends a process at once: its calls break off, and nothing is given back.
func (w *World) crash(i int, restartAfter time.Duration) {
	w.mu.Lock()
	p := w.processes[i]
	w.mu.Unlock()
	p.guard.Kill()
	p.cancel()
	p.transport.CloseIdleConnections()
	p.rdb.Close()
	w.at(restartAfter, func() { w.startProcess(i) })
}

var errAway = errors.New("connection refused")

func (w *World) dialRedis(context.Context, string, string) (net.Conn, error) {
	if w.away.Load() {
		return nil, errAway
	}
	conn, err := w.Redis.Dial()
	if err == nil {
		w.mu.Lock()
		w.conns[conn] = true
		w.mu.Unlock()
	}
	return conn, err
}

func (w *World) setRedisAway(away bool) {
	w.away.Store(away)
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn := range w.conns {
		conn.Close()
		delete(w.conns, conn)
	}
}

// counter counts the commands that a process sends to Redis.
type counter struct{ n *atomic.Int64 }

func (counter) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c counter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}
func (c counter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.n.Add(int64(len(cmds)))
		return next(ctx, cmds)
	}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))
