package mockapi

import "time"

// Room is what a key has left at an endpoint, as only the API itself can know.
type Room struct {
	// Budget is how many requests would be accepted now, and Slots how many
	// calls may begin (very many where there is no cap). Both are 0 in a pause
	// that is enforced.
	Budget, Slots int
	// Next is the time until either may grow, if nothing unforeseen happens;
	// 0: nothing that is known will let it grow.
	Next time.Duration
	// Arrived is how many requests have arrived at the endpoint so far, from
	// whoever.
	Arrived int64
}

// Room looks at a key's state, for a client that is to know all ("": the first key
// that the API sees). It panics if there is no such endpoint.
func (a *API) Room(key, pattern string) Room {
	e, ok := endpointOf(pattern)
	if !ok {
		panic("mockapi: no endpoint " + pattern)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.Since()
	acct := a.accountOf(key, now)
	slots := &acct.slots[e]
	slots.expire(now)
	r := Room{Budget: max(0, a.limit-acct.window.used()), Slots: 1 << 30, Arrived: a.count.byEndpoint[e]}
	next := never
	if r.Budget == 0 {
		next = acct.window.resetAt(now, a.limit)
	}
	if slots.size > 0 {
		r.Slots = slots.size - len(slots.holds)
		if r.Slots == 0 {
			next = min(next, slots.freeAt())
		}
	}
	for _, p := range []*pause{&acct.pause, &acct.endpointPauses[e]} {
		if p.holds(now) {
			r.Budget, r.Slots, next = 0, 0, p.until
		}
	}
	if next != never {
		r.Next = max(next-now, 1)
	}
	return r
}
