package mockapi

import "time"

// verdict is what admission decided about one request.
type verdict struct {
	arrived instant
	acct    *account
	// budget is what the X-RateLimit headers tell.
	budget budget
	// status is 0 for an admitted request, else that of the error to answer.
	status     int
	retryAfter time.Duration // 0: no header
	message    string
	fault      *Fault
	hold       uint64
	latency    time.Duration
}

// budget is the state of a key's window as the headers tell it.
type budget struct {
	limit, remaining int
	reset            instant
}

// admit judges a request in one atomic step: pauses it should have heeded,
// faults that strike ahead of the limits, the budget, the endpoint's slots,
// the other faults. A rejected request takes neither budget nor slot.
func (a *API) admit(key keyHash, e endpoint, own *Fault) verdict {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.Since()
	acct := a.account(key, now)
	slots := &acct.slots[e]
	slots.expire(now)
	v := verdict{arrived: now, acct: acct}

	a.arrived(e, now)
	if p := a.pauseOf(acct, e, now); p.holds(now) {
		a.count.surprise429++
		claimed := 0
		if p != &acct.pause {
			claimed = -1
		}
		return a.reject(v, e, p.until-now, claimed, true)
	}
	if f := a.takeFault(e, own, true); f != nil {
		a.count.errorsInjected++
		v.fault = f
		if f.Kind == FaultCut {
			return v
		}
		a.count.surprise429++
		return a.reject(v, e, f.RetryAfter, f.Remaining, f.Hold)
	}
	if acct.window.used() >= a.limit {
		return a.rejectForBudget(v, e)
	}
	if slots.full() {
		return a.rejectForSlot(v, e)
	}

	acct.window.add(now, fleet, a.limit)
	acct.maxInWindow = max(acct.maxInWindow, acct.window.inLog[fleet])
	a.timeline.advance(now, a.capacity()).fleet++
	a.count.accepted++
	v.latency = a.drawLatency(e)
	v.hold = a.nextID()
	slots.take(hold{id: v.hold, until: now + v.latency})
	v.budget = a.budgetOf(acct, now)
	if f := a.takeFault(e, own, false); f != nil {
		a.strike(&v, e, f)
	}
	return v
}

// pauseOf counts a request that ignores a pause, and returns the pause that
// concerns the request, preferably one that rejects it.
func (a *API) pauseOf(acct *account, e endpoint, now instant) *pause {
	if acct.unavailable[e].violated(now, a.cfg.Grace) {
		a.count.unheeded503++
	}
	if acct.pause.violated(now, a.cfg.Grace) || acct.endpointPauses[e].violated(now, a.cfg.Grace) {
		a.count.pauseViolations++
	}
	if acct.pause.holds(now) {
		return &acct.pause
	}
	return &acct.endpointPauses[e]
}

func (a *API) rejectForBudget(v verdict, e endpoint) verdict {
	w := &v.acct.window
	if w.ofFleet() >= max(a.limit, v.acct.known(v.arrived, a.cfg.Grace)) {
		a.count.limitViolations++
	} else {
		a.count.unavoidable429++
	}
	if a.cfg.CountRejected {
		w.add(v.arrived, fleetRejected, a.limit)
	}
	return a.reject(v, e, w.resetAt(v.arrived, a.limit)-v.arrived, -1, false)
}

func (a *API) rejectForSlot(v verdict, e endpoint) verdict {
	slots := &v.acct.slots[e]
	if slots.ofFleet() >= slots.size {
		a.count.slotViolations[e]++
	} else {
		a.count.unavoidable429++
	}
	v.message = "Too many concurrent requests for this endpoint."
	// A hung call has no end to tell; nobody is told to wait longer than a window.
	return a.reject(v, e, min(slots.freeAt()-v.arrived, a.cfg.Window), -1, false)
}

// reject makes the verdict a 429 and orders its pause: with Remaining > 0 on
// an endpoint with slots for that endpoint, else for the key. claimed is the
// Remaining to tell, -1 the true one.
func (a *API) reject(v verdict, e endpoint, retryAfter time.Duration, claimed int, hold bool) verdict {
	a.count.responses429++
	v.status = 429
	v.retryAfter = wholeSeconds(max(retryAfter, 1)) // at least one second
	v.budget = a.budgetOf(v.acct, v.arrived)
	if claimed >= 0 {
		v.budget.remaining = claimed
		v.budget.reset = v.arrived + retryAfter
	}
	p := &v.acct.pause
	if v.budget.remaining > 0 && v.acct.slots[e].size > 0 {
		p = &v.acct.endpointPauses[e]
	}
	p.order(v.arrived, max(retryAfter, 1), hold)
	return v
}

// strike applies a fault to an admitted request.
func (a *API) strike(v *verdict, e endpoint, f *Fault) {
	a.count.errorsInjected++
	v.fault = f
	if f.Kind != FaultError {
		return
	}
	v.status = f.Status
	if f.RetryAfter > 0 {
		v.retryAfter = wholeSeconds(f.RetryAfter)
		v.acct.unavailable[e].order(v.arrived, f.RetryAfter, false)
	}
}

// budgetOf reads what the headers tell. The account's window is up to now.
func (a *API) budgetOf(acct *account, now instant) budget {
	b := budget{
		limit:     a.limit,
		remaining: max(0, a.limit-acct.window.used()),
		reset:     acct.window.resetAt(now, a.limit),
	}
	if a.cfg.ResetFullWindow {
		b.reset = now + a.cfg.Window
	}
	return b
}

// wholeSeconds rounds up, as Retry-After must.
func wholeSeconds(d time.Duration) time.Duration {
	return (d + time.Second - 1) / time.Second * time.Second
}
