package metrics

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
)

// The labels. All their values are few.
const (
	account  = "account"
	endpoint = "endpoint" // a pattern of the policy, or "other"
	gate     = "gate"     // one of coordinator's, or "none"
	outcome  = "outcome"
)

// other is the endpoint of all requests that need no slot.
const other = "other"

// counters are what this process has done.
type counters struct {
	requests, limited, retries *prometheus.CounterVec
	wait                       *prometheus.HistogramVec
	acquisitions               *prometheus.CounterVec
	lost, pauses               *prometheus.CounterVec
	alone                      *prometheus.CounterVec
	outages, outageSeconds     *prometheus.CounterVec
	forgotten                  *prometheus.CounterVec
	roundTrip, batch           *prometheus.HistogramVec
	redisErrors                *prometheus.CounterVec
	credits                    *prometheus.CounterVec
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "fleetlimit_" + name, Help: help}, labels)
}

// histogram has classic buckets for whoever needs them and native ones, which are
// exact to a tenth, for whoever scrapes them.
func histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "fleetlimit_" + name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 160, NativeHistogramMinResetDuration: time.Hour,
	}, labels)
}

func newCounters() counters {
	return counters{
		requests: counter("requests_total",
			"Requests sent, each attempt counted (the source of requests_per_minute). Outcome: success, rejected (4xx), rate_limited (429), server_error (5xx), no_response.", account, endpoint, outcome),
		limited: counter("responses_429_total",
			"Responses with status 429 (429_count). Should stay at 0.", account, endpoint),
		retries: counter("retries_total",
			"Attempts that were followed by another (retry_count).", account, endpoint),
		wait: histogram("admission_wait_seconds",
			"Time from asking for a permit to getting it, by the gate that kept it back last; none: nothing did.",
			[]float64{.001, .005, .025, .1, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600}, account, gate),
		acquisitions: counter("acquisitions_total",
			"Calls that asked for a permit and what they got: granted, too_long (the wait would outlast the deadline), cancelled, redis_away, redis_refused, closed, unknown_endpoint.", account, endpoint, outcome),
		lost: counter("leases_lost_total",
			"Slots that were lost before they were released.", account, endpoint),
		pauses: counter("pauses_total",
			"Pauses that this process has heard of, of the account or of one endpoint.", account, endpoint),
		alone: counter("own_share_permits_total",
			"Permits that were taken from this process's own share while Redis was away.", account),
		outages: counter("redis_outages_total",
			"Times at which Redis ceased to answer this process.", account),
		outageSeconds: counter("redis_outage_seconds_total",
			"Time without Redis, counted when it is over.", account),
		forgotten: counter("redis_memory_losses_total",
			"Times at which Redis had forgotten the account.", account),
		roundTrip: histogram("redis_round_trip_seconds",
			"Time that one exchange with Redis took, one that was given up included.",
			[]float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}, account),
		batch: histogram("batch_size_permits",
			"Permits that one exchange with Redis asked for.",
			[]float64{1, 2, 4, 8, 16, 32, 64, 128, 256}, account),
		redisErrors: counter("redis_errors_total",
			"Exchanges with Redis that failed.", account),
		credits: counter("credits_used_total",
			"Credits that responses told in usage.credits_used.", account, endpoint),
	}
}

func (c *counters) all() []prometheus.Collector {
	return []prometheus.Collector{
		c.requests, c.limited, c.retries, c.wait, c.acquisitions, c.lost, c.pauses, c.alone, c.outages,
		c.outageSeconds, c.forgotten, c.roundTrip, c.batch, c.redisErrors, c.credits,
	}
}

