package coordinator

import (
	"fmt"
	"time"
)

// Defaults of a [Policy] and its [Endpoint]s.
const (
	DefaultWindow   = time.Minute
	DefaultHeadroom = 0.9
	DefaultJitter   = 250 * time.Millisecond
	DefaultLeaseTTL = 30 * time.Second
	DefaultJobTTL   = 15 * time.Minute
)

// Policy is what one account may do: the budget of its API key and the
// endpoints that allow only so many calls at once. It is plain data; the zero
// value of every field but Limit means its default.
type Policy struct {
	// Limit is the number of requests that the API allows in one Window. It
	// must be positive. A lower limit reported by the API takes precedence, a
	// higher one does not.
	Limit int

	// Window is the length of the API's rate window. Default: one minute.
	Window time.Duration

	// Headroom is the fraction of the limit to use, in (0, 1]. Default: 0.9.
	Headroom float64

	// Burst is the number of requests that an idle fleet may send at once, from
	// 1 to Limit. Default: half of Limit.
	Burst int

	// Jitter is the longest time that a request is assumed to travel between
	// its admission and its arrival at the API. Default: 250 ms.
	Jitter time.Duration

	// LeaseTTL is the life of a slot's lease without renewal: a worker that
	// dies gives its slots back after this time. Leases are renewed at a third
	// of it. At least one second. Default: 30 s.
	LeaseTTL time.Duration

	// Endpoints lists the endpoints that need a slot. Requests to any other
	// endpoint take budget alone.
	Endpoints []Endpoint
}

// Endpoint is a part of the API that allows only so many calls at once.
type Endpoint struct {
	// Pattern names the endpoint. The client matches requests with it in the
	// syntax of [net/http.ServeMux], as in "POST /video-analyses".
	Pattern string

	// Slots is the number of calls that may be under way at once. It must be
	// positive.
	Slots int

	// JobTTL marks an endpoint whose calls start a job that outlives them, and
	// is the longest time that such a job is expected to last without anybody
	// seeing it alive. Zero: the slot ends with the call.
	JobTTL time.Duration
}

// WithDefaults returns the policy with every default filled in.
func (p Policy) WithDefaults() Policy {
	if p.Window == 0 {
		p.Window = DefaultWindow
	}
	if p.Headroom == 0 {
		p.Headroom = DefaultHeadroom
	}
	if p.Burst == 0 {
		p.Burst = max(1, p.Limit/2)
	}
	if p.Jitter == 0 {
		p.Jitter = DefaultJitter
	}
	if p.LeaseTTL == 0 {
		p.LeaseTTL = DefaultLeaseTTL
	}
	return p
}

// Validate returns a [*ConfigError] for the first field that cannot be used.
func (p Policy) Validate() error {
	p = p.WithDefaults()
	bad := func(field string, value any, reason string) error {
		return &ConfigError{Field: "Policy." + field, Value: value, Reason: reason}
	}
	switch {
	case p.Limit <= 0 || p.Limit > maxLimit:
		return bad("Limit", p.Limit, fmt.Sprintf("must be between 1 and %d requests per window", maxLimit))
	case p.Window < minWindow || p.Window > maxWindow:
		return bad("Window", p.Window, fmt.Sprintf("must be between %v and %v", minWindow, maxWindow))
	case !(p.Headroom > 0 && p.Headroom <= 1):
		return bad("Headroom", p.Headroom, "must be above 0 and at most 1")
	case float64(p.Limit)*p.Headroom < 1:
		return bad("Headroom", p.Headroom, fmt.Sprintf("leaves less than one request of the limit %d", p.Limit))
	case p.Burst < 1 || p.Burst > p.Limit:
		return bad("Burst", p.Burst, fmt.Sprintf("must be between 1 and the limit %d", p.Limit))
	case p.Jitter < 0 || p.Jitter > p.Window/2:
		return bad("Jitter", p.Jitter, fmt.Sprintf("must be between 0 and half the window %v", p.Window))
	case p.LeaseTTL < minLeaseTTL || p.LeaseTTL > maxLeaseTTL:
		return bad("LeaseTTL", p.LeaseTTL, fmt.Sprintf("must be between %v, the shortest that a heartbeat can hold, and %v", minLeaseTTL, maxLeaseTTL))
	}
	seen := make(map[string]int, len(p.Endpoints))
	for i, e := range p.Endpoints {
		field := fmt.Sprintf("Endpoints[%d].", i)
		switch {
		case !validPattern(e.Pattern):
			return bad(field+"Pattern", fmt.Sprintf("%q", e.Pattern), "must be 1 to 256 printable characters, and not \"*\"")
		case e.Slots < 1 || e.Slots > maxSlots:
			return bad(field+"Slots", e.Slots, fmt.Sprintf("must be between 1 and %d", maxSlots))
		case e.JobTTL != 0 && (e.JobTTL < minLeaseTTL || e.JobTTL > maxLeaseTTL):
			return bad(field+"JobTTL", e.JobTTL, fmt.Sprintf("must be 0 or between %v and %v", minLeaseTTL, maxLeaseTTL))
		}
		if j, ok := seen[e.Pattern]; ok {
			return bad(field+"Pattern", fmt.Sprintf("%q", e.Pattern), fmt.Sprintf("is already Endpoints[%d]", j))
		}
		seen[e.Pattern] = i
	}
	return nil
}

// Bounds of what a policy can say. The longest lease and the longest wait fit
// the time after which idle keys disappear from Redis.
const (
	maxLimit    = 1_000_000_000
	maxSlots    = 1_000_000
	minWindow   = 100 * time.Millisecond
	maxWindow   = 24 * time.Hour
	minLeaseTTL = time.Second
	maxLeaseTTL = 24 * time.Hour
)

func validPattern(s string) bool {
	if s == "" || len(s) > 256 || s == anyEndpoint {
		return false
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return false
		}
	}
	return true
}

// leaseTTL is the life of a new lease. Where a job may have been started before
// anybody could write down its id, the lease lives as long as the job could.
func (p Policy) leaseTTL(e Endpoint) time.Duration {
	return max(p.LeaseTTL, e.JobTTL)
}
