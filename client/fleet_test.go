package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/redistest"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

const apiKey = "mvra_live_test"

// A rig is the mock API and a Redis, both in memory and in virtual time.
type rig struct {
	t    *testing.T
	api  *mockapi.API
	pipe *mockapi.PipeListener
	mini *miniredis.Miniredis
	ends []func()
}

func inVirtualTime(t *testing.T, cfg mockapi.Config, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api, err := mockapi.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		mini := miniredis.NewMiniRedis()
		mini.ClockTTL(true)
		r := &rig{t: t, api: api, pipe: api.Listen(), mini: mini}
		defer func() {
			for _, end := range r.ends {
				end()
			}
			api.Close()
			mini.Close()
		}()
		test(t, r)
	})
}

// worker is one process of the fleet: a client with a coordinator and
// connections of its own.
func (r *rig) worker(name string, policy coordinator.Policy, opts client.Options) *http.Client {
	r.t.Helper()
	rdb := redis.NewClient(&redis.Options{
		Addr: "127.0.0.1:6379",
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			return redistest.Dial(r.mini)
		},
		DisableIdentity: true,
		Protocol:        2,
	})
	c, err := coordinator.New(rdb, policy, coordinator.Options{APIKey: apiKey, Worker: name, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.t.Fatal(err)
	}
	base := r.pipe.Transport()
	opts.Base = base
	tr, err := client.New(c, mavera.Profile(), opts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.ends = append(r.ends, func() {
		base.CloseIdleConnections()
		if err := c.Close(); err != nil {
			r.t.Error(err)
		}
		rdb.Close()
	})
	return tr.Client()
}

// call sends one request and reads the whole answer.
func (r *rig) call(ctx context.Context, hc *http.Client, endpoint, body string) (int, string, error) {
	method, path, _ := strings.Cut(endpoint, " ")
	req, err := http.NewRequestWithContext(ctx, method, r.pipe.URL()+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+apiKey)
	resp, err := hc.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func (r *rig) mustCall(ctx context.Context, hc *http.Client, endpoint, body string) string {
	r.t.Helper()
	status, text, err := r.call(ctx, hc, endpoint, body)
	if err != nil || status/100 != 2 {
		r.t.Errorf("%s: %d %s, %v", endpoint, status, text, err)
	}
	return text
}

// analyse starts a video analysis and polls it to its end.
func (r *rig) analyse(ctx context.Context, starter, poller *http.Client) {
	r.t.Helper()
	var job struct{ ID, Status string }
	text := r.mustCall(ctx, starter, "POST /video-analyses", "{}")
	for {
		if err := json.Unmarshal([]byte(text), &job); err != nil {
			r.t.Errorf("%q: %v", text, err)
			return
		}
		if job.Status == "completed" || job.Status == "failed" {
			return
		}
		time.Sleep(20 * time.Second)
		text = r.mustCall(ctx, poller, "GET /video-analyses/"+job.ID, "")
	}
}

func (r *rig) mustBeClean() mockapi.Stats {
	r.t.Helper()
	s := r.api.Stats()
	if s.Responses429 != 0 || s.LimitViolations != 0 || s.SlotViolations != 0 || s.PauseViolations != 0 || s.Unheeded503 != 0 {
		r.t.Errorf("429s %d, violations: limit %d, slots %v, pause %d, 503 %d",
			s.Responses429, s.LimitViolations, s.SlotViolationsByEndpoint, s.PauseViolations, s.Unheeded503)
	}
	return s
}

func fullUse(tier mavera.Tier) coordinator.Policy {
	p := mavera.Policy(tier)
	p.Headroom = 1
	return p
}

func TestAFleetWithAMixedLoadGetsNo429(t *testing.T) {
	for _, mode := range []mockapi.Mode{mockapi.Sliding, mockapi.Fixed} {
		t.Run(string(mode), func(t *testing.T) {
			inVirtualTime(t, mockapi.Config{Tier: "basic", Mode: mode, Seed: 1}, func(t *testing.T, r *rig) {
				var workers []*http.Client
				for i := range 3 {
					workers = append(workers, r.worker(fmt.Sprintf("w%d", i), fullUse(mavera.Basic), client.Options{}))
				}
				var load sync.WaitGroup
				for i, w := range workers {
					for range 60 {
						load.Go(func() { r.mustCall(t.Context(), w, "POST /responses", "{}") })
					}
					for range 10 {
						load.Go(func() { r.mustCall(t.Context(), w, "POST /mave/chat", `{"stream":true}`) })
					}
					for range 2 {
						load.Go(func() { r.analyse(t.Context(), w, workers[(i+1)%3]) })
					}
				}
				load.Wait()
				s := r.mustBeClean()
				if s.MaxInFlight["POST /mave/chat"] != 10 || s.MaxInFlight["POST /video-analyses"] != 3 {
					t.Errorf("most in flight: %v", s.MaxInFlight)
				}
			})
		})
	}
}

func TestAJobHoldsItsSlotUntilAnyWorkerSeesItDone(t *testing.T) {
	cfg := mockapi.Config{NoLatency: true, JobDuration: mockapi.Range{Min: 4 * time.Minute, Max: 4 * time.Minute}}
	inVirtualTime(t, cfg, func(t *testing.T, r *rig) {
		a := r.worker("a", mavera.Policy(mavera.Enterprise), client.Options{})
		b := r.worker("b", mavera.Policy(mavera.Enterprise), client.Options{})
		var load sync.WaitGroup
		for range 4 {
			load.Go(func() { r.analyse(t.Context(), a, b) })
		}
		start := time.Now()
		load.Wait()
		// The fourth begins when the first three have been seen done.
		if d := time.Since(start); d < 8*time.Minute || d > 8*time.Minute+time.Minute {
			t.Errorf("four analyses took %v", d)
		}
		r.mustBeClean()
	})
}

func TestAPushbackPausesTheFleetOnceAndNobodyFails(t *testing.T) {
	inVirtualTime(t, mockapi.Config{NoLatency: true, Tier: "enterprise", Grace: 250 * time.Millisecond}, func(t *testing.T, r *rig) {
		var workers []*http.Client
		for i := range 3 {
			workers = append(workers, r.worker(fmt.Sprintf("w%d", i), fullUse(mavera.Enterprise), client.Options{}))
		}
		r.mustCall(t.Context(), workers[0], "POST /responses", "{}")
		if err := r.api.Inject(mockapi.Fault{Kind: mockapi.FaultSurprise429, RetryAfter: 20 * time.Second}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		r.mustCall(t.Context(), workers[0], "POST /responses", "{}")
		if d := time.Since(start); d < 20*time.Second {
			t.Errorf("came back after %v", d)
		}
		var load sync.WaitGroup
		for i := range 30 {
			load.Go(func() { r.mustCall(t.Context(), workers[i%3], "POST /responses", "{}") })
		}
		load.Wait()
		s := r.api.Stats()
		if s.Responses429 != 1 || s.Surprise429 != 1 || s.PauseViolations != 0 {
			t.Errorf("429s %d (injected %d), sent into the pause %d", s.Responses429, s.Surprise429, s.PauseViolations)
		}
	})
}

// Nothing but the order in which the coordinator talks to Redis keeps the retry
// of the first request of all behind the pause that it has just caused.
func TestThePushbackOnTheVeryFirstRequestHoldsItsRetry(t *testing.T) {
	cfg := mockapi.Config{NoLatency: true, Faults: []mockapi.Fault{
		{Kind: mockapi.FaultSurprise429, RetryAfter: 20 * time.Second, Hold: true},
	}}
	inVirtualTime(t, cfg, func(t *testing.T, r *rig) {
		w := r.worker("w", fullUse(mavera.Enterprise), client.Options{})
		r.mustCall(t.Context(), w, "POST /responses", "{}")
		if s := r.api.Stats(); s.Responses429 != 1 {
			t.Errorf("%d × 429, want the injected one alone", s.Responses429)
		}
	})
}

func TestErrorsOfTheServerAreRetriedWithTheBody(t *testing.T) {
	cfg := mockapi.Config{NoLatency: true, Faults: []mockapi.Fault{
		{Kind: mockapi.FaultError, Status: 500, Count: 2},
		{Kind: mockapi.FaultError, Status: 503, Count: 2, RetryAfter: 5 * time.Second},
	}}
	inVirtualTime(t, cfg, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		var statuses []int
		w := r.worker("w", fullUse(mavera.Enterprise), client.Options{OnAttempt: func(a client.Attempt) {
			mu.Lock()
			defer mu.Unlock()
			statuses = append(statuses, a.Status)
		}})
		start := time.Now()
		r.mustCall(t.Context(), w, "POST /video-analyses", `{"url":"https://video.test/1"}`)
		if d := time.Since(start); d < 10*time.Second {
			t.Errorf("two 503s with Retry-After 5 took %v", d)
		}
		if got := fmt.Sprint(statuses); got != "[500 500 503 503 200]" && got != "[500 500 503 503 202]" && got != "[500 500 503 503 201]" {
			t.Errorf("statuses %s", got)
		}
		r.mustBeClean()
	})
}

func TestCallsBrokenOffNeverOverfillTheSlots(t *testing.T) {
	inVirtualTime(t, mockapi.Config{Seed: 3}, func(t *testing.T, r *rig) {
		w := r.worker("w", fullUse(mavera.Enterprise), client.Options{})
		var load sync.WaitGroup
		for i := range 60 {
			load.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%2 == 0 {
					time.AfterFunc(time.Duration(5+i)*time.Second, cancel)
				}
				_, _, err := r.call(ctx, w, "POST /mave/chat", fmt.Sprintf(`{"stream":%t}`, i%4 < 2))
				if i%2 == 1 && err != nil {
					t.Error(err)
				}
			})
		}
		load.Wait()
		s := r.mustBeClean()
		if s.Canceled == 0 {
			t.Error("no call was broken off")
		}
	})
}

