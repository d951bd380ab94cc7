package coordinator

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/fleetlimit/fleetlimit/lua"
)

// In a large fleet heartbeats are rarer: a worker that has no lease to renew beats once
// in beatPerWorker for each worker alive, or once in emissionsPerBeat emission intervals
// for each, if that is longer. So they cost Redis no more than a part of what the
// admissions do. A fleet is large if that is longer than a third of the lease TTL.
const (
	beatPerWorker    = 400 * time.Millisecond
	emissionsPerBeat = 4
	rarestBeat       = 6 * time.Minute
)

// overdue is the part of the time for which a worker counts as alive after which it
// should have been heard of again; renew.lua has the same.
const overdue = 1.25 / 3

// beat is the heartbeat: it renews all leases of this process in one call, marks
// it alive, and tells the holders of lost leases. It ticks at a third of the
// lease TTL, and comes as seldom as the one before has promised.
func (c *Coordinator) beat() {
	select {
	case <-c.met: // so that a process that has just started needs one connection for both
	case <-c.ctx.Done():
		return
	}
	tick := c.policy.LeaseTTL / 3
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var last time.Time
	var alive time.Duration // from last on, as Redis was told
	for {
		every := c.beatInterval()
		rest := min(every, alive/3) // the fleet may have grown since, and expects this one by then
		if leases, there := c.renewable(); there && (len(leases) > 0 || time.Since(last) >= rest-tick/2) {
			if !last.IsZero() {
				c.ask(every)
			}
			c.postForgets()
			if !last.IsZero() && rest < every {
				every = min(rarestBeat, 2*every) // a fleet that outgrew the last promise is growing still
			}
			last, alive = time.Now(), 3*every
			if err := c.renew(leases, last, alive); err != nil {
				c.noBeat(err)
			}
		}
		select {
		case <-ticker.C:
		case <-c.ctx.Done():
			return
		}
	}
}

// beatInterval is how often this worker beats if it has no lease to renew.
func (c *Coordinator) beatInterval() time.Duration {
	c.mu.Lock()
	workers := time.Duration(c.share.workers)
	c.mu.Unlock()
	tick := c.policy.LeaseTTL / 3
	if workers*beatPerWorker <= tick {
		return tick
	}
	emission := c.policy.Window / time.Duration(usableLimit(c.policy.Limit, c.policy.Headroom))
	return max(tick, min(rarestBeat, workers*max(beatPerWorker, emissionsPerBeat*emission)))
}

// watchLeases gives up leases in time, whatever hangs in a heartbeat.
func (c *Coordinator) watchLeases() {
	for c.nap(c.leaseEnd(time.Now())) {
		c.expire(time.Now())
	}
}

// leaseEnd is how long it is until a lease must be given up if it is not renewed, or
// until a new one could have to be.
func (c *Coordinator) leaseEnd(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.policy.LeaseTTL / 3
	for p := range c.held {
		for _, renewed := range []time.Time{p.renewed, p.lane.renewed} {
			if end := renewed.Add(p.lane.keep()).Sub(now); end > 0 {
				next = min(next, end)
			}
		}
	}
	return max(next, time.Millisecond)
}

// keep is how long after its last renewal a lease is used: the API needs a moment to
// notice that a call was broken off, and the lease's TTL begins no earlier.
func (l *lane) keep() time.Duration { return l.leaseTTL - l.leaseTTL/10 }

// noBeat notes that a heartbeat failed: leases must not end unnoticed.
func (c *Coordinator) noBeat(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case refused(err):
		c.announce(func() { c.log.Error("Redis refuses the heartbeat", "err", err) })
	default:
		c.lose(err)
	}
}

// ask asks Redis how the budget stands if it has not said so lately,
// so that the own share is right if Redis should go away.
func (c *Coordinator) ask(every time.Duration) {
	c.mu.Lock()
	fresh := c.share.known && time.Since(c.share.heard) < every-c.policy.LeaseTTL/6
	c.mu.Unlock()
	if !fresh {
		c.look()
	}
}

