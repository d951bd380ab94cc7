package fleetsim

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

const apiKey = "mvra_live_simulated"

// World is a scenario while it runs.
type World struct {
	Upstream *mockapi.API
	Redis    *miniredis.Miniredis
	observer *redis.Client // of the rig, not of the fleet

	t        testing.TB
	scenario Scenario
	strategy Strategy
	listener *mockapi.PipeListener
	start    time.Time
	ctx      context.Context // ends with the scenario
	running  sync.WaitGroup
	commands atomic.Int64
	attempts attempts

	mu        sync.Mutex
	processes []*Process
	redisAway bool
	cuts      map[int]int // by number: what keeps a process from Redis alone
	apiAway   bool
	crashes   []Crashed
	calls     []Call
	jobs      map[string]*job
	done      []JobDone
	samples   []Sample
	shared    map[string]any
}

// Run plays the scenario with the strategy. It must be called in a bubble of
// testing/synctest, and returns when nothing of it is left running.
func Run(t testing.TB, s Scenario, strategy Strategy) Result {
	t.Helper()
	mute()
	s = s.withDefaults()
	upstream, err := mockapi.New(s.config())
	if err != nil {
		t.Fatal(err)
	}
	w := &World{
		Upstream: upstream, Redis: miniredis.NewMiniRedis(),
		t: t, scenario: s, strategy: strategy, start: time.Now(),
		jobs: make(map[string]*job), cuts: make(map[int]int), shared: make(map[string]any),
	}
	w.Redis.ClockTTL(true)
	w.observer = redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379", Dialer: func(context.Context, string, string) (net.Conn, error) { return redistest.Dial(w.Redis) },
		DisableIdentity: true, Protocol: 2, MaxRetries: -1,
	})
	w.listener = mockapi.ServePipe(w.arrivals(upstream))
	// No deadline: callers would see that they wait in vain, and turn away.
	ctx, cancel := context.WithCancel(context.Background())
	var commands int64
	time.AfterFunc(s.Length, func() {
		commands = w.commands.Load() // without what it costs to end
		cancel()
	})
	w.ctx = ctx

	w.processes = make([]*Process, s.Fleet.Processes)
	for i := range w.processes {
		w.startProcess(i, 0)
	}
	for _, e := range s.Events {
		w.at(e.At, func() { e.Do(w) })
	}
	w.running.Go(w.sample)
	<-ctx.Done()
	r := Result{Stats: upstream.Stats()}
	r.Utilization, r.TotalUtilization = upstream.Utilization(0, s.Length)
	r.TotalUtilization += r.Utilization
	w.running.Wait()
	w.setAPIAway(false)
	clear(w.cuts)
	w.setRedisAway(false)
	w.end(&r)
	w.summarise(&r)
	if r.Stats.Accepted > 0 {
		r.CommandsPerAdmission = float64(commands) / float64(r.Stats.Accepted)
	}
	return r
}

// end winds the scenario up, and looks at what it has left in Redis.
func (w *World) end(r *Result) {
	sleep(context.Background(), settling) // what was broken off gives its slot back
	r.Leases = w.leases()
	for _, p := range w.processes {
		p.stop()
	}
	w.listener.Close()
	w.Upstream.Close()
	sleep(context.Background(), forgetting)
	r.KeysLeft = w.Redis.Keys()
	w.observer.Close()
	w.Redis.Close()
	sleep(context.Background(), time.Minute) // what has been told to end has ended
}

const (
	// settling is how long calls that are broken off at the end may take to
	// give back what they hold.
	settling = 10 * time.Second
	// forgetting outlasts every TTL of an idle account.
	forgetting = 40 * time.Minute
)

// now is the time since the start.
func (w *World) now() time.Duration { return time.Since(w.start) }

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

// rand is randomness that follows from the seed; each stream is another.
func (w *World) rand(stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(w.scenario.Seed, stream))
}

// process returns the one that runs under a number.
func (w *World) process(number int) *Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.processes[number%len(w.processes)]
}

// Shared returns what make made when it was first called with this name: state
// that a strategy keeps outside of its processes.
func (w *World) Shared(name string, make func() any) any {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shared[name] == nil {
		w.shared[name] = make()
	}
	return w.shared[name]
}

// snapshot returns a copy of what grows under w.mu.
func snapshot[T any](w *World, list *[]T) []T {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(*list)
}

var quiet = slog.New(slog.DiscardHandler)

// muted is go-redis's own log: that a cut connection cannot be dialled is no news.
type muted struct{}

func (muted) Printf(context.Context, string, ...any) {}

var mute = sync.OnceFunc(func() { redis.SetLogger(muted{}) })
