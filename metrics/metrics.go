// Package metrics tells Prometheus how a fleet is doing.
//
//	m, err := metrics.New(prometheus.DefaultRegisterer, metrics.Options{})
//	fleet, err := coordinator.New(rdb, policy, coordinator.Options{APIKey: key, Events: m.Events()})
//	m.Watch(fleet)
//	transport, err := client.New(fleet, profile, m.Client(client.Options{}))
//
// All names begin with fleetlimit_; docs/operations.md lists them, with the question
// that each answers. Labels are the account's name, an endpoint of the policy, a
// gate, an outcome: never a key, a path, a job or a worker.
//
// There are two kinds of metrics. What this process has done and has under way adds
// up over all processes (sum). What the fleet has in Redis is the same from every
// process that tells it (max): these are the metrics of a watched account, read
// with one script for each scrape.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Options tune a [Metrics]. The zero value works.
type Options struct {
	// StateTimeout bounds the reading of a watched account's state from Redis
	// during a scrape. Default: 2 s.
	StateTimeout time.Duration

	// StateAge is how old a state may be that is told again, so that many scrapers
	// cost Redis no more than one. Default: 1 s.
	StateAge time.Duration

	// NoState leaves the state in Redis out. In a very large fleet a few processes
	// that tell it are enough.
	NoState bool
}

// Metrics are the metrics of one process, for any number of accounts. It is safe
// for concurrent use.
type Metrics struct {
	opts Options
	counters
	reports reports
	watched watched
}

// New registers the metrics with r. The error is that of the registerer: names that
// are taken, as by a second Metrics on the same registerer.
func New(r prometheus.Registerer, opts Options) (*Metrics, error) {
	if r == nil {
		return nil, &coordinator.ConfigError{Field: "registerer", Value: nil, Reason: "must not be nil"}
	}
	if opts.StateTimeout < 0 {
		return nil, &coordinator.ConfigError{Field: "Options.StateTimeout", Value: opts.StateTimeout, Reason: "must not be negative"}
	}
	if opts.StateAge < 0 {
		return nil, &coordinator.ConfigError{Field: "Options.StateAge", Value: opts.StateAge, Reason: "must not be negative"}
	}
	if opts.StateTimeout == 0 {
		opts.StateTimeout = 2 * time.Second
	}
	if opts.StateAge == 0 {
		opts.StateAge = time.Second
	}
	m := &Metrics{opts: opts, counters: newCounters()}
	collectors := append(m.counters.all(), &m.reports)
	collectors = append(collectors, &collector{m})
	for i, c := range collectors {
		if err := r.Register(c); err != nil {
			for _, done := range collectors[:i] {
				r.Unregister(done)
			}
			return nil, err
		}
	}
	return m, nil
}

// Events are to be given to the coordinators whose doings are counted, as
// Options.Events. [Metrics.Listen] adds them to a caller's own.
func (m *Metrics) Events() coordinator.Events { return m.Listen(coordinator.Events{}) }

// Listen returns events that are counted and then passed on to those given.
func (m *Metrics) Listen(to coordinator.Events) coordinator.Events {
	to.Granted = both(m.granted, to.Granted)
	to.Refused = both(m.refused, to.Refused)
	to.Reported = both(m.reports.hear, to.Reported)
	to.Exchanged = both(m.exchanged, to.Exchanged)
	to.Paused = both(m.paused, to.Paused)
	to.LeaseLost = both(m.leaseLost, to.LeaseLost)
	to.Degraded = both(m.degraded, to.Degraded)
	to.Recovered = both(m.recovered, to.Recovered)
	to.MemoryLost = both(m.memoryLost, to.MemoryLost)
	return to
}

// Client returns the options of a client whose requests are counted and then passed
// on to the options' own functions.
func (m *Metrics) Client(to client.Options) client.Options {
	to.OnAttempt = both(m.attempt, to.OnAttempt)
	to.OnAnswer = both(m.answer, to.OnAnswer)
	return to
}

func both[T any](first, then func(T)) func(T) {
	if then == nil {
		return first
	}
	return func(x T) {
		first(x)
		then(x)
	}
}
