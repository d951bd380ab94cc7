package coordinator

import (
	"container/heap"
	"time"
)

// maxAsk bounds the permits that one call asks for, and with it the time that
// Redis spends on one script.
const maxAsk = 256

// dispatch is the one goroutine that asks Redis for permits and tells it what
// became of them. Whatever gathers while an exchange is under way goes into the
// next one; when nothing is under way, it goes out at once.
func (c *Coordinator) dispatch() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer c.wakeServed()
	for c.ctx.Err() == nil {
		asks, ops, next, closing := c.collect(time.Now())
		if len(asks)+len(ops) > 0 {
			if c.exchange(asks, ops) || !closing {
				continue
			}
		}
		c.wakeServed()
		if closing {
			close(c.flushed)
			return
		}
		timer.Reset(next)
		select {
		case <-c.news:
		case <-timer.C:
		case <-c.ctx.Done():
			return
		}
	}
}

func (c *Coordinator) signal() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

// collect takes the work of the next exchange: what Redis must be told, and a wish
// for each lane whose time has come. Without work it says when there will be some.
// Closing is true when nothing will come but what is to be told.
func (c *Coordinator) collect(now time.Time) (asks []ask, ops []op, next time.Duration, closing bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		ops = c.takeNews(now)
		return nil, ops, 0, true
	}
	if c.away != nil {
		return nil, nil, c.serveAlone(now), false
	}
	next = c.lookAtSpoiled(now)
	for _, l := range c.lanes {
		if l.waiters.Len() == 0 || l.spoiled != nil {
			continue
		}
		if wait := l.notBefore.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		first := l.waiters[0]
		l.called = time.Time{}
		asks = append(asks, ask{
			lane: l, n: min(l.waiters.Len(), maxAsk),
			priority: first.priority, since: first.since, queue: true, known: c.share.born, after: c.lastHeard,
		})
	}
	if wait := c.quiet.Sub(now); wait > 0 && len(asks) == 0 {
		return nil, nil, min(next, wait), false
	}
	ops = c.takeNews(now)
	if len(asks)+len(ops) > 0 {
		ops = append(ops, c.takeReports(now)...)
	}
	return asks, ops, next, false
}

// takeNews takes what Redis must be told, as much as one call may say. c.mu must be held.
func (c *Coordinator) takeNews(now time.Time) []op {
	unheard, ops := c.unheard(now), c.takeOutbox(now)
	if len(unheard) == 0 {
		return ops
	}
	return append(unheard, ops...)
}

// takeOutbox takes what stands in the outbox, as much as one call may say, but for what
// concerns spoiled endpoints. c.mu must be held.
func (c *Coordinator) takeOutbox(now time.Time) []op {
	if len(c.outbox) == 0 {
		return nil
	}
	c.stayBehind()
	n := min(len(c.outbox), maxOps)
	ops := compact(c.outbox[:n:n], now)
	c.outbox = append(c.spare, c.outbox[n:]...)
	c.spare = nil
	return ops
}

// recycle lets the outbox use the memory of operations that have been told. c.mu must be
// held.
func (c *Coordinator) recycle(ops []op) {
	if cap(ops) <= 2*maxOps {
		clear(ops)
		c.spare = ops[:0]
	}
}

// isNews says whether Redis, and with it the fleet, must hear at once what the API
// said: all but a success that shows the limit that it has been told, no more use than
// the fleet's own, and no stranger to be watched. c.mu must be held.
func (c *Coordinator) isNews(o op) bool {
	f, p := o.said, o.permit
	usable := usableLimit(min(c.share.policy.Limit, f.Limit), c.share.policy.Headroom)
	switch {
	case !o.success() || p.epoch != c.reported:
	case f.Limit > 0 && c.share.limit != usable: // another limit than Redis knows, or strangers
	case f.Remaining >= 0 && int64(f.Limit-f.Remaining) > p.seq-p.base:
	default:
		return false
	}
	return true
}

// takeReports takes the reports that tell nothing new, since there is an exchange
// anyway. c.mu must be held.
func (c *Coordinator) takeReports(now time.Time) (ops []op) {
	for _, l := range c.lanes {
		if l.spoiled != nil {
			continue
		}
		if l.report != nil && now.Sub(l.report.at) < c.policy.Window {
			ops = append(ops, *l.report)
		}
		l.report = nil
	}
	return ops
}

// unheard lists what this worker knows and Redis does not: what was spent, and
// which leases are held. c.mu must be held.
func (c *Coordinator) unheard(now time.Time) (ops []op) {
	if !c.share.dirty {
		return nil
	}
	c.share.dirty = false
	if c.share.knew != 0 {
		ops = append(ops, op{kind: opKnew, birth: c.share.knew})
	}
	c.share.knew = 0
	for p := range c.held {
		if p.unknown && p.lane.spoiled == nil {
			p.unknown = false
			ops = append(ops, op{kind: opAdopt, lane: p.lane, permit: p})
		}
	}
	// After what may fail at a key that holds something else: this would be counted again.
	return append(ops, c.share.untold(now)...)
}

// told notes that Redis has heard, in the account of this birth; of one that Redis has forgotten
// since, that does not count. c.mu must be held.
func (c *Coordinator) told(ops []op, now time.Time, born int64) {
	late := born != c.share.born
	for _, o := range ops {
		switch o.kind {
		case opSpent, opGranted:
			if !late {
				o.lot.untold = max(0, o.lot.untold-o.count)
			}
			c.share.dirty = c.share.dirty || late
		case opAdopt:
			o.permit.unknown, o.permit.renewed, o.permit.knownTo = late, now, born
			c.share.dirty = c.share.dirty || late
		case opForget:
			c.forgotten(o.lane, now)
		}
	}
}

