package mockapi

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Mode says how the API's window counts.
type Mode string

// The two readings of Mavera's documentation.
const (
	// Sliding rejects a request at time t if Limit requests were counted in
	// (t-Window, t].
	Sliding Mode = "sliding"
	// Fixed sets the count to zero at Phase + k × Window.
	Fixed Mode = "fixed"
)

// Rounding says how the instant in X-RateLimit-Reset becomes whole seconds.
type Rounding string

// The roundings. Retry-After is always rounded up.
const (
	RoundUp      Rounding = "up"
	RoundDown    Rounding = "down"
	RoundNearest Rounding = "nearest"
)

// tiers holds the requests per 60 s of each Mavera tier.
var tiers = map[string]int{
	"starter":      60,
	"basic":        120,
	"professional": 240,
	"enterprise":   600,
}

// TierLimit returns the requests per window of a Mavera tier: starter, basic,
// professional or enterprise.
func TierLimit(tier string) (limit int, ok bool) {
	limit, ok = tiers[tier]
	return limit, ok
}

// Latency is how long calls of an endpoint last: evenly distributed over
// Mean × (1 ± Jitter).
type Latency struct {
	Mean time.Duration
	// Jitter is a fraction of Mean in [0, 1].
	Jitter float64
}

// Range is an interval of durations, evenly distributed.
type Range struct{ Min, Max time.Duration }

// Config describes an API. The zero value is Mavera's enterprise tier with a
// sliding window and the documented latencies.
type Config struct {
	// Tier is a name known to TierLimit. Default "enterprise".
	Tier string
	// Limit, if set, is used instead of the tier's: requests per Window and key.
	Limit int
	// Window is the length of the budget's window. Default 60 s. It is not
	// scaled by TimeScale.
	Window time.Duration
	// Mode is Sliding (default) or Fixed.
	Mode Mode
	// Phase is the offset from New of the first reset of a Fixed window, in
	// [0, Window). Zero lets a window begin with New.
	Phase time.Duration
	// CountRejected lets requests that are rejected for budget count against
	// the window like accepted ones.
	CountRejected bool

	// Slots holds the most calls in flight per key and endpoint pattern, such
	// as "POST /mave/chat". Endpoints left out keep Mavera's caps (10 / 5 / 3);
	// 0 means no cap.
	Slots map[string]int
	// Latency holds the latency per endpoint pattern. Endpoints left out keep
	// their defaults (30-90 s for chat, 1-5 min for focus groups, seconds for
	// the rest).
	Latency map[string]Latency
	// NoLatency lets every endpoint that is not in Latency answer at once.
	NoLatency bool
	// JobDuration is how long a video analysis lasts. Default 2-10 min. A
	// range with Min equal to Max is a constant.
	JobDuration Range
	// JobFailures is the share of video analyses that end as failed, in [0, 1].
	JobFailures float64
	// JobsKept is how many video analyses are remembered for polls. Default
	// 10,000; analyses that still run are never forgotten.
	JobsKept int
	// KeepBroken lets a call whose client went away keep its slot until it
	// would have ended, as an API may that does not notice.
	KeepBroken bool
	// StreamChunks is the number of pieces in which a streamed answer comes.
	// Default 8.
	StreamChunks int
	// TimeScale multiplies latencies and job durations; 0.01 makes a 60 s chat
	// last 600 ms. Default 1.
	TimeScale float64

	// ClockOffset is added to the host's clock to give the API's own, which
	// shows in Date, X-RateLimit-Reset and the timestamps in bodies.
	ClockOffset time.Duration
	// HeaderRounding rounds X-RateLimit-Reset. Default RoundUp.
	HeaderRounding Rounding
	// ResetFullWindow makes X-RateLimit-Reset tell now + Window instead of
	// the instant at which capacity returns. Retry-After is not affected.
	ResetFullWindow bool
	// HeadersAtResponse makes the X-RateLimit headers tell the state at the
	// moment the answer begins. Default is the state right after admission,
	// as a rate limiting middleware tells it.
	HeadersAtResponse bool

	// Grace is how long news (a pause, a lower limit) may take to reach the
	// whole fleet: what arrives within it is not counted as a violation.
	Grace time.Duration
	// Seed of all randomness; equal seeds give equal draws.
	Seed uint64
	// Faults are injected from the start; see Inject.
	Faults []Fault
	// FaultFunc, if set, is asked once for every authenticated request, with
	// its endpoint's pattern and its ordinal from 1, and may return a fault.
	// Count, Probability and Endpoint of that fault are not looked at; one
	// that Inject would refuse is a panic. It is called concurrently.
	FaultFunc func(endpoint string, n int64) (Fault, bool)
}

