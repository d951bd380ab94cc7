// Package fleetsim runs whole fleets in virtual time: the real client, the real
// coordinator and the real scripts, on an in-memory Redis, against the strict API
// of package mockapi. Ten minutes of a busy fleet take seconds.
//
// A [Scenario] says what the API is like, who calls it, and what happens when. A
// [Strategy] says how the processes of the fleet hold back. [Run] plays one with
// the other and returns what the API saw. It must run in a bubble of
// testing/synctest.
package fleetsim

import (
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// Scenario is a situation. Zero fields mean: 8 processes of 4 callers that call
// POST /responses without pause for ten minutes; 400 ms latency ± 50 %; 0-60 ms
// on the way.
type Scenario struct {
	Name   string
	Seed   uint64
	Length time.Duration

	API   API
	Fleet Fleet
	// Events happen at their times, in addition to what the callers do.
	Events []Event
}

// API is the upstream.
type API struct {
	Limit   int           // requests per Window; default 600
	Window  time.Duration // default one minute
	Mode    mockapi.Mode  // default sliding
	Phase   time.Duration // first reset of a fixed window
	Latency mockapi.Latency
	// Jitter is the longest time that a request travels before it arrives,
	// evenly distributed from 0. Negative: none.
	Jitter time.Duration
	// Config has the last word on anything else of the API.
	Config func(*mockapi.Config)
}

// Fleet is who calls.
type Fleet struct {
	Processes int
	Callers   int // per process
	// Endpoint is the pattern of what they call.
	Endpoint string
	// Arrival says when they call. Default: Saturated.
	Arrival Arrival
	// Jitter is the coordinator's Policy.Jitter. Default: its own default.
	Jitter time.Duration
	// PolicyLimit is the limit in the policy, if it is not the API's.
	PolicyLimit int
}

func (s Scenario) withDefaults() Scenario {
	setDefault(&s.Seed, 1)
	setDefault(&s.Length, 10*time.Minute)
	setDefault(&s.API.Limit, 600)
	setDefault(&s.API.Window, time.Minute)
	setDefault(&s.API.Mode, mockapi.Sliding)
	setDefault(&s.API.Latency, mockapi.Latency{Mean: 400 * time.Millisecond, Jitter: 0.5})
	setDefault(&s.API.Jitter, 60*time.Millisecond)
	setDefault(&s.Fleet.Processes, 8)
	setDefault(&s.Fleet.Callers, 4)
	setDefault(&s.Fleet.Endpoint, "POST /responses")
	setDefault(&s.Fleet.PolicyLimit, s.API.Limit)
	if s.Fleet.Arrival == nil {
		s.Fleet.Arrival = Saturated{}
	}
	return s
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
