package coordinator

import (
	"context"
	"strconv"
	"time"

	"github.com/fleetlimit/fleetlimit/lua"
)

// beatPerWorker makes the heartbeats of a large fleet rarer: a worker that has
// no lease to renew beats once in this time for each worker alive.
const beatPerWorker = 200 * time.Millisecond

// beat is the heartbeat: it renews all leases of this process in one call, marks
// it alive, and tells the holders of lost leases. It ticks at a third of the
// lease TTL.
func (c *Coordinator) beat() {
	tick := c.policy.LeaseTTL / 3
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var last time.Time
	every := tick
	for {
		if leases := c.renewable(); len(leases) > 0 || time.Since(last) >= every-tick/2 {
			last = time.Now()
			if workers, err := c.renew(leases, last, 3*every); err == nil {
				every = max(tick, time.Duration(workers)*beatPerWorker)
			}
		}
		select {
		case <-ticker.C:
		case <-c.ctx.Done():
			return
		}
		c.expire(time.Now())
	}
}

// renew is one call of renew.lua.
func (c *Coordinator) renew(leases []*Permit, now time.Time, alive time.Duration) (workers int, err error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	keys, args := c.renewArgs(leases, alive)
	reply, err := lua.Renew.Run(ctx, c.rdb, keys, args...).StringSlice()
	if err != nil || len(reply) == 0 {
		return 0, err
	}
	lost := make(map[string]bool, len(reply)-1)
	for _, lease := range reply[1:] {
		lost[lease] = true
	}
	c.mu.Lock()
	var gone []*Permit
	for _, p := range leases {
		if !lost[p.lease] {
			p.renewed = now
		} else if c.held[p.lease] == p {
			delete(c.held, p.lease)
			gone = append(gone, p)
		}
	}
	c.mu.Unlock()
	c.tellLost(gone)
	workers, err = strconv.Atoi(reply[0])
	return workers, err
}

func (c *Coordinator) renewArgs(leases []*Permit, alive time.Duration) ([]string, []any) {
	keys := []string{c.keys.account(), c.keys.workers()}
	args := append([]any{c.worker, ms(alive)}, c.policyArgs()...)
	args = append(args, len(c.policy.Endpoints))
	for _, e := range c.policy.Endpoints {
		keys = append(keys, c.keys.slotsOf(e.Pattern))
		args = append(args, e.Pattern, e.Slots, ms(c.policy.leaseTTL(e)))
	}
	for _, p := range leases {
		args = append(args, p.lane.number, p.lease)
	}
	return keys, args
}

// expire gives up the leases that could not be renewed in time, by the clock of
// this process: a worker that was frozen, or cut off from Redis, must not go on
// as if it still held them.
func (c *Coordinator) expire(now time.Time) {
	c.mu.Lock()
	var gone []*Permit
	for lease, p := range c.held {
		if now.Sub(p.renewed) > p.lane.leaseTTL {
			delete(c.held, lease)
			gone = append(gone, p)
		}
	}
	c.mu.Unlock()
	c.tellLost(gone)
}

func (c *Coordinator) tellLost(gone []*Permit) {
	if len(gone) > 0 {
		c.log.Warn("leases lost", "leases", len(gone), "endpoint", gone[0].lane.name)
	}
	for _, p := range gone {
		p.lose(ErrLeaseLost)
	}
}

// renewable lists the leases that this process holds.
func (c *Coordinator) renewable() []*Permit {
	c.mu.Lock()
	defer c.mu.Unlock()
	leases := make([]*Permit, 0, len(c.held))
	for _, p := range c.held {
		leases = append(leases, p)
	}
	return leases
}

// hold enters a permit's lease for renewal. c.mu must be held.
func (c *Coordinator) hold(p *Permit) {
	if p.lease != "" {
		c.held[p.lease] = p
	}
}

// drop ends the renewal of a permit's lease.
func (c *Coordinator) drop(p *Permit) {
	c.mu.Lock()
	delete(c.held, p.lease)
	c.mu.Unlock()
}

// post hands an operation to the dispatcher.
func (c *Coordinator) post(o op) {
	c.mu.Lock()
	if len(c.outbox) < maxOutbox && c.ctx.Err() == nil {
		c.outbox = append(c.outbox, o)
	}
	c.mu.Unlock()
	c.signal()
}

// sayGoodbye takes this process off the list of workers.
func (c *Coordinator) sayGoodbye(ctx context.Context) error {
	keys, args := c.renewArgs(nil, 0)
	return lua.Renew.Run(ctx, c.rdb, keys, args...).Err()
}

func formatInt(n int64) string { return strconv.FormatInt(n, 10) }