// renew is one call of renew.lua.
func (c *Coordinator) renew(leases []*Permit, now time.Time, alive time.Duration) error {
	keys, args := c.renewArgs(leases, alive)
	knew, knownTo := c.knowing(leases)
	// Close waits for the answer: a heartbeat that came after its farewell would mark this
	// worker alive again.
	reply, err := inTime(context.WithoutCancel(c.ctx), c.timeout, func(ctx context.Context) (renewal, error) {
		values, err := lua.Renew.Run(ctx, c.rdb, keys, args...).StringSlice()
		if err != nil {
			return renewal{}, nameKey(ctx, c.rdb, anys(keys), legible("renew.lua", err))
		}
		return parseRenewal(values)
	}, nil)
	if err == nil && len(reply.wrong) > 0 {
		err = c.nameWrong(reply.wrong)
	}
	c.exchanged(now, nil, len(leases), answer{}, err)
	if err != nil && len(reply.wrong) == 0 {
		return err
	}
	c.mu.Lock()
	c.expected = now.Add(time.Duration(float64(alive) * overdue))
	if reply.born != "" && knew != 0 && knew == c.share.born && reply.born != formatInt(knew) {
		c.signal()
		c.lostMemory()
	}
	var gone []*Permit
	for i, p := range leases {
		switch {
		case reply.wrong[c.keys.slotsOf(p.lane.name)]:
		case !reply.lost[p.lease]:
			p.renewed = now
		case reply.born != "" && reply.born != formatInt(knownTo[i]):
			// It is not lost: this account has not been told of it yet.
		case c.unhold(p):
			p.gone = true
			gone = append(gone, p)
		}
	}
	if c.away == nil {
		c.share.count(reply.workers, now)
	}
	if reply.workers > 0 {
		c.share.list(reply.workers, now, alive, alive/3+c.policy.LeaseTTL/3)
	}
	c.obey(reply.strictest)
	c.mu.Unlock()
	c.tellLost(gone)
	return nil
}

// knowing returns the birth of the account as this worker knows it, and of those that had
// been told of the leases.
func (c *Coordinator) knowing(leases []*Permit) (knew int64, knownTo []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range leases {
		knownTo = append(knownTo, p.knownTo)
	}
	return c.share.born, knownTo
}

// A renewal is the answer of renew.lua.
type renewal struct {
	workers   int
	born      string // empty: unknown
	strictest strictest
	wrong     map[string]bool // keys that hold something else
	lost      map[string]bool // leases
}

func parseRenewal(v []string) (r renewal, err error) {
	const fixed = 5
	if len(v) < fixed {
		return r, nonsense("renew.lua", "%d values instead of %d or more", len(v), fixed)
	}
	numbers := newReader(v)
	r.workers, r.born = int(numbers.int()), numbers.text()
	r.strictest.policies, r.strictest.text = int(numbers.int()), numbers.text()
	wrong := int(numbers.int())
	if numbers.bad >= 0 || wrong > len(v)-fixed {
		return renewal{}, nonsense("renew.lua", "%q", v[:fixed])
	}
	if r.strictest.policy, err = parsePolicy(r.strictest.text); err != nil {
		return renewal{}, err
	}
	r.wrong, r.lost = set(v[fixed:fixed+wrong]), set(v[fixed+wrong:])
	return r, nil
}

func set(names []string) map[string]bool {
	all := make(map[string]bool, len(names))
	for _, name := range names {
		all[name] = true
	}
	return all
}

// nameWrong says what the keys hold that a heartbeat could not use.
func (c *Coordinator) nameWrong(keys map[string]bool) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	var all error
	for key := range keys {
		problem, _ := checkKey(ctx, c.rdb, key, errWrongType)
		all = errors.Join(all, problem)
		c.mu.Lock()
		c.spoil(problem)
		c.mu.Unlock()
	}
	if all != nil {
		c.announce(func() { c.log.Error("a key in Redis is not the fleet's", "err", all) })
	}
	return all
}

