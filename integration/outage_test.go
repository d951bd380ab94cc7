package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// A squad is a fleet under load on a real Redis, whose every request is judged. The window is
// short so that an outage lasts for several, and the jitter is long, so that a busy
// machine is no violation.
type squad struct {
	t        *testing.T
	server   *redistest.Server
	admin    *redis.Client
	account  string
	judge    *mockapi.API
	workers  []*coordinator.Coordinator
	answered atomic.Int64
	degraded atomic.Int64 // times that a worker went on alone
	back     atomic.Int64 // times that one was back
	forgot   atomic.Int64 // times that one found that Redis had forgotten the account
	cancel   context.CancelFunc
	callers  sync.WaitGroup

	mu      sync.Mutex
	failed  []error
	longest time.Duration // that a call took
}

const (
	fleetLimit  = 60
	fleetWindow = 3 * time.Second
)

func startSquad(t *testing.T, server *redistest.Server, workers int, opts coordinator.Options) *squad {
	t.Helper()
	judge, err := mockapi.New(mockapi.Config{
		Limit: fleetLimit, Window: fleetWindow, NoLatency: true, Grace: time.Second,
		Latency: map[string]mockapi.Latency{chat: {Mean: 50 * time.Millisecond}},
		Slots:   map[string]int{chat: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { judge.Close() })
	api := judge.Listen()
	ctx, cancel := context.WithCancel(context.Background())
	f := &squad{t: t, server: server, admin: server.Client(t), account: redistest.Account(t), judge: judge, cancel: cancel}
	policy := coordinator.Policy{
		Limit: fleetLimit, Window: fleetWindow, Headroom: 1, Jitter: time.Second, LeaseTTL: 3 * time.Second,
		Endpoints: []coordinator.Endpoint{{Pattern: chat, Slots: 4}},
	}
	for i := range workers {
		opts.Account, opts.Worker = f.account, fmt.Sprint("w", i)
		opts.Logger = slog.New(slog.DiscardHandler)
		opts.Events.Degraded = func(coordinator.Degradation) { f.degraded.Add(1) }
		opts.Events.Recovered = func(coordinator.Recovery) { f.back.Add(1) }
		opts.Events.MemoryLost = func(coordinator.MemoryLoss) { f.forgot.Add(1) }
		c, err := coordinator.New(server.Client(t), policy, opts)
		if err != nil {
			t.Fatal(err)
		}
		f.workers = append(f.workers, c)
		transport, err := client.New(c, client.Profile{BasePath: "/api/v1", Dialects: mavera.Profile().Dialects}, client.Options{Base: api.Transport()})
		if err != nil {
			t.Fatal(err)
		}
		for j := range 6 {
			path := "/responses"
			if j < 3 {
				path = "/mave/chat"
			}
			f.callers.Go(func() { f.call(ctx, transport.Client(), api.URL()+path) })
		}
	}
	t.Cleanup(func() {
		cancel()
		f.callers.Wait()
		for _, c := range f.workers {
			c.Close()
		}
	})
	return f
}

func (f *squad) call(ctx context.Context, c *http.Client, url string) {
	for ctx.Err() == nil {
		begun := time.Now()
		req, err := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(`{"model":"mavera-1","input":"hello"}`))
		if err != nil {
			f.t.Error(err)
			return
		}
		req.Header.Set("Authorization", "Bearer mvra_live_integration")
		resp, err := c.Do(req)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			f.answered.Add(1)
		}
		f.mu.Lock()
		f.longest = max(f.longest, time.Since(begun))
		if err != nil && ctx.Err() == nil && len(f.failed) < 100 {
			f.failed = append(f.failed, err)
		}
		f.mu.Unlock()
		if err != nil && !pause(ctx, 20*time.Millisecond) {
			return
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// awaitAnswers waits until the fleet has had so many more answers.
func (f *squad) awaitAnswers(n int64) {
	f.t.Helper()
	from := f.answered.Load()
	redistest.Eventually(f.t, fmt.Sprintf("%d more answers", n), func() error {
		if got := f.answered.Load() - from; got < n {
			f.mu.Lock()
			defer f.mu.Unlock()
			return fmt.Errorf("%d answers; failed: %v", got, f.failed)
		}
		return nil
	})
}

// awaitAll waits until Redis counts all workers.
func (f *squad) awaitAll() {
	f.t.Helper()
	redistest.Eventually(f.t, "all are counted", func() error {
		s, err := f.workers[0].State(context.Background())
		if err == nil && s.Alive != len(f.workers) {
			err = fmt.Errorf("%d alive", s.Alive)
		}
		return err
	})
	f.awaitAnswers(fleetLimit)
}

// awaitTogether waits until Redis decides for all workers again.
func (f *squad) awaitTogether() {
	f.t.Helper()
	redistest.Eventually(f.t, "the workers are back with Redis", func() error {
		s, err := f.workers[0].State(context.Background())
		if err != nil {
			return err
		}
		if s.Backoff != nil {
			return fmt.Errorf("paused: %+v", s.Backoff)
		}
		if s.Alive != len(f.workers) {
			return fmt.Errorf("%d alive", s.Alive)
		}
		return nil
	})
	f.awaitAnswers(fleetLimit)
}

// judged ends the load and asserts what must hold whatever happened.
func (f *squad) judged() {
	f.t.Helper()
	f.cancel()
	f.callers.Wait()
	s := f.judge.Stats()
	if s.Responses429 != 0 || s.LimitViolations != 0 || s.SlotViolations != 0 || s.PauseViolations != 0 {
		f.t.Errorf("the judge counts %d times 429, %d over the limit, %d over the slots, %d in a pause; most in a window %d of %d",
			s.Responses429, s.LimitViolations, s.SlotViolations, s.PauseViolations, s.MaxInWindow, fleetLimit)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.failed) > 0 {
		f.t.Errorf("%d callers got errors, the first %v", len(f.failed), f.failed[0])
	}
}

// What a fleet with its own shares makes of each fault of Redis: no caller gets an
// error, none waits for Redis, and the API sees no violation.
func TestFaultsOfRedisAreNoFaultsOfTheFleet(t *testing.T) {
	ctx := context.Background()
	for _, fault := range []struct {
		name   string
		strike func(t *testing.T, f *squad) (mend func())
		alone  bool // the workers must have gone on with their own shares
	}{
		{"HangsAndAnswersAgain", func(t *testing.T, f *squad) func() {
			mustDo(t, f.server.Freeze())
			return func() { mustDo(t, f.server.Thaw()) }
		}, true},
		{"RestartsWithoutItsMemory", func(t *testing.T, f *squad) func() {
			f.server.Stop()
			return func() { mustDo(t, f.server.Restart()) }
		}, true},
		{"FLUSHALL", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.FlushAll(ctx).Err())
			return func() {}
		}, false},
		{"SCRIPT_FLUSH", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.ScriptFlush(ctx).Err())
			return func() {}
		}, false},
		{"CLIENT_KILL", func(t *testing.T, f *squad) func() {
			for range 20 {
				mustDo(t, f.admin.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err())
				mustDo(t, f.admin.ClientKillByFilter(ctx, "TYPE", "pubsub").Err())
				f.awaitAnswers(2)
			}
			return func() {}
		}, false},
		{"CLIENT_PAUSE", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.Do(ctx, "CLIENT", "PAUSE", 4000, "ALL").Err())
			return func() { mustDo(t, f.admin.Do(ctx, "CLIENT", "UNPAUSE").Err()) }
		}, true},
		{"OOM_noeviction", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err())
			mustDo(t, f.admin.ConfigSet(ctx, "maxmemory", "1").Err())
			return func() { mustDo(t, f.admin.ConfigSet(ctx, "maxmemory", "0").Err()) }
		}, true},
		{"READONLY_AfterFailover", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.ReplicaOf(ctx, "127.0.0.1", "1").Err()) // of nobody that answers
			return func() { mustDo(t, f.admin.ReplicaOf(ctx, "NO", "ONE").Err()) }
		}, true},
		{"BUSY_WithAnotherScript", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.ConfigSet(ctx, "busy-reply-threshold", "100").Err())
			ended := make(chan error, 1)
			go func() { ended <- f.server.Client(t).Eval(ctx, "while true do end", nil).Err() }()
			return func() {
				mustDo(t, f.admin.ScriptKill(ctx).Err())
				<-ended
			}
		}, true},
		{"maxclients", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.ConfigSet(ctx, "maxclients", "1").Err()) // the test itself is one
			mustDo(t, f.admin.ClientKillByFilter(ctx, "TYPE", "pubsub").Err())
			mustDo(t, f.admin.ClientKillByFilter(ctx, "TYPE", "normal", "SKIPME", "yes").Err())
			return func() { mustDo(t, f.admin.ConfigSet(ctx, "maxclients", "1000").Err()) }
		}, true},
		{"ClosesIdleConnections", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.ConfigSet(ctx, "timeout", "1").Err())
			return func() { mustDo(t, f.admin.ConfigSet(ctx, "timeout", "0").Err()) }
		}, false},
		{"ClosesSubscriptions", func(t *testing.T, f *squad) func() {
			mustDo(t, f.admin.ConfigSet(ctx, "client-output-buffer-limit", "pubsub 1 0 0").Err())
			return func() { mustDo(t, f.admin.ConfigSet(ctx, "client-output-buffer-limit", "pubsub 0 0 0").Err()) }
		}, false},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--appendonly", "no")
			f := startSquad(t, server, 3, coordinator.Options{RedisTimeout: time.Second})
			f.awaitAnswers(fleetLimit)
			f.awaitAll()
			mend := fault.strike(t, f)
			f.awaitAnswers(fleetLimit) // that is a window's worth, whatever has happened
			mend()
			f.awaitTogether()
			if alone := f.degraded.Load(); fault.alone && alone == 0 {
				t.Error("no worker has noticed")
			}
			f.judged()
		})
	}
}