// start has the counters that alerts go by begin at 0: the first event would not be
// seen as a rise of a counter that was not there before.
func (c *counters) start(name string, lanes []coordinator.LaneLoad) {
	for _, l := range lanes {
		e := endpointLabel(l.Endpoint)
		c.limited.WithLabelValues(name, e)
		c.retries.WithLabelValues(name, e)
		c.requests.WithLabelValues(name, e, "success")
		c.acquisitions.WithLabelValues(name, e, "granted")
		if l.Endpoint != "" {
			c.lost.WithLabelValues(name, e)
		}
	}
	for _, v := range []*prometheus.CounterVec{c.alone, c.outages, c.outageSeconds, c.forgotten, c.redisErrors} {
		v.WithLabelValues(name)
	}
	c.pauses.WithLabelValues(name, "all")
}

func (c *counters) attempt(a client.Attempt) {
	e := endpointLabel(a.Endpoint)
	c.requests.WithLabelValues(a.Account, e, outcomeOf(a.Status)).Inc()
	if a.Status == 429 {
		c.limited.WithLabelValues(a.Account, e).Inc()
	}
	if a.Retried {
		c.retries.WithLabelValues(a.Account, e).Inc()
	}
}

func outcomeOf(status int) string {
	switch {
	case status == 429:
		return "rate_limited"
	case status >= 500:
		return "server_error"
	case status >= 400:
		return "rejected"
	case status == 0:
		return "no_response"
	}
	return "success"
}

func (c *counters) answer(a client.Answer) {
	if a.CreditsUsed > 0 {
		c.credits.WithLabelValues(a.Account, endpointLabel(a.Endpoint)).Add(a.CreditsUsed)
	}
}

func (c *counters) granted(g coordinator.Grant) {
	c.wait.WithLabelValues(g.Account, gateLabel(g.Gate)).Observe(g.Waited.Seconds())
	c.acquisitions.WithLabelValues(g.Account, endpointLabel(g.Endpoint), "granted").Inc()
	if g.Alone {
		c.alone.WithLabelValues(g.Account).Inc()
	}
}

func (c *counters) refused(r coordinator.Refusal) {
	var wait *coordinator.WaitError
	e, why := endpointLabel(r.Endpoint), "redis_refused"
	switch {
	case errors.Is(r.Err, coordinator.ErrUnknownEndpoint):
		e, why = other, "unknown_endpoint"
	case errors.Is(r.Err, coordinator.ErrClosed):
		e, why = other, "closed"
	case errors.As(r.Err, &wait):
		why = "too_long"
	case errors.Is(r.Err, context.Canceled), errors.Is(r.Err, context.DeadlineExceeded):
		why = "cancelled"
	case errors.Is(r.Err, coordinator.ErrRedisAway):
		why = "redis_away"
	}
	c.acquisitions.WithLabelValues(r.Account, e, why).Inc()
}

func (c *counters) exchanged(e coordinator.Exchange) {
	c.roundTrip.WithLabelValues(e.Account).Observe(e.Took.Seconds())
	if e.Wanted > 0 {
		c.batch.WithLabelValues(e.Account).Observe(float64(e.Wanted))
	}
	if e.Err != nil {
		c.redisErrors.WithLabelValues(e.Account).Inc()
	}
}

func (c *counters) paused(p coordinator.Pause) {
	e := "all"
	if p.Endpoint != "" {
		e = p.Endpoint
	}
	c.pauses.WithLabelValues(p.Account, e).Inc()
}

func (c *counters) leaseLost(l coordinator.LostLease) {
	c.lost.WithLabelValues(l.Account, endpointLabel(l.Endpoint)).Inc()
}

func (c *counters) degraded(d coordinator.Degradation) { c.outages.WithLabelValues(d.Account).Inc() }

func (c *counters) recovered(r coordinator.Recovery) {
	c.outageSeconds.WithLabelValues(r.Account).Add(r.Away.Seconds())
}

func (c *counters) memoryLost(l coordinator.MemoryLoss) {
	c.forgotten.WithLabelValues(l.Account).Inc()
}

// endpointLabel is an endpoint of a policy: the coordinator lets no other through.
func endpointLabel(e string) string {
	if e == "" {
		return other
	}
	return strings.ToValidUTF8(e, "?")
}

func gateLabel(g coordinator.Gate) string {
	if g == "" {
		return "none"
	}
	return string(g)
}
