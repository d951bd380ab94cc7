package coordinator

import "time"

// What Redis said of pauses is kept for when it is away: who goes on alone obeys them still,
// though nobody may have waited here for their end.

// learnPauses takes over what Redis says of pauses. A resumption is none: everybody goes on
// alone in it. c.mu must be held.
func (c *Coordinator) learnPauses(asks []ask, a answer) {
	now, account := time.Now(), c.lanes[anyEndpoint]
	account.paused = now
	if a.settled.resumption == 0 {
		account.paused = now.Add(a.settled.paused)
	}
	for i, r := range a.replies {
		c.drained = now
		if r.gate == GateDrain {
			c.drained = now.Add(r.wait)
		}
		if l := asks[i].lane; l != account && r.paused == 0 {
			l.paused = now
			if r.gate == GateBackoff {
				l.paused = now.Add(r.wait)
			}
		}
	}
}

// heedPauses begins an outage with what was known of pauses. c.mu must be held.
func (c *Coordinator) heedPauses(now time.Time) {
	c.share.pause(c.drained)
	c.share.pause(c.lanes[anyEndpoint].paused)
	c.heedUntold(now)
}

// heedUntold obeys what the API said and Redis may not have heard. c.mu must be held.
func (c *Coordinator) heedUntold(now time.Time) {
	for ops := range c.untold {
		for _, o := range ops {
			if o.pushback() && !o.stale(now) {
				c.heed(o)
			}
		}
	}
}

// maxPause is the longest pause that the API is granted (MAX_PAUSE in account.lua).
const maxPause = 5 * time.Minute

// pause is how long the API wants to be left alone; 0: it does not.
func (f Feedback) pause() time.Duration {
	switch {
	case f.Status != 429 && f.Status != 503:
		return 0
	case f.Status == 429 && f.RetryAfter < 0:
		return min(max(f.Reset, time.Second), maxPause)
	}
	return min(max(f.RetryAfter, 0), maxPause)
}

// heedCap obeys a pushback that concerns this endpoint alone, if it is one.
func (l *lane) heedCap(o op) bool {
	if l.slots == 0 || !o.ofCap() {
		return false
	}
	if until := o.at.Add(o.said.pause()); until.After(l.paused) {
		l.paused = until
	}
	return true
}

// untold iterates over all that is yet to be told. c.mu must be held.
func (c *Coordinator) untold(yield func([]op) bool) {
	if !yield(c.outbox) {
		return
	}
	for _, l := range c.lanes {
		if !yield(l.behind) {
			return
		}
	}
}