// A rolling restart: Redis is told to end, or crashes, and comes back with all that it
// knew, three times in a row. A Redis that is not there refuses at once, so nobody waits
// for RedisTimeout, which is longer here than the test lasts.
func TestRollingRestartOfARedisThatPersists(t *testing.T) {
	for how, stop := range map[string]func(*squad){
		"Shutdown": func(f *squad) { _ = f.admin.Shutdown(context.Background()).Err() }, // it ends instead of an answer
		"Crash":    func(f *squad) { f.server.Stop() },
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			f := startSquad(t, server, 3, coordinator.Options{RedisTimeout: time.Hour})
			f.awaitAnswers(fleetLimit)
			f.awaitAll()
			born := func() string {
				text, err := f.admin.HGet(context.Background(), "fleetlimit:{"+f.account+"}:account", "born_ms").Result()
				mustDo(t, err)
				return text
			}
			before := born()
			for range 3 {
				stop(f)
				f.awaitAnswers(fleetLimit) // from the workers' own shares
				mustDo(t, server.Restart())
				f.awaitTogether()
			}
			if after := born(); after != before {
				t.Errorf("the account was born at %s, and at %s before", after, before)
			}
			if alone, back := f.degraded.Load(), f.back.Load(); alone < 3*3 || back != alone {
				t.Errorf("workers went on alone %d times and came back %d times, want each of three, three times", alone, back)
			}
			if n := f.forgot.Load(); n != 0 {
				t.Errorf("%d workers found that Redis had forgotten the account", n)
			}
			f.judged()
		})
	}
}

