package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// reports is what the API said last to this process, of each account. The
// remainder is told only while it can still be true, since a process that sends
// nothing hears nothing new.
type reports struct {
	mu   sync.Mutex
	last map[string]*report
}

type report struct {
	limit     int // 0: never told
	remaining int // -1: never told
	heard     time.Time
	reset     time.Time // zero: never told
}

// reportLife is how long a remainder counts that came without a reset.
const reportLife = time.Minute

var (
	rateLimit = prometheus.NewDesc("fleetlimit_rate_limit_requests",
		"Requests per window that the API allows, as it reported last.", []string{account}, nil)
	rateLimitRemaining = prometheus.NewDesc("fleetlimit_rate_limit_remaining_requests",
		"Requests left in the window, as the API reported last (rate_limit_remaining).", []string{account}, nil)
	rateLimitReset = prometheus.NewDesc("fleetlimit_rate_limit_reset_timestamp_seconds",
		"Unix time at which the window resets, as the API reported last (rate_limit_reset).", []string{account}, nil)
)

func (r *reports) hear(e coordinator.Report) {
	f := e.Feedback
	if f.Limit <= 0 && f.Remaining < 0 && f.Reset < 0 {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.last[e.Account]
	if p == nil {
		p = &report{remaining: -1}
		if r.last == nil {
			r.last = make(map[string]*report)
		}
		r.last[e.Account] = p
	}
	if f.Limit > 0 {
		p.limit = f.Limit
	}
	if f.Reset >= 0 {
		p.reset = now.Add(f.Reset)
	}
	if f.Remaining >= 0 {
		p.remaining, p.heard = f.Remaining, now
	}
}

// current says whether the remainder can still be true.
func (p *report) current(now time.Time) bool {
	return p.remaining >= 0 && now.Before(p.heard.Add(max(reportLife, p.reset.Sub(p.heard))))
}

// Describe implements [prometheus.Collector].
func (r *reports) Describe(ch chan<- *prometheus.Desc) {
	ch <- rateLimit
	ch <- rateLimitRemaining
	ch <- rateLimitReset
}

// Collect implements [prometheus.Collector].
func (r *reports) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, p := range r.last {
		if p.limit > 0 {
			ch <- gauge(rateLimit, float64(p.limit), name)
		}
		if p.current(now) {
			ch <- gauge(rateLimitRemaining, float64(p.remaining), name)
		}
		if !p.reset.IsZero() {
			ch <- gauge(rateLimitReset, float64(p.reset.UnixMilli())/1000, name)
		}
	}
}

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}
