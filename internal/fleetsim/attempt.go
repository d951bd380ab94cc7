package fleetsim

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// An Attempt is one request that left a process. Its instants are offsets from the
// start of the scenario; negative: not yet, or never.
type Attempt struct {
	Process  int
	Endpoint string
	Left     time.Duration
	Arrived  time.Duration
	Answered time.Duration
	Status   int // 0: no answer
}

// attempts is a log of all requests that left.
type attempts struct {
	mu  sync.Mutex
	all []Attempt
}

func (a *attempts) add(x Attempt) (number int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, x)
	return len(a.all) - 1
}

func (a *attempts) update(number int, change func(*Attempt)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if number >= 0 && number < len(a.all) {
		change(&a.all[number])
	}
}

func (a *attempts) arrived(number int) (arrived bool) {
	a.update(number, func(x *Attempt) { arrived = x.Arrived >= 0 })
	return arrived
}

// attemptHeader numbers the requests, so that the API's side of the log finds its
// line. travelHeader tells how long a request is under way, in nanoseconds.
const (
	attemptHeader = "X-Sim-Attempt"
	travelHeader  = "X-Sim-Travel"
)

// departure is the network side of a process: here a request leaves.
type departure struct {
	world   *World
	process int
	base    http.RoundTripper

	mu  sync.Mutex
	rng *rand.Rand
}

func (d *departure) RoundTrip(r *http.Request) (*http.Response, error) {
	w := d.world
	if stopwatch, ok := r.Context().Value(stopwatchKey{}).(func()); ok {
		stopwatch()
	}
	number := w.attempts.add(Attempt{
		Process: d.process, Endpoint: patternOf(r), Left: w.now(), Arrived: -1, Answered: -1,
	})
	if told, ok := r.Context().Value(omniscientKey{}).(*int); ok {
		*told = number
	}
	r = r.Clone(r.Context())
	r.Header.Set(attemptHeader, strconv.Itoa(number))
	r.Header.Set(travelHeader, strconv.FormatInt(int64(d.travel(r)), 10))
	resp, err := d.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	w.attempts.update(number, func(a *Attempt) { a.Answered, a.Status = w.now(), resp.StatusCode })
	w.skew(d.process, resp.Header)
	return resp, nil
}

// travel draws how long a request is under way. An omniscient strategy sends its
// requests such that they arrive at once.
func (d *departure) travel(r *http.Request) time.Duration {
	longest := d.world.scenario.API.Travel
	if longest <= 0 || r.Context().Value(omniscientKey{}) != nil {
		return 0
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Duration(d.rng.Int64N(int64(longest) + 1))
}

// skew turns a response's instants into those that a host with a wrong clock
// would see: to a clock that is ahead, all others are behind. Nothing else that a
// process reads tells the time of day.
func (w *World) skew(process int, h http.Header) {
	n, most := w.scenario.Fleet.Processes, w.scenario.Fleet.Skew
	if most == 0 || n < 2 {
		return
	}
	ahead := -most + 2*most*time.Duration(process)/time.Duration(n-1)
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		h.Set("Date", date.Add(-ahead).Format(http.TimeFormat))
	}
	if reset, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64); err == nil {
		h.Set("X-RateLimit-Reset", strconv.FormatInt(reset-int64(ahead/time.Second), 10))
	}
}

// arrivals lets every request travel before it arrives, and notes when it did.
func (w *World) arrivals(api http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if d, err := strconv.ParseInt(r.Header.Get(travelHeader), 10, 64); err == nil && d > 0 {
			time.Sleep(time.Duration(d)) // what has left arrives, even if its sender is no more
		}
		if number, err := strconv.Atoi(r.Header.Get(attemptHeader)); err == nil {
			w.attempts.update(number, func(a *Attempt) { a.Arrived = w.now() })
		}
		api.ServeHTTP(rw, r)
	})
}

type (
	stopwatchKey  struct{}
	omniscientKey struct{}
)

// omniscient marks a request that arrives as soon as it leaves, and asks for its
// number.
func omniscient(ctx context.Context, number *int) context.Context {
	return context.WithValue(ctx, omniscientKey{}, number)
}

// patternOf is the endpoint of a request, as the API calls it.
func patternOf(r *http.Request) string {
	path := strings.TrimPrefix(r.URL.Path, "/api/v1")
	if strings.HasPrefix(path, "/video-analyses/") {
		return mockapi.GetVideoAnalysis
	}
	return r.Method + " " + path
}