// untell notes that what was told may not have been heard. c.mu must be held.
func (c *Coordinator) untell(ops []op) {
	all := retold(ops)
	again := all[:0]
	for _, o := range all {
		if o.lot != nil || o.kind == opAdopt && c.held[o.permit] {
			c.share.dirty = true // it is told from what this worker knows
			if o.permit != nil {
				o.permit.unknown = true
			}
			continue
		}
		if o.kind == opAdopt && o.permit.gone {
			continue // it was lost meanwhile: nobody holds what it would take
		}
		again = append(again, o)
	}
	for _, o := range ops {
		if o.kind == opKnew {
			c.share.knew, c.share.dirty = o.birth, true
		}
	}
	c.outbox = append(again, c.outbox...)
	c.trimOutbox()
}

// exchange is one round trip; it returns whether another may succeed. No lock is held
// meanwhile, and those whom the last one served are woken while it is under way.
func (c *Coordinator) exchange(asks []ask, ops []op) bool {
	asked := time.Now()
	c.wakeServed()
	a, err := c.sendInTime(c.ctx, asks, ops)

	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		return c.giveUp(asks, ops, err)
	}
	c.learn(a.settled.budget, asked)
	if a.repeated {
		c.doubt(asks)
	}
	for _, r := range a.replies {
		c.hearReply(r)
	}
	c.told(ops, asked, a.settled.born)
	c.observe(asks, ops, a)
	for i, r := range a.replies {
		c.serve(asks[i], r, asked)
	}
	c.recycle(ops)
	return true
}

// wakeServed wakes those who have got a permit; many of them while the dispatcher goes on
// with the next exchange. It is for the dispatcher alone.
func (c *Coordinator) wakeServed() {
	const many = 4
	served := c.served
	wake := func() {
		for _, w := range served {
			close(w.done)
		}
	}
	if c.served = nil; len(served) < many {
		wake()
	} else {
		go wake()
	}
}

// learn takes over what a reply says of the budget. c.mu must be held.
func (c *Coordinator) learn(b budget, asked time.Time) {
	if born := c.share.born; born != 0 && born != b.born && !c.share.overtaken(b, asked) {
		c.lostMemory()
	}
	c.share.hear(b, asked)
}

// count counts a permit of an account that was born then. If Redis has forgotten that one
// since, as a quicker reply has told, it is told of the permit. c.mu must be held.
func (c *Coordinator) count(p *Permit, born int64) {
	c.hold(p)
	lot := c.share.add(p.counted, 1, 0)
	lot.hold(p.seq)
	if born != c.share.born {
		lot.untold++
		p.unknown, c.share.dirty = true, true
		c.signal()
	}
}

// lostMemory notes that Redis has forgotten the account: it must be told everything
// again. c.mu must be held.
func (c *Coordinator) lostMemory() {
	c.announceForgotten()
	c.lastHeard = 0 // the numbers begin anew
	c.share.forgotten(time.Now())
	for _, l := range c.lanes { // Redis has forgotten the places as well
		l.unplace()
	}
	for p := range c.held {
		p.unknown = true
	}
}

// undo returns how what was granted and cannot be used is given back.
func (c *Coordinator) undo(a ask, r admission, asked time.Time) (ops []op) {
	now := time.Now()
	for i := range r.granted {
		p := c.newPermit(a.lane, &r, r.last-int64(i), asked, now)
		ops = append(ops, p.opReturn())
	}
	return ops
}

// serve hands granted permits to those who wait, who are then to be woken, and puts the
// rest to sleep. c.mu must be held.
func (c *Coordinator) serve(a ask, r admission, asked time.Time) {
	l, now := a.lane, time.Now()
	gate := l.waitsFor()
	for i := range r.granted {
		p := c.newPermit(l, &r, r.last-int64(r.granted)+1+int64(i), asked, now)
		p.gate = gate
		if l.waiters.Len() == 0 || c.closed {
			c.append(p.opReturn())
			continue
		}
		c.count(p, r.born)
		w := l.pop()
		w.serve(p)
		c.served = append(c.served, w)
	}
	if c.away == nil && r.gate == GateAway && c.whenAway == OwnShare && !c.closed {
		c.lose(errResumption)
	}
	if c.away != nil {
		return
	}
	l.gate, l.placed, l.rank, l.notBefore = r.gate, r.gate != "", a.priority, time.Time{}
	if !l.placed {
		return
	}
	l.notBefore = time.Now().Add(r.wait)
	if !l.called.IsZero() && l.called.Before(l.notBefore) {
		l.notBefore = l.called
	}
	c.leaveIfEmpty(l)
	for i := l.waiters.Len() - 1; i >= 0; i-- {
		if w := l.waiters[i]; l.outlasts(w) {
			heap.Remove(&l.waiters, i)
			w.finish(nil, c.tooLate(w))
		}
	}
	c.leaveIfEmpty(l)
}

// giveUp handles an exchange that failed. What must be told is told later. If Redis
// has refused for good, callers hear that; else it is away. It returns whether the same
// exchange without one endpoint may succeed. c.mu must be held.
func (c *Coordinator) giveUp(asks []ask, ops []op, err error) (again bool) {
	c.untell(ops)
	c.doubt(asks)
	switch {
	case c.spoiledBy(asks, ops, err):
		return true
	case c.closed:
	case refused(err):
		c.quiet = time.Now().Add(lastRetry)
		for _, a := range asks {
			a.lane.fail(err)
		}
	default:
		c.lose(err)
	}
	return false
}
