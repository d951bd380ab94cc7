package mockapi

// Stats are the judge's counts since New. Those of the fleet are of requests
// that came by HTTP, under whatever key; the stranger is counted apart.
//
// Every 429 to the fleet is in exactly one of LimitViolations, SlotViolations,
// Unavoidable429 and Surprise429; Responses429 is their sum.
type Stats struct {
	// Requests counts all that arrived, Accepted those that took budget.
	Requests     int64 `json:"requests"`
	Accepted     int64 `json:"accepted"`
	Unauthorized int64 `json:"unauthorized"`
	NotFound     int64 `json:"not_found"`
	Responses429 int64 `json:"responses_429"`
	// LimitViolations counts requests rejected for budget when the fleet's own
	// requests in the window had used the limit up, strangers apart. The
	// limit is the one the fleet could know: a lower tier counts from the
	// first answer that showed it (plus Config.Grace).
	LimitViolations int64 `json:"limit_violations"`
	// SlotViolations counts requests rejected because the fleet's own calls
	// filled the endpoint's slots.
	SlotViolations           int64            `json:"slot_violations"`
	SlotViolationsByEndpoint map[string]int64 `json:"slot_violations_by_endpoint"`
	// Unavoidable429 counts 429s due to a stranger, or to a tier lowered
	// without notice.
	Unavoidable429 int64 `json:"unavoidable_429"`
	Surprise429    int64 `json:"surprise_429"`
	// PauseViolations counts requests that arrived later than Config.Grace
	// after a 429 and before its Retry-After had passed. A 429 with Remaining
	// > 0 on an endpoint with slots pauses that endpoint, every other the key.
	PauseViolations int64 `json:"pause_violations"`
	// Unheeded503 counts the same for a 503 with Retry-After, which pauses its
	// endpoint; kept apart, since the documentation asks no pause for it.
	Unheeded503 int64 `json:"unheeded_503"`
	// ErrorsInjected counts all faults that struck, Surprise429 included.
	ErrorsInjected int64 `json:"errors_injected"`
	// Canceled counts calls whose client went away before the answer.
	Canceled    int64 `json:"canceled"`
	CreditsUsed int64 `json:"credits_used"`

	// RequestsByEndpoint, InFlight and MaxInFlight have every pattern as key.
	// In flight is what was accepted and has not ended: of POST
	// /video-analyses, the jobs. MaxInFlight is the most of one key.
	RequestsByEndpoint map[string]int64 `json:"requests_by_endpoint"`
	InFlight           map[string]int   `json:"in_flight"`
	MaxInFlight        map[string]int   `json:"max_in_flight"`
	// MaxInWindow is the most fleet requests of one key accepted in any
	// sliding window, whatever the mode.
	MaxInWindow int `json:"max_in_window"`

	StrangerAccepted int64 `json:"stranger_accepted"`
	StrangerRejected int64 `json:"stranger_rejected"`

	// Keys is the number of API keys in use. Limit, Remaining and InWindow
	// (fleet requests in the last sliding window) are those of the key that
	// has the least remaining.
	Keys      int  `json:"keys"`
	Mode      Mode `json:"mode"`
	Limit     int  `json:"limit"`
	Remaining int  `json:"remaining"`
	InWindow  int  `json:"in_window"`
	// Offsets from New in seconds; -1 before the first request.
	WindowSeconds       float64 `json:"window_seconds"`
	FirstRequestSeconds float64 `json:"first_request_seconds"`
	LastRequestSeconds  float64 `json:"last_request_seconds"`
	NowSeconds          float64 `json:"now_seconds"`
}

// counters are what Stats tells of the whole API. API.mu guards them.
type counters struct {
	requests, accepted, unauthorized, notFound   int64
	responses429, limitViolations                int64
	unavoidable429, surprise429                  int64
	pauseViolations, unheeded503, errorsInjected int64
	canceled, credits                            int64
	strangerAccepted, strangerRejected           int64
	byEndpoint, slotViolations                   [endpoints]int64
	first, last                                  instant
}

// arrived counts a request. a.mu is held.
func (a *API) arrived(e endpoint, now instant) {
	c := &a.count
	if c.requests == 0 {
		c.first = now
	}
	c.requests++
	c.byEndpoint[e]++
	c.last = now
	if e == other {
		c.notFound++
	}
}

// Stats returns a snapshot; GET /_stats serves it as JSON.
func (a *API) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	now, c := a.Since(), &a.count
	s := Stats{
		Requests:         c.requests,
		Accepted:         c.accepted,
		Unauthorized:     c.unauthorized,
		NotFound:         c.notFound,
		Responses429:     c.responses429,
		LimitViolations:  c.limitViolations,
		Unavoidable429:   c.unavoidable429,
		Surprise429:      c.surprise429,
		PauseViolations:  c.pauseViolations,
		Unheeded503:      c.unheeded503,
		ErrorsInjected:   c.errorsInjected,
		Canceled:         c.canceled,
		CreditsUsed:      c.credits,
		StrangerAccepted: c.strangerAccepted,
		StrangerRejected: c.strangerRejected,

		SlotViolationsByEndpoint: make(map[string]int64, endpoints),
		RequestsByEndpoint:       make(map[string]int64, endpoints),
		InFlight:                 make(map[string]int, endpoints),
		MaxInFlight:              make(map[string]int, endpoints),

		Keys:                len(a.accounts),
		Mode:                a.cfg.Mode,
		Limit:               a.limit,
		Remaining:           a.limit,
		WindowSeconds:       a.cfg.Window.Seconds(),
		FirstRequestSeconds: -1,
		LastRequestSeconds:  -1,
		NowSeconds:          now.Seconds(),
	}
	if c.requests > 0 {
		s.FirstRequestSeconds, s.LastRequestSeconds = c.first.Seconds(), c.last.Seconds()
	}
	most := a.gone
	a.eachAccount(now, func(acct *account) {
		most.add(acct)
		if left := max(0, a.limit-acct.window.used()); acct == a.primary || left < s.Remaining {
			s.Remaining, s.InWindow = left, acct.window.inLog[fleet]
		}
		for e := range endpoints {
			s.InFlight[e.String()] += acct.slots[e].ofFleet()
		}
	})
	s.MaxInWindow = most.inWindow
	for e := range endpoints {
		s.SlotViolations += c.slotViolations[e]
		s.SlotViolationsByEndpoint[e.String()] = c.slotViolations[e]
		s.RequestsByEndpoint[e.String()] = c.byEndpoint[e]
		s.MaxInFlight[e.String()] = most.inFlight[e]
	}
	return s
}
