// Package fleetsim runs whole fleets in virtual time: the real client, the real
// coordinator and the real scripts, on an in-memory Redis, against the strict API
// of package mockapi. Ten minutes of a busy fleet take seconds.
//
// A [Scenario] says what the API is like, who calls it, and what happens when. A
// [Strategy] says how the processes of the fleet hold back. [Run] plays one with
// the other and returns what the API and the callers saw. It must run in a bubble
// of testing/synctest.
//
// Everything random in a scenario follows from its seed. What the Go scheduler
// decides, which of two goroutines that wake at the same instant goes first, does
// not, so two runs of a seed agree in every figure but not in every byte.
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

// DefaultTravel is the longest time that a request is under way.
const DefaultTravel = 60 * time.Millisecond

// API is the upstream.
type API struct {
	Limit  int           // requests per Window; default 600
	Window time.Duration // default one minute
	Mode   mockapi.Mode  // default sliding
	Phase  time.Duration // first reset of a fixed window

	// Latency by endpoint. Default: 400 ms ± 50 % for POST /responses, and the
	// mock's own for the others.
	Latency map[string]mockapi.Latency
	// Slots by endpoint, if they are not Mavera's.
	Slots map[string]int
	// JobDuration is how long a video analysis lasts. Default: 2 to 10 minutes.
	JobDuration mockapi.Range
	// Travel is the longest time for which a request is under way before it
	// arrives, evenly distributed from 0. Negative: none. Default: 60 ms.
	Travel time.Duration
	// Rounding is how X-RateLimit-Reset becomes whole seconds. Default: up.
	Rounding mockapi.Rounding
	// ClockOffset is how far the API's clock is ahead.
	ClockOffset time.Duration
	// Config has the last word on anything else of the API.
	Config func(*mockapi.Config)
}

// Fleet is who calls.
type Fleet struct {
	Processes int // default 8
	// Loads are what each process does. Default: one, its zero value.
	Loads []Load
	// Skew is how wrong the clocks of the hosts are: evenly spread over the
	// processes, from -Skew to +Skew.
	Skew time.Duration

	// Jitter is the coordinator's Policy.Jitter. Default: its own default.
	Jitter time.Duration
	// PolicyLimit is the limit in the policy, if it is not the API's.
	PolicyLimit int
}

// Load is one kind of work of a process.
type Load struct {
	// Endpoint is the pattern of what is called. Default: POST /responses.
	// POST /video-analyses stands for the whole job: the call that starts it,
	// and a poll every Poll until it is done.
	Endpoint string
	Callers  int     // default 4
	Arrival  Arrival // when they call; default Saturated
	// Poll is the time between two polls of a job. Default: ten seconds.
	Poll time.Duration
}

func (s Scenario) withDefaults() Scenario {
	setDefault(&s.Seed, 1)
	setDefault(&s.Length, 10*time.Minute)
	setDefault(&s.API.Limit, 600)
	setDefault(&s.API.Window, time.Minute)
	setDefault(&s.API.Mode, mockapi.Sliding)
	setDefault(&s.API.Travel, DefaultTravel)
	latency := map[string]mockapi.Latency{mockapi.PostResponses: {Mean: 400 * time.Millisecond, Jitter: 0.5}}
	for pattern, l := range s.API.Latency {
		latency[pattern] = l
	}
	s.API.Latency = latency
	setDefault(&s.Fleet.Processes, 8)
	setDefault(&s.Fleet.PolicyLimit, s.API.Limit)
	if len(s.Fleet.Loads) == 0 {
		s.Fleet.Loads = []Load{{}}
	}
	loads := make([]Load, len(s.Fleet.Loads))
	for i, l := range s.Fleet.Loads {
		setDefault(&l.Endpoint, mockapi.PostResponses)
		setDefault(&l.Callers, 4)
		setDefault(&l.Poll, 10*time.Second)
		if l.Arrival == nil {
			l.Arrival = Saturated{}
		}
		loads[i] = l
	}
	s.Fleet.Loads = loads
	return s
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (s Scenario) config() mockapi.Config {
	cfg := mockapi.Config{
		Limit: s.API.Limit, Window: s.API.Window, Mode: s.API.Mode, Phase: s.API.Phase, Seed: s.Seed,
		Latency: s.API.Latency, Slots: s.API.Slots, JobDuration: s.API.JobDuration,
		HeaderRounding: s.API.Rounding, ClockOffset: s.API.ClockOffset,
	}
	if s.API.Config != nil {
		s.API.Config(&cfg)
	}
	return cfg
}

// capacity is the number of slots of the scenario's first load; 0: its calls take
// budget alone.
func (s Scenario) capacity() int {
	pattern := s.Fleet.Loads[0].Endpoint
	if n, ok := s.API.Slots[pattern]; ok {
		return n
	}
	return map[string]int{
		mockapi.PostMaveChat: 10, mockapi.PostFocusGroups: 5, mockapi.PostVideoAnalyses: 3,
	}[pattern]
}
