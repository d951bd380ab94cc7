package integration

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/integration/fleet"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// fleetPolicy has short windows, of which a test sees many, and a jitter that lets a
// busy machine keep a process waiting.
var fleetPolicy = coordinator.Policy{
	Limit: 240, Window: 3 * time.Second, Headroom: 1, Jitter: time.Second, LeaseTTL: 6 * time.Second,
	Endpoints: []coordinator.Endpoint{{Pattern: mavera.Chat, Slots: 4}},
}

// A running fleet is a few worker processes and their judge.
type running struct {
	t       *testing.T
	key     string
	api     *fleet.API
	workers []*fleet.Process
	toRedis []*fleet.Wire // of each worker, if there are wires
	toAPI   []*fleet.Wire
}

// startFleet starts four workers at a Redis. With redisAddr, each has wires of its own
// to there and to the API.
func startFleet(t *testing.T, url, redisAddr string) *running {
	t.Helper()
	return startFleetOf(t, url, redisAddr, time.Minute)
}

func startFleetOf(t *testing.T, url, redisAddr string, callTimeout time.Duration) *running {
	t.Helper()
	api, err := fleet.ServeAPI(mockapi.Config{
		Limit: fleetPolicy.Limit, Window: fleetPolicy.Window, Grace: fleetPolicy.Jitter,
		Slots: map[string]int{mavera.Chat: 4},
		Latency: map[string]mockapi.Latency{
			mavera.Chat: {Mean: 150 * time.Millisecond, Jitter: 0.5}, mockapi.GetPersonas: {Mean: 20 * time.Millisecond, Jitter: 0.5},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(api.Close)
	r := &running{t: t, api: api}
	r.key = "mvra_live_" + redistest.Account(t)
	for i := range 4 {
		s := fleet.Setup{
			Worker: fmt.Sprint("w", i), Redis: url, API: api.URL, Key: r.key, Policy: fleetPolicy,
			Callers:     map[string]int{mockapi.GetPersonas: 2, mavera.Chat: 2},
			CallTimeout: callTimeout, RedisTimeout: time.Second,
		}
		if redisAddr != "" {
			wires := [2]*fleet.Wire{}
			for j, addr := range []string{redisAddr, api.Addr} {
				w, err := fleet.NewWire(addr)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(w.Close)
				wires[j] = w
			}
			r.toRedis, r.toAPI = append(r.toRedis, wires[0]), append(r.toAPI, wires[1])
			s.Redis, s.API = wires[0].Through(url), wires[1].Through(api.URL)
		}
		p, err := fleet.Start(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Kill)
		r.workers = append(r.workers, p)
	}
	for _, p := range r.workers {
		if err := p.Work(); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// serves waits until every worker has succeeded n times more than by now.
func (r *running) serves(n int) {
	r.t.Helper()
	r.serve(n, r.workers...)
}

func (r *running) serve(n int, workers ...*fleet.Process) {
	r.t.Helper()
	var want []int
	for _, p := range workers {
		want = append(want, p.Last().OK+n)
	}
	for i, p := range workers {
		late := time.AfterFunc(2*time.Minute, p.Kill)
		got, err := p.Await(func(r fleet.Report) bool { return r.OK >= want[i] })
		late.Stop()
		if err != nil {
			r.t.Fatalf("%s has served %d calls, not %d: %v\n%+v\n%+v", p.Name, got.OK, want[i], err, got, r.api.Stats())
		}
	}
}

// end closes the fleet and returns the judge's verdict and what callers have seen go
// wrong.
func (r *running) end() (mockapi.Stats, map[string]int) {
	r.t.Helper()
	wrong := make(map[string]int)
	var resting sync.WaitGroup
	for _, p := range r.workers {
		resting.Go(func() {
			if _, err := p.Rest(); err != nil {
				r.t.Error(err)
			}
		})
	}
	resting.Wait()
	for _, p := range r.workers {
		report, err := p.Close()
		if err != nil {
			r.t.Error(err)
		}
		for what, n := range report.Errors {
			wrong[what] += n
		}
	}
	stats := r.api.Stats()
	if used := stats.MaxInWindow; used == 0 {
		r.t.Error("the judge has seen nothing")
	}
	return stats, wrong
}

// carefully ends a fleet that must have done no wrong, and whose callers must all have
// been served, but for what the test excuses.
func (r *running) carefully(excused ...string) {
	r.t.Helper()
	stats, wrong := r.end()
	if fleet.Violations(stats) > 0 {
		r.t.Errorf("the judge: violations of the limit %d, of slots %d, of pauses %d; %+v",
			stats.LimitViolations, stats.SlotViolations, stats.PauseViolations, stats)
	}
	for _, what := range excused {
		delete(wrong, what)
	}
	if len(wrong) > 0 {
		r.t.Errorf("callers have seen %v", wrong)
	}
}

func aFleetIsCareful(t *testing.T, at place) {
	r := startFleet(t, at.url, "")
	r.serves(30)
	r.carefully()
}