// withDefaults returns a copy with every default filled in, or an error that
// names the field and its value.
func (c Config) withDefaults() (Config, error) {
	if c.Tier == "" {
		c.Tier = "enterprise"
	}
	limit, ok := TierLimit(c.Tier)
	if !ok {
		return c, fmt.Errorf("mockapi: Tier %q is none of %s", c.Tier,
			strings.Join(slices.Sorted(maps.Keys(tiers)), ", "))
	}
	if c.Limit == 0 {
		c.Limit = limit
	}
	setDefault(&c.Window, 60*time.Second)
	setDefault(&c.Mode, Sliding)
	setDefault(&c.JobDuration, Range{2 * time.Minute, 10 * time.Minute})
	setDefault(&c.JobsKept, 10_000)
	setDefault(&c.StreamChunks, 8)
	setDefault(&c.TimeScale, 1)
	setDefault(&c.HeaderRounding, RoundUp)
	return c, c.check()
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c *Config) check() error {
	switch {
	case c.Limit < 0:
		return fmt.Errorf("mockapi: Limit %d is negative", c.Limit)
	case c.Window < 0:
		return fmt.Errorf("mockapi: Window %v is negative", c.Window)
	case c.Mode != Sliding && c.Mode != Fixed:
		return fmt.Errorf("mockapi: Mode %q is neither %q nor %q", c.Mode, Sliding, Fixed)
	case c.Phase < 0 || c.Phase >= c.Window:
		return fmt.Errorf("mockapi: Phase %v is outside [0, %v)", c.Phase, c.Window)
	case c.JobDuration.Min < 0 || c.JobDuration.Max < c.JobDuration.Min:
		return fmt.Errorf("mockapi: JobDuration %v-%v is not a range", c.JobDuration.Min, c.JobDuration.Max)
	case !isFraction(c.JobFailures):
		return fmt.Errorf("mockapi: JobFailures %v is outside [0, 1]", c.JobFailures)
	case c.JobsKept < 0:
		return fmt.Errorf("mockapi: JobsKept %d is negative", c.JobsKept)
	case c.StreamChunks < 0:
		return fmt.Errorf("mockapi: StreamChunks %d is negative", c.StreamChunks)
	case !(c.TimeScale > 0 && c.TimeScale <= 1e6):
		return fmt.Errorf("mockapi: TimeScale %v is outside (0, 1e6]", c.TimeScale)
	case c.HeaderRounding != RoundUp && c.HeaderRounding != RoundDown && c.HeaderRounding != RoundNearest:
		return fmt.Errorf("mockapi: HeaderRounding %q is none of %q, %q, %q", c.HeaderRounding, RoundUp, RoundDown, RoundNearest)
	case c.Grace < 0:
		return fmt.Errorf("mockapi: Grace %v is negative", c.Grace)
	}
	for pattern, n := range c.Slots {
		if _, ok := endpointOf(pattern); !ok {
			return fmt.Errorf("mockapi: Slots: no endpoint %q", pattern)
		}
		if n < 0 {
			return fmt.Errorf("mockapi: Slots[%q] %d is negative", pattern, n)
		}
	}
	for pattern, l := range c.Latency {
		if _, ok := endpointOf(pattern); !ok {
			return fmt.Errorf("mockapi: Latency: no endpoint %q", pattern)
		}
		if l.Mean < 0 || !isFraction(l.Jitter) {
			return fmt.Errorf("mockapi: Latency[%q] %v ± %v is not a latency", pattern, l.Mean, l.Jitter)
		}
	}
	return nil
}

// isFraction also refuses NaN.
func isFraction(f float64) bool { return f >= 0 && f <= 1 }