var errWrongType = errors.New("the heartbeat cannot use it")

func (c *Coordinator) renewArgs(leases []*Permit, alive time.Duration) ([]string, []any) {
	keys := []string{
		c.keys.account(), c.keys.workers(), c.keys.backoff(), c.keys.queue(), c.keys.timeline(), c.keys.policies(),
		c.keys.expected(),
	}
	args := append([]any{c.worker, ms(alive)}, c.policyArgs()...)
	args = append(args, len(c.policy.Endpoints))
	for _, e := range c.policy.Endpoints {
		keys = append(keys, c.keys.slotsOf(e.Pattern), c.keys.queueOf(e.Pattern))
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
	if c.away != nil && c.whenAway == OwnShare {
		gone = c.beyondShare(now)
	} else {
		for p := range c.held {
			if now.Sub(p.renewed) >= p.lane.keep() {
				gone = append(gone, p)
			}
		}
	}
	for _, p := range gone {
		c.unhold(p)
		p.gone = true
	}
	c.mu.Unlock()
	c.tellLost(gone)
}

func (c *Coordinator) tellLost(gone []*Permit) {
	c.announceLost(gone)
	for _, p := range gone {
		p.lose(ErrLeaseLost)
	}
}

// renewable lists the leases that this process holds, and says whether Redis is
// there to renew them.
func (c *Coordinator) renewable() (held []*Permit, there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	leases := make([]*Permit, 0, len(c.held))
	for p := range c.held {
		leases = append(leases, p)
	}
	return leases, c.away == nil
}

// hold enters a permit's lease for renewal. c.mu must be held.
func (c *Coordinator) hold(p *Permit) {
	if p.lease != "" {
		c.held[p] = true
		p.lane.used++
		c.hearLease(p)
	}
}

// unhold ends the renewal of a permit's lease; false: it had ended. c.mu must be
// held.
func (c *Coordinator) unhold(p *Permit) bool {
	if !c.held[p] {
		return false
	}
	delete(c.held, p)
	p.lane.used--
	return true
}

// post hands operations to the dispatcher.
func (c *Coordinator) post(ops ...op) {
	c.mu.Lock()
	c.append(ops...)
	c.mu.Unlock()
	c.signal()
}

// append adds operations to the outbox. c.mu must be held.
func (c *Coordinator) append(ops ...op) {
	if c.ctx.Err() == nil {
		c.outbox = append(c.outbox, ops...)
		c.trimOutbox()
	}
}

// trimOutbox drops what matters least if there is too much to tell. c.mu must be held.
func (c *Coordinator) trimOutbox() {
	var dropped int
	if c.outbox, dropped = trim(c.outbox); dropped > 0 {
		c.announce(func() {
			c.log.Warn("too much to tell Redis at once: what matters least is dropped", "operations", dropped)
		})
	}
}

// trim drops of more than maxOutbox operations what matters least, the oldest first: a tenth
// more than it must, so that not every operation costs a search.
func trim(ops []op) (kept []op, dropped int) {
	if len(ops) <= maxOutbox {
		return ops, 0
	}
	dropped = len(ops) - maxOutbox*9/10
	excess := dropped
	for weight := 0; excess > 0; weight++ {
		ops = slices.DeleteFunc(ops, func(o op) bool {
			drop := excess > 0 && o.weight() <= weight
			if drop {
				excess--
			}
			return drop
		})
	}
	return ops, dropped
}

// sayGoodbye takes this process off the list of workers.
func (c *Coordinator) sayGoodbye(ctx context.Context) error {
	keys, args := c.renewArgs(nil, 0)
	_, err := inTime(ctx, c.timeout, func(ctx context.Context) (any, error) {
		return nil, lua.Renew.Run(ctx, c.rdb, keys, args...).Err()
	}, nil)
	return err
}

func formatInt(n int64) string { return strconv.FormatInt(n, 10) }

func formatInstant(ms float64) string { return strconv.FormatFloat(ms, 'f', 3, 64) }
