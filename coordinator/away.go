package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// WhenAway says what callers get while Redis does not answer.
type WhenAway int

const (
	// OwnShare lets every worker go on alone, with limit ÷ workers and, of each
	// endpoint, slots ÷ workers (rounded down), so that all workers together stay
	// within the limits. What was spent is charged when Redis is back.
	OwnShare WhenAway = iota

	// Wait lets callers wait until Redis is back, or their contexts end.
	Wait

	// FailFast fails callers with ErrRedisAway.
	FailFast
)

func (w WhenAway) String() string {
	return [...]string{"own share", "wait", "fail fast"}[w]
}

// How often Redis is tried while it is away, and how long before a resumption ends
// a worker stops spending alone, so that all of it has been told by then.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
	lastWords  = 200 * time.Millisecond

	// lapse is how late a place in a queue may be claimed (GRACE in account.lua), and
	// roomy how long it then takes until there is room for the share of who has not.
	lapse = time.Second
	roomy = time.Second

	// coarse is how exact a reset in whole seconds is, at worst (COARSE in account.lua).
	coarse = 2500 * time.Millisecond
)

// errResumption is why a worker whose own way to Redis was never cut goes on alone: it
// must not stand still while those who come back tell what they spent.
var errResumption = errors.New("others tell what they spent while Redis was away")

// lose opens the breaker: until Redis answers again no caller waits for it. c.mu
// must be held.
func (c *Coordinator) lose(err error) {
	first, now := c.away == nil, time.Now()
	c.away = err
	if !first {
		c.heedUntold(now)
		return
	}
	c.muted = false
	noticed := c.noticed(now)
	if errors.Is(err, errResumption) {
		noticed = now // Redis grants nothing to anybody
	}
	c.share.begin(now, noticed)
	for _, l := range c.lanes {
		l.unplace()
		l.had, l.renewed, l.crowded = l.used, c.share.since, false
	}
	for p := range c.held {
		p.lane.renewed = earlier(p.lane.renewed, p.renewed)
	}
	c.heedPauses(now)
	for ops := range c.untold {
		for _, o := range ops {
			// A slot that Redis may have freed already may have been given to others.
			if o.permit != nil && o.permit.lease != "" && !o.tried && (o.kind == opRelease || o.kind == opReturn) {
				o.lane.had++
				o.lane.renewed = earlier(o.lane.renewed, o.permit.renewed)
			}
		}
	}
	c.announceAway(err)
	if c.whenAway == FailFast {
		for _, l := range c.lanes {
			l.fail(c.awayError())
		}
	}
	c.done.Go(c.awaitRedis)
	c.signal() // the dispatcher may sleep until a time that Redis named
}