// LOADING: a Redis that has just started and reads its dump answers so. The callers
// do not notice.
func TestRedisThatIsLoadingIsAway(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Start(t, "--save", "3600 1", "--enable-debug-command", "yes", "--key-load-delay", "5000", "--rdbcompression", "no")
	f := startSquad(t, server, 3, coordinator.Options{RedisTimeout: time.Second})
	f.awaitAnswers(2 * fleetLimit)
	fill := f.admin.Pipeline()
	for i := range 500 { // 5 ms for each when it is read
		fill.Set(ctx, fmt.Sprint("filler:", i), strings.Repeat("x", 3000), time.Hour)
	}
	_, err := fill.Exec(ctx)
	mustDo(t, err)
	mustDo(t, f.admin.Save(ctx).Err())
	reload := make(chan error, 1)
	go func() { reload <- f.admin.Do(ctx, "DEBUG", "RELOAD", "NOSAVE").Err() }()
	f.awaitAnswers(fleetLimit)
	if err := <-reload; err != nil && !errors.Is(err, context.DeadlineExceeded) && !strings.Contains(err.Error(), "timeout") {
		t.Fatal(err)
	}
	f.awaitTogether()
	f.judged()
}

// The other two behaviours, on a Redis that is stopped.
func TestWaitingAndFailingFastOnARealRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "no")
	f := startSquad(t, server, 1, coordinator.Options{RedisTimeout: time.Second, WhenAway: coordinator.Wait})
	fast, err := coordinator.New(server.Client(t), policy, coordinator.Options{
		Account: redistest.Account(t), Worker: "fast", WhenAway: coordinator.FailFast, RedisTimeout: time.Second,
		Logger: slog.New(slog.DiscardHandler),
	})
	mustDo(t, err)
	t.Cleanup(func() { fast.Close() })
	acquire(t, fast, "")
	f.awaitAnswers(fleetLimit)
	server.Stop()
	redistest.Eventually(t, "failing fast", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := fast.Acquire(ctx, coordinator.Request{}); !errors.Is(err, coordinator.ErrRedisAway) {
			return fmt.Errorf("error %v, want ErrRedisAway", err)
		}
		return nil
	})
	redistest.Eventually(t, "waiting", func() error {
		if n := f.degraded.Load(); n == 0 {
			return errors.New("the fleet has not noticed")
		}
		return nil
	})
	before := f.answered.Load()
	mustDo(t, server.Restart())
	f.awaitAnswers(fleetLimit)
	acquire := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := fast.Acquire(ctx, coordinator.Request{})
		return err
	}
	redistest.Eventually(t, "served again", acquire)
	if f.answered.Load() <= before {
		t.Error("nobody who waited was served")
	}
	f.judged()
}

// Close under load gives everything back.
func TestCloseUnderLoadReturnsAllLeases(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "--appendonly", "no")
	f := startSquad(t, server, 3, coordinator.Options{})
	witness, err := coordinator.New(server.Client(t), f.workers[0].Policy(), coordinator.Options{
		Account: f.account, Worker: "witness", Logger: slog.New(slog.DiscardHandler),
	})
	mustDo(t, err)
	t.Cleanup(func() { witness.Close() })
	f.awaitAnswers(2 * fleetLimit)
	for _, c := range f.workers {
		mustDo(t, c.Close())
	}
	redistest.Eventually(t, "all slots are free", func() error {
		s, err := witness.State(context.Background())
		if err == nil && (s.Endpoints[0].InUse != 0 || s.Queued != 0 || s.Endpoints[0].Waiting != 0 || s.Alive != 0) {
			err = fmt.Errorf("%+v", s)
		}
		return err
	})
	f.cancel()
	f.callers.Wait()
	if s := f.judge.Stats(); s.Responses429 != 0 || s.SlotViolations != 0 {
		t.Errorf("the judge counts %d times 429, %d over the slots", s.Responses429, s.SlotViolations)
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
