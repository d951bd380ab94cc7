package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// A Source is an account that can be watched. *[coordinator.Coordinator] is one.
type Source interface {
	Account() string
	Load() coordinator.Load
	State(context.Context) (*coordinator.State, error)
}

// watched are the accounts whose gauges are told at each scrape, by name.
type watched struct {
	mu      sync.Mutex
	sources map[string]*source
}

type source struct {
	Source
	mu    sync.Mutex
	state *coordinator.State // nil: it could not be read
	read  time.Time
}

// Watch has what a coordinator has under way, and its account's state in Redis, told
// at each scrape, until the function that it returns is called. Of several with the
// same account, the last counts.
func (m *Metrics) Watch(s Source) (stop func()) {
	name := s.Account()
	m.counters.start(name, s.Load().Lanes)
	entry := &source{Source: s}
	m.watched.mu.Lock()
	defer m.watched.mu.Unlock()
	if m.watched.sources == nil {
		m.watched.sources = make(map[string]*source)
	}
	m.watched.sources[name] = entry
	return func() {
		m.watched.mu.Lock()
		defer m.watched.mu.Unlock()
		if m.watched.sources[name] == entry {
			delete(m.watched.sources, name)
		}
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("fleetlimit_"+name, help, append([]string{account}, labels...), nil)
}

// Of this process.
var (
	degraded    = desc("degraded", "1 while this process goes on without Redis, else 0.")
	callers     = desc("waiting_callers", "Callers in this process that wait for a permit, by endpoint and by the gate that keeps them back.", endpoint, gate)
	longestWait = desc("longest_wait_seconds", "How long the caller in this process that waits longest has waited.", endpoint)
	slotsHeld   = desc("slots_held", "Slots that this process holds.", endpoint)
)

// Of the account, from Redis.
var (
	stateUp      = desc("state_up", "1 if the account's state could be read from Redis, else 0.")
	limit        = desc("limit_requests", "Requests per window that the fleet keeps to: the lower of policy and report, times headroom.")
	used         = desc("used_requests", "Requests of the fleet in the last window.")
	room         = desc("room_requests", "Requests that the window still has room for.")
	foreign      = desc("foreign_requests", "Requests of strangers on the same key in the last window, as the API's headers tell.")
	workersAlive = desc("workers", "Processes of the fleet that are alive.")
	policies     = desc("policies", "Different policies of live workers; above 1 the strictest counts for all.")
	queued       = desc("queue_places", "Processes that wait for a slot of the endpoint; other: for budget.", endpoint)
	slots        = desc("slots", "Slots of the endpoint (its cap).", endpoint)
	slotsInUse   = desc("slots_in_use", "Slots of the endpoint that are taken by the fleet.", endpoint)
	backoffLeft  = desc("backoff_seconds", "How long the pause that the API asked for still lasts; 0: none. Endpoint all: the whole account.", endpoint)
	strikes      = desc("backoff_strikes", "Pushbacks in a row behind the pause that is in force.", endpoint)
	holdLeft     = desc("hold_seconds", "How long the pause that an operator asked for still lasts; 0: none.")
)

// collector tells of the watched accounts.
type collector struct{ m *Metrics }

// Describe implements [prometheus.Collector].
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		degraded, callers, longestWait, slotsHeld,
		stateUp, limit, used, room, foreign, workersAlive, policies, queued, slots, slotsInUse, backoffLeft, strikes, holdLeft,
	} {
		ch <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.m.watched.mu.Lock()
	sources := make([]*source, 0, len(c.m.watched.sources))
	for _, s := range c.m.watched.sources {
		sources = append(sources, s)
	}
	c.m.watched.mu.Unlock()

	var all sync.WaitGroup
	for _, s := range sources {
		all.Go(func() {
			collectLoad(s.Account(), s.Load(), ch)
			if !c.m.opts.NoState {
				collectState(s.Account(), s.fresh(c.m.opts), ch)
			}
		})
	}
	all.Wait()
}

// fresh reads the state if what is known of it is too old; nil: it cannot be read.
func (s *source) fresh(opts Options) *coordinator.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.read.IsZero() && time.Since(s.read) < opts.StateAge {
		return s.state
	}
	ctx, cancel := context.WithTimeout(context.Background(), opts.StateTimeout)
	defer cancel()
	state, err := s.State(ctx)
	if err != nil {
		state = nil
	}
	s.state, s.read = state, time.Now()
	return state
}

func collectLoad(name string, l coordinator.Load, ch chan<- prometheus.Metric) {
	ch <- gauge(degraded, truth(l.Away != nil), name)
	for _, lane := range l.Lanes {
		e := endpointLabel(lane.Endpoint)
		ch <- gauge(callers, float64(lane.Waiting), name, e, gateLabel(lane.Gate))
		ch <- gauge(longestWait, lane.Longest.Seconds(), name, e)
		if lane.Endpoint != "" {
			ch <- gauge(slotsHeld, float64(lane.Held), name, e)
		}
	}
}

func collectState(name string, s *coordinator.State, ch chan<- prometheus.Metric) {
	ch <- gauge(stateUp, truth(s != nil), name)
	if s == nil {
		return
	}
	ch <- gauge(limit, float64(s.Limit), name)
	ch <- gauge(used, float64(s.Used), name)
	ch <- gauge(room, float64(s.Remaining), name)
	ch <- gauge(foreign, float64(s.Foreign), name)
	ch <- gauge(workersAlive, float64(s.Alive), name)
	ch <- gauge(policies, float64(len(s.Policies)), name)
	ch <- gauge(queued, float64(s.Queued), name, other)
	collectBackoff(name, "all", s.Backoff, ch)
	left := time.Duration(0)
	if s.Hold != nil {
		left = s.Hold.Left
	}
	ch <- gauge(holdLeft, left.Seconds(), name)
	for _, e := range s.Endpoints {
		pattern := endpointLabel(e.Pattern)
		ch <- gauge(slots, float64(e.Slots), name, pattern)
		ch <- gauge(slotsInUse, float64(e.InUse), name, pattern)
		ch <- gauge(queued, float64(e.Waiting), name, pattern)
		collectBackoff(name, pattern, e.Backoff, ch)
	}
}

func collectBackoff(name, endpoint string, b *coordinator.Backoff, ch chan<- prometheus.Metric) {
	if b == nil {
		b = &coordinator.Backoff{}
	}
	ch <- gauge(backoffLeft, b.Left.Seconds(), name, endpoint)
	ch <- gauge(strikes, float64(b.Strikes), name, endpoint)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