// noticed is when the others have made room for what this worker spends alone, if
// Redis is there for them: some time after it has let its turn go by, or a heartbeat is
// overdue. c.mu must be held.
func (c *Coordinator) noticed(now time.Time) time.Time {
	missed := c.expected
	for _, l := range c.lanes {
		if !l.placed || l.gate != GatePace && l.gate != GateWindow && l.gate != GateTurn {
			continue
		}
		turn := now.Add(max(0, l.notBefore.Sub(now)))
		missed = earlier(missed, turn.Add(lapse))
	}
	return missed.Add(roomy + c.share.emission())
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (c *Coordinator) awayError() error {
	return fmt.Errorf("fleetlimit: account %s: %w: %w", c.account, ErrRedisAway, c.away)
}

// awaitRedis tries until Redis answers, and then closes the breaker.
func (c *Coordinator) awaitRedis() {
	retry := firstRetry
	for {
		c.findMaster()
		if !sleepAbout(c.ctx, retry) {
			return
		}
		if left, err := c.tell(true); err == nil && c.resume(left) {
			return
		}
		retry = min(2*retry, lastRetry)
	}
}

// findMaster makes a cluster's client ask who serves which slot. It asks by itself
// when a node refers it to another, but goes on dialling one that has died for up to
// a minute, though its replica has long taken over.
func (c *Coordinator) findMaster() {
	if cluster, ok := c.rdb.(interface{ ReloadState(context.Context) }); ok {
		cluster.ReloadState(c.ctx) // in the background
	}
}

func (c *Coordinator) nap(d time.Duration) bool {
	return sleepOr(c.ctx, d)
}

// resume goes on alone, and says what it spends, until all workers have had the
// time to tell, and then with Redis.
func (c *Coordinator) resume(left time.Duration) bool {
	// Who is heard of again must have ended spending alone, unless nobody is granted
	// anything.
	c.mute(left <= lastWords)
	c.markAlive()
	for left > lastWords {
		if !c.nap(min(time.Second, left-lastWords)) {
			return true
		}
		var err error
		if left, err = c.tell(false); err != nil {
			return false
		}
	}
	c.mute(true)
	left, err := c.tell(false)
	if err == nil && !c.nap(left) {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.muted = false
	c.signal()
	if err != nil {
		return false
	}
	c.announceBack()
	c.away = nil
	return true
}

// mute ends spending alone, or lets it go on.
func (c *Coordinator) mute(muted bool) {
	c.mu.Lock()
	c.muted = muted
	c.mu.Unlock()
}

// markAlive says that this process lives, so that all workers are counted before
// anybody needs their number again.
func (c *Coordinator) markAlive() {
	leases, _ := c.renewable()
	c.renew(leases, time.Now(), 3*c.beatInterval()) // the next heartbeat makes a failure good
}

// tell brings Redis up to date: what was spent, which leases are held, and what
// stands in the outbox. It returns how long the resumption still lasts.
func (c *Coordinator) tell(first bool) (left time.Duration, err error) {
	for {
		c.mu.Lock()
		now := time.Now()
		var ops []op
		if first {
			ops = c.backAgain()
		}
		ops = append(ops, c.takeNews(now)...)
		c.mu.Unlock()

		a, err := c.sendInTime(c.ctx, nil, ops)
		c.mu.Lock()
		if err != nil {
			c.untell(ops)
			if c.spoiledBy(nil, ops, err) {
				c.mu.Unlock()
				continue
			}
			c.away = err
			c.mu.Unlock()
			return 0, err
		}
		if born := a.settled.born; c.share.born != 0 && c.share.born != born {
			c.lostMemory()
			c.share.born, c.share.heard = born, now
		}
		c.told(ops, now, a.settled.born)
		c.learnPauses(nil, a)
		more := c.share.dirty || slices.ContainsFunc(c.outbox, func(o op) bool { return !o.ofSpoiled() })
		c.mu.Unlock()
		if !more {
			return a.settled.resumption, nil
		}
		first = false
	}
}

// backAgain is what a worker says first when it hopes that Redis is back: that the
// fleet needs time to tell what it spent, and which leases it holds. c.mu must be
// held.
func (c *Coordinator) backAgain() []op {
	ops := c.opHeard()
	if c.whenAway == OwnShare {
		ops = append(ops, op{kind: opResume, at: c.share.since})
	}
	c.share.dirty = true
	for p := range c.held {
		p.unknown = true
	}
	return ops
}

// opHeard tells what this worker has heard of: a Redis that knows less has gone back to
// an older state. c.mu must be held.
func (c *Coordinator) opHeard() []op {
	if c.lastHeard == 0 {
		return nil
	}
	return []op{{kind: opHeard, birth: c.share.born, after: c.lastHeard}}
}

// serveAlone hands out permits of the own share, and says when to look again. c.mu
// must be held.
func (c *Coordinator) serveAlone(now time.Time) time.Duration {
	if c.whenAway != OwnShare || c.muted {
		return time.Hour
	}
	for {
		l := c.nextAlone(now)
		if l == nil {
			return time.Second
		}
		if wait := c.share.wait(now); wait > 0 {
			return min(wait, time.Second)
		}
		l.pop().finish(c.permitAlone(l, now), nil)
	}
}

// permitAlone takes a permit from the own share.
func (c *Coordinator) permitAlone(l *lane, now time.Time) *Permit {
	c.share.take(now)
	instant := c.share.instant + float64(now.Sub(c.share.heard))/float64(time.Millisecond)
	p := &Permit{
		c: c, lane: l, alone: true, gate: GateAway, epoch: c.epoch, asked: now, counted: now, renewed: now,
		admitted: formatInstant(instant), since: formatInstant(instant),
	}
	if l.slots > 0 {
		p.lease = c.leaseName(p.admitted, c.share.number)
		p.unknown = true
		c.hold(p)
	}
	return p
}

// nextAlone returns the lane of the caller to serve next, if one has a slot.
func (c *Coordinator) nextAlone(now time.Time) (next *lane) {
	for _, l := range c.lanes {
		if l.waiters.Len() == 0 || l.slots > 0 && (l.paused.After(now) || l.used >= c.slotsAlone(l, now)) {
			continue
		}
		if next == nil || l.waiters[0].before(next.waiters[0]) {
			next = l
		}
	}
	return next
}

// slotsAlone is how many slots of an endpoint this worker may use. At first those
// that it had, for everybody may go on with what it has. Leases that nobody renews
// end after their TTL, counted from their last renewal, for Redis may be there for
// others: then the slots are shared anew, and two heartbeats later, when everybody
// has cut down to its part, those who had less may take theirs. Slots of jobs go on
// being taken unseen and are not shared anew.
func (c *Coordinator) slotsAlone(l *lane, now time.Time) int {
	switch {
	case l.crowded:
		return 0
	case now.Sub(l.renewed) < l.keep():
		return l.had
	}
	fair := c.fairSlots(l)
	if now.Sub(c.share.since) < l.leaseTTL+c.policy.LeaseTTL*2/3 {
		return min(l.had, fair)
	}
	return fair
}

func (c *Coordinator) fairSlots(l *lane) int {
	n := c.share.sharing()
	if n == 0 || l.jobTTL > 0 {
		return 0
	}
	return l.cap / n
}

// beyondShare lists the permits whose slots this worker must give up, once the
// leases that it had when Redis went away have ended: all but its part, the
// youngest first. c.mu must be held.
func (c *Coordinator) beyondShare(now time.Time) (gone []*Permit) {
	var held []*Permit
	for p := range c.held {
		switch keep := p.lane.keep(); {
		case c.share.since.Sub(p.renewed) >= keep:
			gone = append(gone, p) // it had ended by then: this process was frozen, not Redis
		case now.Sub(p.lane.renewed) >= keep || now.Sub(p.renewed) >= keep:
			held = append(held, p)
		}
	}
	slices.SortFunc(held, func(a, b *Permit) int { return a.asked.Compare(b.asked) })
	kept := make(map[*lane]int)
	for _, p := range held {
		if kept[p.lane]++; kept[p.lane] > c.fairSlots(p.lane) {
			gone = append(gone, p)
		}
	}
	return gone
}

// heard passes on what the API said. While the fleet cannot be told, this worker
// obeys it alone.
func (c *Coordinator) heard(o op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.permit.alone && !o.pushback() && o.said.Limit <= 0 {
		return
	}
	if c.away != nil {
		c.heed(o)
	} else {
		o.lane.heedCap(o)
	}
	if c.away == nil && !c.isNews(o) {
		if l := o.lane; l.report == nil || l.report.permit.seq < o.permit.seq {
			l.report = &o
		}
		return
	}
	if c.away == nil && o.success() {
		c.reported = o.permit.epoch
	}
	if !o.permit.alone || o.pushback() {
		c.append(o)
	}
	c.signal()
}

// heed does alone what the API said. c.mu must be held.
func (c *Coordinator) heed(o op) {
	f, now := o.said, o.at
	if f.Limit > 0 {
		c.share.cut(f.Limit)
	}
	if f.Remaining >= 0 && f.Reset > coarse {
		// A window is no longer than the policy's, whatever the API says.
		c.share.left, c.share.leftAt, c.share.resets = float64(f.Remaining), now, now.Add(min(f.Reset, c.share.policy.Window))
	}
	if o.lane.heedCap(o) {
		// All slots are taken, though this worker keeps to its part: Redis is there for
		// others, who share them without it.
		o.lane.crowded = true
	} else if pause := f.pause(); pause > 0 {
		c.share.pause(now.Add(pause))
	}
}

// tryAlone is TryAcquire while Redis is away. c.mu must be held.
func (c *Coordinator) tryAlone(l *lane, now time.Time) (*Permit, error) {
	if c.whenAway != OwnShare {
		return nil, c.awayError()
	}
	refuse := &WaitError{Account: c.account, Gate: GateAway, Wait: c.share.wait(now)}
	if l.slots > 0 {
		refuse.Endpoint = l.name
	}
	switch {
	case c.muted:
		refuse.Wait = max(refuse.Wait, lastWords)
	case refuse.Wait > 0:
	case c.waiting():
		refuse.Gate, refuse.Wait = GateTurn, c.share.interval()
	case l.slots > 0 && l.paused.After(now):
		refuse.Gate, refuse.Wait = GateBackoff, l.paused.Sub(now)
	case l.slots > 0 && l.used >= c.slotsAlone(l, now):
		refuse.Gate, refuse.Wait = GateSlots, time.Second
	default:
		return c.permitAlone(l, now), nil
	}
	return nil, refuse
}

func (c *Coordinator) waiting() bool {
	for _, l := range c.lanes {
		if l.waiters.Len() > 0 {
			return true
		}
	}
	return false
}
