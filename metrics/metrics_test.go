package metrics_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/metrics"
)

const (
	apiKey = "mvra_live_do_not_tell"
	worker = "worker-do-not-tell"
	jobID  = "job-do-not-tell"
)

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(silence{})
	os.Exit(m.Run())
}

// A rig is one worker whose metrics are registered, with a Redis in memory and an
// API that says what the test wants.
type rig struct {
	t       *testing.T
	mini    *miniredis.Miniredis
	reg     *prometheus.Registry
	fleet   *coordinator.Coordinator
	http    *http.Client
	respond func(*http.Request) *http.Response
}

func (r *rig) RoundTrip(req *http.Request) (*http.Response, error) {
	resp := r.respond(req)
	if resp == nil {
		return nil, errors.New("no route to host")
	}
	return resp, nil
}

func inVirtualTime(t *testing.T, test func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		mini := miniredis.NewMiniRedis()
		mini.ClockTTL(true)
		rdb := redis.NewClient(&redis.Options{
			Addr: "127.0.0.1:6379", Protocol: 2, DisableIdentity: true,
			Dialer: func(context.Context, string, string) (net.Conn, error) { return mini.Dial() },
		})
		r := &rig{t: t, mini: mini, reg: prometheus.NewPedanticRegistry()}
		m, err := metrics.New(r.reg, metrics.Options{})
		if err != nil {
			t.Fatal(err)
		}
		policy := coordinator.Policy{Limit: 60, Headroom: 1, Burst: 3, Endpoints: []coordinator.Endpoint{
			{Pattern: "POST /chat/{room}", Slots: 1}, {Pattern: "POST /jobs", Slots: 2, JobTTL: time.Minute},
		}}
		r.fleet, err = coordinator.New(rdb, policy, coordinator.Options{
			APIKey: apiKey, Account: "acme", Worker: worker, Logger: slog.New(slog.DiscardHandler), Events: m.Events(),
		})
		if err != nil {
			t.Fatal(err)
		}
		stop := m.Watch(r.fleet)
		transport, err := client.New(r.fleet, client.Profile{
			Dialects: []client.Dialect{client.XRateLimit}, Jobs: []client.Job{{Start: "POST /jobs", Poll: "GET /jobs/{id}"}},
		}, m.Client(client.Options{Base: r, MaxRetries: 1}))
		if err != nil {
			t.Fatal(err)
		}
		r.http = transport.Client()
		test(r)
		stop()
		r.fleet.Close()
		rdb.Close()
		mini.Close()
		time.Sleep(time.Second)
	})
}

func response(status int, body string, headers ...string) *http.Response {
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i < len(headers); i += 2 {
		h.Set(headers[i], headers[i+1])
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body))}
}

