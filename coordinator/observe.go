package coordinator

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"
)

// pauseSlack is how much later a pause must end than was known to count as longer:
// an endpoint's is known only as the wait of one who is behind others.
const pauseSlack = 2 * time.Second

// announce has a function called without a lock held, after those announced before.
func (c *Coordinator) announce(f func()) { c.listener.announce(f) }

// answered calls Granted or Refused.
func (c *Coordinator) answered(r Request, p *Permit, err error, asked time.Time) {
	switch {
	case err == nil && c.events.Granted != nil:
		delivered := false
		defer func() {
			if !delivered {
				p.Return() // the listener has panicked, so nobody gets the permit
			}
		}()
		c.events.Granted(Grant{
			Account: c.account, Endpoint: p.lane.endpoint(), Gate: p.gate, Waited: p.waited, Alone: p.alone,
		})
		delivered = true
	case err != nil && c.events.Refused != nil:
		c.events.Refused(Refusal{
			Account: c.account, Endpoint: r.Endpoint, Gate: gateOf(err), Waited: time.Since(asked), Err: err,
		})
	}
}

// hookedTime is the time, if anybody will hear of it: it is not free.
func (c *Coordinator) hookedTime() (now time.Time) {
	if c.events.Refused != nil {
		now = time.Now()
	}
	return now
}

// gateOf is what kept a caller waiting until it gave up.
func gateOf(err error) Gate {
	var wait *WaitError
	if errors.As(err, &wait) {
		return wait.Gate
	}
	var end *gaveUp
	switch {
	case errors.As(err, &end):
		return end.gate
	case errors.Is(err, ErrRedisAway):
		return GateAway
	}
	return ""
}

// gaveUp is the end of a caller's context while it waits for a gate.
type gaveUp struct {
	error
	gate Gate
}

func (e *gaveUp) Unwrap() error { return e.error }

// exchanged calls Exchanged.
func (c *Coordinator) exchanged(asked time.Time, asks []ask, told int, a answer, err error) {
	if c.events.Exchanged == nil || errors.Is(err, context.Canceled) {
		return // who has gone away has not heard from Redis, nor waited in vain
	}
	e := Exchange{Account: c.account, Told: told, Took: time.Since(asked), Err: err}
	for _, a := range asks {
		e.Wanted += a.n
	}
	for _, r := range a.replies {
		e.Granted += r.granted
	}
	c.events.Exchanged(e)
}

// seen is what this process last knew of what it announces.
type seen struct {
	strictest strictest // the policy that counts

	pauses  map[*lane]time.Time // until when; the lane anyEndpoint stands for the account
	foreign int64
	forgot  int64 // the birth of the account that Redis has forgotten last
}

// observe takes over what an answer says of pauses, and announces what it has in it for those
// who listen. c.mu must be held.
func (c *Coordinator) observe(asks []ask, ops []op, a answer) {
	c.learnPauses(asks, a)
	account := c.lanes[anyEndpoint]
	if len(asks) == 0 || len(ops) > 0 {
		c.notePause(account, a.settled.paused)
		c.noteForeign(a.settled.foreign)
	}
	for i, r := range a.replies {
		c.notePause(account, r.paused)
		c.noteForeign(r.foreign)
		if l := asks[i].lane; l != account && r.paused == 0 {
			left := r.wait
			if r.gate != GateBackoff {
				left = 0
			}
			c.notePause(l, left)
		}
	}
}

// notePause takes over how long a pause still lasts, and announces a change. c.mu
// must be held.
func (c *Coordinator) notePause(l *lane, left time.Duration) {
	until, paused := c.seen.pauses[l]
	now, endpoint := time.Now(), l.endpoint()
	switch {
	case left <= 0 && paused:
		delete(c.seen.pauses, l)
		c.announce(func() {
			c.log.Info("the pause is over", "endpoint", endpoint)
			if f := c.events.Resumed; f != nil {
				f(Resumption{c.account, endpoint})
			}
		})
	case left > 0 && (!paused || now.Add(left).Sub(until) > pauseSlack):
		if c.seen.pauses == nil {
			c.seen.pauses = make(map[*lane]time.Time)
		}
		c.seen.pauses[l] = now.Add(left)
		c.announce(func() {
			c.log.Warn("the fleet pauses", "endpoint", endpoint, "left", left.Round(time.Millisecond))
			if f := c.events.Paused; f != nil {
				f(Pause{c.account, endpoint, left})
			}
		})
	}
}

// noteForeign takes over what strangers spend. c.mu must be held.
func (c *Coordinator) noteForeign(requests int64) {
	before := c.seen.foreign
	c.seen.foreign = requests
	if before == requests {
		return
	}
	if f := c.events.ForeignUse; f != nil {
		c.announce(func() { f(Foreign{c.account, int(requests)}) })
	}
	if before == 0 {
		c.announce(func() {
			c.log.Warn("somebody else uses the API key", "requests", requests, "window", c.policy.Window)
		})
	}
}

// announceLost announces leases that were lost.
func (c *Coordinator) announceLost(gone []*Permit) {
	for _, p := range gone {
		lost := LostLease{c.account, p.lane.name, p.lease, time.Since(p.asked)}
		c.announce(func() {
			c.log.Warn("a lease was lost", "endpoint", lost.Endpoint, "lease", lost.Lease, "held", lost.Held.Round(time.Millisecond))
			if f := c.events.LeaseLost; f != nil {
				f(lost)
			}
		})
	}
}

// announceAway announces that Redis does not answer. c.mu must be held.
func (c *Coordinator) announceAway(err error) {
	workers := c.share.workers
	c.announce(func() {
		level, text := slog.LevelWarn, "Redis does not answer"
		if err == errResumption {
			level, text = slog.LevelInfo, "going on alone while others tell what they spent"
		}
		c.log.Log(context.Background(), level, text, "err", err, "behaviour", c.whenAway.String(), "workers", workers)
		if f := c.events.Degraded; f != nil {
			f(Degradation{c.account, err, c.whenAway, workers})
		}
	})
}

// announceBack announces that Redis decides again. c.mu must be held.
func (c *Coordinator) announceBack() {
	r := Recovery{c.account, time.Since(c.share.since), c.share.spent}
	c.announce(func() {
		c.log.Info("Redis answers again", "away", r.Away.Round(time.Millisecond), "spent", r.Spent)
		if f := c.events.Recovered; f != nil {
			f(r)
		}
	})
}

// announcePolicies announces that the workers' policies differ, or no longer do.
func (c *Coordinator) announcePolicies(d PolicyDifference) {
	c.announce(func() {
		if d.Policies > 1 {
			c.log.Warn("workers of this fleet have different policies, and the strictest counts",
				"policies", d.Policies, "here", strings.Join(d.Fields, "; "))
		} else {
			c.log.Info("the policies of all workers agree again")
		}
		if f := c.events.PoliciesDiffer; f != nil {
			f(d)
		}
	})
}

// announceForgotten announces, once, that Redis has lost its memory. c.mu must be
// held.
func (c *Coordinator) announceForgotten() {
	if c.seen.forgot == c.share.born {
		return
	}
	c.seen.forgot = c.share.born
	c.announce(func() {
		c.log.Warn("Redis has forgotten the account; telling it again")
		if f := c.events.MemoryLost; f != nil {
			f(MemoryLoss{c.account})
		}
	})
}
