// Package mockapi is a strict mock of the Mavera API and the judge in
// Fleetlimit's tests: it serves what the API documents, rejects what the API
// would reject, and counts every violation.
//
// Where the documentation leaves it open, the mock decides so:
//   - A request counts at its arrival, whatever becomes of it afterwards: an
//     injected 500 or a 404 takes budget. One rejected with 429 takes none
//     (see Config.CountRejected), a missing key neither.
//   - The budget is looked at before the slots.
//   - X-RateLimit-Reset is the instant at which capacity returns: the end of a
//     fixed window, in a sliding one the instant at which the oldest request
//     leaves (see Config.ResetFullWindow). It is rounded up to whole seconds
//     (see Config.HeaderRounding), as Retry-After always is, to one at least.
//   - The headers tell the state right after admission (see
//     Config.HeadersAtResponse).
//   - Retry-After of a 429 for lack of a slot tells when the first call or job
//     will end, a window at most.
//   - A slot is free just before the last byte of the answer, or exactly when
//     the job ends.
//   - A client that goes away ends its call (see Config.KeepBroken).
//
// It measures time with package time alone, all waits end with the request's
// context, and so it runs the same in real time and in a testing/synctest
// bubble. In a bubble, New must be called inside, and HTTP goes over Listen.
package mockapi

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// API is one mock API. It is an http.Handler, safe for concurrent use.
type API struct {
	cfg     Config
	start   time.Time // with a monotonic reading
	slots   [endpoints]int
	latency [endpoints]Latency
	asked   atomic.Int64 // calls of FaultFunc

	// mu guards all below, and is held for moments only.
	mu       sync.Mutex
	rng      *rand.Rand
	limit    int
	lastID   uint64
	faults   []Fault
	accounts map[keyHash]*account
	// primary is the account of the first key seen; it exists from the start.
	primary      *account
	primaryKnown bool
	gone         peaks // of accounts that were forgotten
	count        counters
	timeline     timeline
	jobs         jobs

	closing   chan struct{} // closed by Close
	listeners []*PipeListener
	strangers sync.WaitGroup
	// controlled stops the strangers that POST /_control has started.
	controlled []func()
}

// New returns an API whose windows and offsets begin now. An error names the
// field of cfg and its value. Close ends what was started.
func New(cfg Config) (*API, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &API{
		cfg:      cfg,
		start:    time.Now(),
		rng:      rand.New(rand.NewPCG(cfg.Seed, 0x6d6176657261)),
		limit:    cfg.Limit,
		accounts: make(map[keyHash]*account),
		timeline: timeline{bucket: max(1, cfg.Window/bucketsPerWindow)},
		jobs:     jobs{keep: cfg.JobsKept, byID: make(map[string]*job)},
		closing:  make(chan struct{}),
	}
	for e := range endpoints {
		a.slots[e], a.latency[e] = mavera[e].slots, mavera[e].latency
		if cfg.NoLatency {
			a.latency[e] = Latency{}
		}
	}
	for pattern, n := range cfg.Slots {
		a.slots[byPattern[pattern]] = n
	}
	for pattern, l := range cfg.Latency {
		a.latency[byPattern[pattern]] = l
	}
	for _, f := range cfg.Faults {
		if err := a.Inject(f); err != nil {
			return nil, err
		}
	}
	a.primary = a.newAccount()
	a.primary.window.advance(0)
	return a, nil
}

// ServeHTTP serves the API at / and below /api/v1, and, without a key and at no
// cost, GET /_stats and (from loopback only) POST /_control. A broken
// connection is a panic with http.ErrAbortHandler, which http.Server expects.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; path {
	case "/_stats", "/api/v1/_stats":
		a.serveStats(w, r)
	case "/_control", "/api/v1/_control":
		a.serveControl(w, r)
	default:
		e, id := route(r.Method, strings.TrimPrefix(path, "/api/v1"))
		c := &call{api: a, w: w, r: r, endpoint: e, jobID: id}
		c.serve()
	}
}

// Close ends strangers and the servers of Listen and waits for them. Calls in
// flight are broken off, later ones answered 503. Close is idempotent; it must
// not be called by a handler.
func (a *API) Close() error {
	a.mu.Lock()
	if !a.closed() {
		close(a.closing)
	}
	listeners := a.listeners
	a.listeners = nil
	a.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}
	a.strangers.Wait()
	return nil
}

func (a *API) closed() bool {
	select {
	case <-a.closing:
		return true
	default:
		return false
	}
}

// SetLimit changes the limit of every key at once, to n requests per window.
func (a *API) SetLimit(n int) error {
	if n <= 0 {
		return fmt.Errorf("mockapi: limit %d is not positive", n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.capacity()
	a.limit = n
	a.timeline.change(a.Since(), before, a.capacity())
	return nil
}

// SetTier changes the limit of every key at once to that of a tier.
func (a *API) SetTier(tier string) error {
	n, ok := TierLimit(tier)
	if !ok {
		return fmt.Errorf("mockapi: no tier %q", tier)
	}
	return a.SetLimit(n)
}

// Since returns the offset of now from New, the unit of Stats and Utilization.
func (a *API) Since() time.Duration { return time.Since(a.start) }

// wall is the time at t by the API's own clock.
func (a *API) wall(t instant) time.Time { return a.start.Add(t + a.cfg.ClockOffset) }

// wait returns true at the instant until, false before it if ctx ends or the
// API is closed.
func (a *API) wait(ctx context.Context, until instant) bool {
	d := until - a.Since()
	if d <= 0 {
		return ctx.Err() == nil && !a.closed()
	}
	var end <-chan time.Time
	if until != never { // a timer would let a bubble's clock jump there
		timer := time.NewTimer(d)
		defer timer.Stop()
		end = timer.C
	}
	select {
	case <-end:
		return true
	case <-ctx.Done():
		return false
	case <-a.closing:
		return false
	}
}

// scaled draws a duration of mean × (1 ± jitter) × TimeScale. a.mu is held.
func (a *API) scaled(mean time.Duration, jitter float64) time.Duration {
	f := 1 + jitter*(2*a.rng.Float64()-1)
	return time.Duration(float64(mean) * f * a.cfg.TimeScale)
}

func (a *API) drawLatency(e endpoint) time.Duration {
	return a.scaled(a.latency[e].Mean, a.latency[e].Jitter)
}

func (a *API) nextID() uint64 {
	a.lastID++
	return a.lastID
}