func TestACutConnectionLeavesTheSlotToTheJobThatItMayHaveStarted(t *testing.T) {
	cfg := mockapi.Config{NoLatency: true, Faults: []mockapi.Fault{{Kind: mockapi.FaultCutAfter, Endpoint: mockapi.PostVideoAnalyses, Count: 3}}}
	inVirtualTime(t, cfg, func(t *testing.T, r *rig) {
		w := r.worker("w", fullUse(mavera.Enterprise), client.Options{})
		for range 3 {
			if status, _, err := r.call(t.Context(), w, "POST /video-analyses", "{}"); err == nil {
				t.Errorf("status %d, want a broken connection", status)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := r.call(ctx, w, "POST /video-analyses", "{}"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a fourth start: %v, want to wait for a slot", err)
		}
		r.mustBeClean()
	})
}

func TestAWaitThatOutlastsTheDeadlineSaysWhichGate(t *testing.T) {
	policy := fullUse(mavera.Starter)
	policy.Limit = 2
	inVirtualTime(t, mockapi.Config{NoLatency: true, Limit: 2}, func(t *testing.T, r *rig) {
		w := r.worker("w", policy, client.Options{})
		for range 2 {
			r.mustCall(t.Context(), w, "POST /responses", "{}")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		_, _, err := r.call(ctx, w, "POST /responses", "{}")
		var wait *coordinator.WaitError
		if !errors.As(err, &wait) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if strings.Contains(fmt.Sprint(err), apiKey) {
			t.Error("the error shows the API key")
		}
	})
}

func TestARequestThatWasNeverSentCostsNothing(t *testing.T) {
	inVirtualTime(t, mockapi.Config{}, func(t *testing.T, r *rig) {
		w := r.worker("w", fullUse(mavera.Starter), client.Options{})
		r.pipe.Close() // from here on nobody can be dialled
		start := time.Now()
		for range 200 {
			if _, _, err := r.call(t.Context(), w, "POST /mave/chat", "{}"); !errors.Is(err, net.ErrClosed) {
				t.Fatalf("error = %v", err)
			}
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("200 calls that could not be sent waited %v for 60 a minute", d)
		}
	})
}

// A slot that is held is renewed by heartbeats for as long as the work lasts, and is free
// when it is done.
func TestAHeldSlotIsRenewedUntilItIsReleased(t *testing.T) {
	inVirtualTime(t, mockapi.Config{NoLatency: true}, func(t *testing.T, r *rig) {
		policy := mavera.Policy(mavera.Professional)
		for i := range policy.Endpoints {
			policy.Endpoints[i].Slots = 1
		}
		api := r.worker("a", policy, client.Options{})
		call := func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, "POST", "http://api.test/api/v1/mave/chat", strings.NewReader(`{"message":"hello"}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+apiKey)
			resp, err := api.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("status %s", resp.Status)
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		}
		ctx, held := client.WithHold(t.Context())
		if err := call(ctx); err != nil || !held.Held() {
			t.Fatalf("error %v, held: %v", err, held.Held())
		}
		work, free := held.Context(t.Context())
		defer free()
		short, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := call(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call while the only slot is held: %v, want that it waits in vain", err)
		}
		if work.Err() != nil {
			t.Errorf("the slot was lost: %v", context.Cause(work))
		}
		held.Release()
		if err := call(t.Context()); err != nil {
			t.Errorf("a call when the slot has been released: %v", err)
		}
	})
}