func (r *rig) do(method, path string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://api.test"+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+apiKey)
	resp, err := r.http.Do(req)
	if err != nil {
		return
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
}

func (r *rig) expect(want string, names ...string) {
	r.t.Helper()
	if err := testutil.GatherAndCompare(r.reg, strings.NewReader(want), names...); err != nil {
		r.t.Error(err)
	}
}

// trouble makes everything happen that is counted.
func trouble(r *rig) {
	r.respond = func(*http.Request) *http.Response {
		return response(200, `{"usage":{"credits_used":2.5}}`, "X-RateLimit-Limit", "60", "X-RateLimit-Remaining", "40", "X-RateLimit-Reset", "30")
	}
	r.do("POST", "/chat/secret-room")
	r.do("GET", "/path/do-not-tell")
	first := true
	r.respond = func(*http.Request) *http.Response {
		if first {
			first = false
			return response(429, "{}", "Retry-After", "7")
		}
		return response(200, `{"id":"`+jobID+`","status":"pending"}`)
	}
	r.do("POST", "/jobs")
	r.respond = func(*http.Request) *http.Response { return response(400, "{}") }
	r.do("GET", "/jobs/"+jobID)
	r.respond = func(*http.Request) *http.Response { return nil }
	r.do("GET", "/down")
	permit, err := r.fleet.Acquire(context.Background(), coordinator.Request{Endpoint: "POST /chat/{room}"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.mini.Del("fleetlimit:{acme}:slots:POST /chat/{room}")
	<-permit.Lost()
	r.fleet.TryAcquire(context.Background(), coordinator.Request{Endpoint: apiKey})
}

func TestWhatHappensIsCounted(t *testing.T) {
	inVirtualTime(t, func(r *rig) {
		trouble(r)
		synctest.Wait()
		r.expect(`
# HELP fleetlimit_requests_total Requests sent, each attempt counted (the source of requests_per_minute). Outcome: success, rejected (4xx), rate_limited (429), server_error (5xx), no_response.
# TYPE fleetlimit_requests_total counter
fleetlimit_requests_total{account="acme",endpoint="POST /chat/{room}",outcome="success"} 1
fleetlimit_requests_total{account="acme",endpoint="POST /jobs",outcome="rate_limited"} 1
fleetlimit_requests_total{account="acme",endpoint="POST /jobs",outcome="success"} 1
fleetlimit_requests_total{account="acme",endpoint="other",outcome="no_response"} 1
fleetlimit_requests_total{account="acme",endpoint="other",outcome="rejected"} 1
fleetlimit_requests_total{account="acme",endpoint="other",outcome="success"} 1
# HELP fleetlimit_responses_429_total Responses with status 429 (429_count). Should stay at 0.
# TYPE fleetlimit_responses_429_total counter
fleetlimit_responses_429_total{account="acme",endpoint="POST /chat/{room}"} 0
fleetlimit_responses_429_total{account="acme",endpoint="POST /jobs"} 1
fleetlimit_responses_429_total{account="acme",endpoint="other"} 0
# HELP fleetlimit_retries_total Attempts that were followed by another (retry_count).
# TYPE fleetlimit_retries_total counter
fleetlimit_retries_total{account="acme",endpoint="POST /chat/{room}"} 0
fleetlimit_retries_total{account="acme",endpoint="POST /jobs"} 1
fleetlimit_retries_total{account="acme",endpoint="other"} 0
# HELP fleetlimit_credits_used_total Credits that responses told in usage.credits_used.
# TYPE fleetlimit_credits_used_total counter
fleetlimit_credits_used_total{account="acme",endpoint="POST /chat/{room}"} 2.5
fleetlimit_credits_used_total{account="acme",endpoint="other"} 2.5
# HELP fleetlimit_leases_lost_total Slots that were lost before they were released.
# TYPE fleetlimit_leases_lost_total counter
fleetlimit_leases_lost_total{account="acme",endpoint="POST /chat/{room}"} 1
fleetlimit_leases_lost_total{account="acme",endpoint="POST /jobs"} 0
# HELP fleetlimit_pauses_total Pauses that this process has heard of, of the account or of one endpoint.
# TYPE fleetlimit_pauses_total counter
fleetlimit_pauses_total{account="acme",endpoint="all"} 1
# HELP fleetlimit_acquisitions_total Calls that asked for a permit and what they got: granted, too_long (the wait would outlast the deadline), cancelled, redis_away, redis_refused, closed, unknown_endpoint.
# TYPE fleetlimit_acquisitions_total counter
fleetlimit_acquisitions_total{account="acme",endpoint="POST /chat/{room}",outcome="granted"} 2
fleetlimit_acquisitions_total{account="acme",endpoint="POST /jobs",outcome="granted"} 2
fleetlimit_acquisitions_total{account="acme",endpoint="other",outcome="granted"} 3
fleetlimit_acquisitions_total{account="acme",endpoint="other",outcome="unknown_endpoint"} 1
`, "fleetlimit_requests_total", "fleetlimit_responses_429_total", "fleetlimit_retries_total", "fleetlimit_credits_used_total",
			"fleetlimit_leases_lost_total", "fleetlimit_pauses_total", "fleetlimit_acquisitions_total")
	})
}

func TestTheAccountIsToldAsItStands(t *testing.T) {
	inVirtualTime(t, func(r *rig) {
		r.respond = func(*http.Request) *http.Response {
			return response(200, "{}", "X-RateLimit-Limit", "50", "X-RateLimit-Remaining", "30", "X-RateLimit-Reset", "30")
		}
		r.do("GET", "/")
		permit, err := r.fleet.Acquire(context.Background(), coordinator.Request{Endpoint: "POST /chat/{room}"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() {
			r.fleet.Acquire(ctx, coordinator.Request{Endpoint: "POST /chat/{room}"})
			close(ended)
		}()
		time.Sleep(2 * time.Second)
		r.expect(`
# HELP fleetlimit_rate_limit_requests Requests per window that the API allows, as it reported last.
# TYPE fleetlimit_rate_limit_requests gauge
fleetlimit_rate_limit_requests{account="acme"} 50
# HELP fleetlimit_rate_limit_remaining_requests Requests left in the window, as the API reported last (rate_limit_remaining).
# TYPE fleetlimit_rate_limit_remaining_requests gauge
fleetlimit_rate_limit_remaining_requests{account="acme"} 30
# HELP fleetlimit_limit_requests Requests per window that the fleet keeps to: the lower of policy and report, times headroom.
# TYPE fleetlimit_limit_requests gauge
fleetlimit_limit_requests{account="acme"} 50
# HELP fleetlimit_foreign_requests Requests of strangers on the same key in the last window, as the API's headers tell.
# TYPE fleetlimit_foreign_requests gauge
fleetlimit_foreign_requests{account="acme"} 19
# HELP fleetlimit_used_requests Requests of the fleet in the last window.
# TYPE fleetlimit_used_requests gauge
fleetlimit_used_requests{account="acme"} 2
# HELP fleetlimit_slots Slots of the endpoint (its cap).
# TYPE fleetlimit_slots gauge
fleetlimit_slots{account="acme",endpoint="POST /chat/{room}"} 1
fleetlimit_slots{account="acme",endpoint="POST /jobs"} 2
# HELP fleetlimit_slots_in_use Slots of the endpoint that are taken by the fleet.
# TYPE fleetlimit_slots_in_use gauge
fleetlimit_slots_in_use{account="acme",endpoint="POST /chat/{room}"} 1
fleetlimit_slots_in_use{account="acme",endpoint="POST /jobs"} 0
# HELP fleetlimit_slots_held Slots that this process holds.
# TYPE fleetlimit_slots_held gauge
fleetlimit_slots_held{account="acme",endpoint="POST /chat/{room}"} 1
fleetlimit_slots_held{account="acme",endpoint="POST /jobs"} 0
# HELP fleetlimit_waiting_callers Callers in this process that wait for a permit, by endpoint and by the gate that keeps them back.
# TYPE fleetlimit_waiting_callers gauge
fleetlimit_waiting_callers{account="acme",endpoint="POST /chat/{room}",gate="slots"} 1
fleetlimit_waiting_callers{account="acme",endpoint="POST /jobs",gate="none"} 0
fleetlimit_waiting_callers{account="acme",endpoint="other",gate="none"} 0
# HELP fleetlimit_longest_wait_seconds How long the caller in this process that waits longest has waited.
# TYPE fleetlimit_longest_wait_seconds gauge
fleetlimit_longest_wait_seconds{account="acme",endpoint="POST /chat/{room}"} 2
fleetlimit_longest_wait_seconds{account="acme",endpoint="POST /jobs"} 0
fleetlimit_longest_wait_seconds{account="acme",endpoint="other"} 0
# HELP fleetlimit_workers Processes of the fleet that are alive.
# TYPE fleetlimit_workers gauge
fleetlimit_workers{account="acme"} 1
# HELP fleetlimit_degraded 1 while this process goes on without Redis, else 0.
# TYPE fleetlimit_degraded gauge
fleetlimit_degraded{account="acme"} 0
# HELP fleetlimit_state_up 1 if the account's state could be read from Redis, else 0.
# TYPE fleetlimit_state_up gauge
fleetlimit_state_up{account="acme"} 1
`, "fleetlimit_rate_limit_requests", "fleetlimit_rate_limit_remaining_requests", "fleetlimit_limit_requests",
			"fleetlimit_foreign_requests", "fleetlimit_used_requests", "fleetlimit_slots", "fleetlimit_slots_in_use", "fleetlimit_slots_held",
			"fleetlimit_waiting_callers", "fleetlimit_longest_wait_seconds", "fleetlimit_workers", "fleetlimit_degraded", "fleetlimit_state_up")
		cancel()
		<-ended
		permit.Report(coordinator.Feedback{Status: 429, Limit: -1, Remaining: -1, Reset: -1, RetryAfter: 20 * time.Second})
		permit.Release()
		time.Sleep(2 * time.Second)
		if left := r.value("fleetlimit_backoff_seconds", "endpoint", "all"); left < 15 || left > 21 {
			t.Errorf("a pause of 20 s shows as %v s", left)
		}
		if n := r.value("fleetlimit_backoff_strikes", "endpoint", "all"); n != 1 {
			t.Errorf("the first 429 shows as %v strikes", n)
		}
		time.Sleep(2 * time.Minute)
		if n, err := testutil.GatherAndCount(r.reg, "fleetlimit_rate_limit_remaining_requests"); n != 0 || err != nil {
			t.Errorf("a remainder of two minutes ago is still told: %d %v", n, err)
		}
	})
}

// value is that of a gauge or counter with this label.
func (r *rig) value(name, label, want string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == name && slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool { return l.GetName() == label && l.GetValue() == want }) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	r.t.Errorf("no %s with %s=%q", name, label, want)
	return 0
}

func TestWithoutRedisTheProcessSaysThatItIsDegraded(t *testing.T) {
	inVirtualTime(t, func(r *rig) {
		r.respond = func(*http.Request) *http.Response { return response(200, "{}") }
		r.do("GET", "/")
		time.Sleep(time.Second)
		r.mini.SetError("LOADING Redis is loading the dataset in memory")
		r.do("GET", "/")
		for name, want := range map[string]float64{
			"fleetlimit_degraded": 1, "fleetlimit_state_up": 0, "fleetlimit_redis_outages_total": 1, "fleetlimit_own_share_permits_total": 1,
		} {
			if got := r.value(name, "account", "acme"); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		if got := r.value("fleetlimit_redis_errors_total", "account", "acme"); got < 1 {
			t.Errorf("%v errors of Redis", got)
		}
		r.mini.SetError("")
		time.Sleep(20 * time.Second)
		if got := r.value("fleetlimit_degraded", "account", "acme"); got != 0 {
			t.Errorf("still degraded (%v)", got)
		}
		if got := r.value("fleetlimit_redis_outage_seconds_total", "account", "acme"); got < 1 {
			t.Errorf("an outage of %v s", got)
		}
	})
}

func TestNamesAndUnitsAreAsPrometheusWantsThem(t *testing.T) {
	inVirtualTime(t, func(r *rig) {
		trouble(r)
		problems, err := testutil.GatherAndLint(r.reg)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		families, err := r.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if !strings.HasPrefix(f.GetName(), "fleetlimit_") {
				t.Errorf("%s does not begin with fleetlimit_", f.GetName())
			}
			if f.GetType() != dto.MetricType_HISTOGRAM {
				continue
			}
			for _, m := range f.Metric {
				if h := m.GetHistogram(); len(h.GetBucket()) == 0 || h.GetSchema() == 0 || len(h.GetPositiveSpan()) == 0 && h.GetZeroCount() == 0 {
					t.Errorf("%s is not both a classic and a native histogram: %v", f.GetName(), h)
				}
			}
		}
	})
}

func TestNoLabelTellsAKeyAPathAJobOrAWorker(t *testing.T) {
	allowed := map[string][]string{
		"account":  {"acme"},
		"endpoint": {"POST /chat/{room}", "POST /jobs", "other", "all"},
		"gate":     {"none", "backoff", "pace", "window", "slots", "turn", "away", "drain"},
		"outcome": {"success", "rejected", "rate_limited", "server_error", "no_response",
			"granted", "too_long", "cancelled", "redis_away", "redis_refused", "closed", "unknown_endpoint"},
	}
	inVirtualTime(t, func(r *rig) {
		trouble(r)
		families, err := r.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, f := range families {
			for _, m := range f.Metric {
				for _, l := range m.Label {
					seen++
					if !slices.Contains(allowed[l.GetName()], l.GetValue()) {
						t.Errorf("%s has the label %s=%q", f.GetName(), l.GetName(), l.GetValue())
					}
				}
			}
		}
		if seen < 50 {
			t.Errorf("only %d labels were looked at", seen)
		}
	})
}

func TestNothingIsRegisteredTwiceOrGlobally(t *testing.T) {
	reg := prometheus.NewRegistry()
	if _, err := metrics.New(reg, metrics.Options{}); err != nil {
		t.Fatal(err)
	}
	var taken prometheus.AlreadyRegisteredError
	if _, err := metrics.New(reg, metrics.Options{}); !errors.As(err, &taken) {
		t.Errorf("a second one on the same registerer: %v", err)
	}
	families, err := prometheus.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "fleetlimit_") {
			t.Errorf("%s is registered globally", f.GetName())
		}
	}
	if _, err := metrics.New(nil, metrics.Options{}); err == nil {
		t.Error("no registerer, and no error")
	}
}

func TestTheCallersOwnListenersHearAsWell(t *testing.T) {
	m, err := metrics.New(prometheus.NewRegistry(), metrics.Options{})
	if err != nil {
		t.Fatal(err)
	}
	heard := 0
	events := m.Listen(coordinator.Events{Granted: func(coordinator.Grant) { heard++ }, ForeignUse: func(coordinator.Foreign) { heard++ }})
	events.Granted(coordinator.Grant{Account: "acme"})
	events.ForeignUse(coordinator.Foreign{Account: "acme"})
	opts := m.Client(client.Options{OnAttempt: func(client.Attempt) { heard++ }, OnAnswer: func(client.Answer) { heard++ }})
	opts.OnAttempt(client.Attempt{Account: "acme"})
	opts.OnAnswer(client.Answer{Account: "acme"})
	if heard != 4 {
		t.Errorf("%d of 4 were heard", heard)
	}
}
