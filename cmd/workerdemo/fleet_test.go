package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

const testKey = "mvra_live_test"

// A load is what a fleet is given to do in virtual time.
type load struct {
	cfg      mockapi.Config
	tier     mavera.Tier
	workers  int
	requests int
	mix      string
}

// runInVirtualTime lets a fleet of workers do its work, all in one process and in
// a bubble whose clock is also that of Redis and of the mock.
func runInVirtualTime(t *testing.T, l load, check func(t *testing.T, s summary)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m, err := parseMix(l.mix)
		if err != nil {
			t.Fatal(err)
		}
		l.cfg.Tier = string(l.tier)
		api, err := mockapi.New(l.cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer api.Close()
		pipe := api.Listen()
		mini := miniredis.NewMiniRedis()
		mini.ClockTTL(true)
		dialRedis := func() *redis.Client {
			return redis.NewClient(&redis.Options{
				Addr: "127.0.0.1:6379",
				Dialer: func(context.Context, string, string) (net.Conn, error) {
					return redistest.Dial(mini)
				},
				DisableIdentity: true,
				Protocol:        2,
			})
		}
		connect := func(setup) (connections, error) { return connections{dialRedis(), pipe.Transport()}, nil }
		quiet := slog.New(slog.DiscardHandler)

		p := plan{Tier: l.tier, Headroom: 1}
		rdb := dialRedis()
		observer, err := coordinator.New(rdb, p.policy(), coordinator.Options{APIKey: testKey, Worker: "observer", Logger: quiet})
		if err != nil {
			t.Fatal(err)
		}
		f := &fleet{plan: p, portions: m.split(l.requests), view: &plainView{out: io.Discard}, stats: observer.State}
		f.start = func(name string, callers map[string]int, events chan<- event) (*member, error) {
			s := setup{Worker: name + "-test", Upstream: pipe.URL(), Key: testKey, Plan: p, Callers: callers}
			return engage(name, s, connect, quiet, events), nil
		}
		names := make([]string, l.workers)
		for i := range names {
			names[i] = fmt.Sprintf("w%d", i+1)
		}
		if err := f.run(t.Context(), names); err != nil {
			t.Error(err)
		}
		stats := api.Stats()
		check(t, f.summarize(&stats))
		observer.Close()
		rdb.Close()
		mini.Close()
		time.Sleep(time.Second) // go-redis notices a closed subscription after its retry delay
	})
}

func TestAThousandRequestsByEightWorkersUseTheTierWithoutA429(t *testing.T) {
	for _, test := range []struct {
		mode    mockapi.Mode
		latency time.Duration
	}{
		{mockapi.Sliding, 20 * time.Millisecond},
		{mockapi.Fixed, 15 * time.Second}, // at 10 requests a second: 150 in flight
	} {
		t.Run(fmt.Sprintf("%s/%v", test.mode, test.latency), func(t *testing.T) {
			cfg := mockapi.Config{
				Mode: test.mode, Phase: 17 * time.Second, Seed: 1,
				Latency: map[string]mockapi.Latency{mockapi.PostResponses: {Mean: test.latency, Jitter: 0.5}},
			}
			l := load{cfg: cfg, tier: mavera.Enterprise, workers: 8, requests: 1000, mix: "POST /responses=1"}
			runInVirtualTime(t, l, func(t *testing.T, s summary) {
				if !s.ok() || s.Utilization < 0.97 {
					t.Errorf("utilization %v: %+v", s.Utilization, s)
				}
			})
		})
	}
}

func TestAMixedLoadFillsTheSlotsAndHoldsUpNobody(t *testing.T) {
	l := load{cfg: mockapi.Config{Seed: 1, TimeScale: 0.05}, tier: mavera.Professional, workers: 4, requests: 120, mix: defaultMix}
	runInVirtualTime(t, l, func(t *testing.T, s summary) {
		if !s.ok() || s.Polls == 0 || s.MaxInFlight[mavera.Chat] != 10 || s.MaxInFlight[mavera.VideoAnalyses] != 3 {
			t.Errorf("%+v", s)
		}
		// Six in ten need no slot, and do not wait behind the chats and videos
		// that do.
		if s.WaitP50MS > 10_000 {
			t.Errorf("half of the requests waited longer than %v ms", s.WaitP50MS)
		}
		for _, w := range s.PerWorker {
			if w.Succeeded < 120/4/3 {
				t.Errorf("%s did only %d requests", w.Worker, w.Succeeded)
			}
		}
	})
}

func TestAKeyThatIsRefusedEndsTheRun(t *testing.T) {
	cfg := mockapi.Config{Faults: []mockapi.Fault{{Kind: mockapi.FaultError, Status: 402, Probability: 1}}}
	l := load{cfg: cfg, tier: mavera.Starter, workers: 2, requests: 1000, mix: "POST /responses=1"}
	runInVirtualTime(t, l, func(t *testing.T, s summary) {
		if s.ok() || s.Sent > 100 || len(s.Errors) == 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAFailureIsToldAndTheRestGoesOn(t *testing.T) {
	cfg := mockapi.Config{Faults: []mockapi.Fault{{Kind: mockapi.FaultError, Status: 400, Count: 2}}}
	l := load{cfg: cfg, tier: mavera.Enterprise, workers: 2, requests: 50, mix: "POST /responses=1,POST /mave/chat=1"}
	runInVirtualTime(t, l, func(t *testing.T, s summary) {
		if s.ok() || s.Failed != 2 || s.Succeeded != 48 || s.Interrupted {
			t.Errorf("%+v", s)
		}
	})
}

func TestAJobThatFailsIsAFailure(t *testing.T) {
	l := load{cfg: mockapi.Config{JobFailures: 1, TimeScale: 0.1}, tier: mavera.Enterprise, workers: 2, requests: 4, mix: "POST /video-analyses=1"}
	runInVirtualTime(t, l, func(t *testing.T, s summary) {
		if s.Failed != 4 || s.Succeeded != 0 {
			t.Errorf("%+v", s)
		}
	})
}
