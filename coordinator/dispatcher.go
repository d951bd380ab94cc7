package coordinator

import (
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
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
	for c.ctx.Err() == nil {
		asks, ops, next, last := c.collect(time.Now())
		if len(asks)+len(ops) > 0 {
			c.exchange(asks, ops)
			continue
		}
		if last {
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

// collect takes the work of the next exchange: the outbox, and a wish for each
// lane whose time has come. Without work it says when there will be some; last
// is true when there never will be.
func (c *Coordinator) collect(now time.Time) (asks []ask, ops []op, next time.Duration, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next = time.Hour
	last = c.closed && len(c.outbox) == 0
	if wait := c.retryAt.Sub(now); c.failing > 0 && wait > 0 {
		return nil, nil, wait, last
	}
	if len(c.outbox) > 0 {
		n := min(len(c.outbox), maxOps)
		ops = compact(c.outbox[:n:n])
		c.outbox = append([]op(nil), c.outbox[n:]...)
	}
	if c.closed {
		return nil, ops, next, last
	}
	for _, l := range c.lanes {
		if l.waiters.Len() == 0 {
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
			priority: first.priority, since: first.since, queue: true,
		})
	}
	return asks, ops, next, false
}

// exchange is one round trip. No lock is held meanwhile.
func (c *Coordinator) exchange(asks []ask, ops []op) {
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	asked := time.Now()
	replies, early, err := c.send(ctx, asks, ops)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(err)
	if err != nil {
		c.giveUp(asks, ops, err)
		return
	}
	for i, a := range asks {
		if early {
			replies[i] = c.undo(a, replies[i], asked)
		}
		c.serve(a, replies[i], asked)
	}
}

// undo gives back what was granted before Redis had heard of a pause, and lets
// the lane ask again. c.mu must be held.
func (c *Coordinator) undo(a ask, r admission, asked time.Time) admission {
	for i := range r.granted {
		p := c.newPermit(a.lane, r, r.last-int64(i), asked)
		c.outbox = append(c.outbox, p.opReturn())
	}
	return admission{}
}

// serve hands granted permits to those who wait, and puts the rest to sleep.
func (c *Coordinator) serve(a ask, r admission, asked time.Time) {
	l := a.lane
	l.trouble = nil
	for i := range r.granted {
		p := c.newPermit(l, r, r.last-int64(r.granted)+1+int64(i), asked)
		if l.waiters.Len() == 0 || c.closed {
			c.outbox = append(c.outbox, p.opReturn())
			continue
		}
		c.hold(p)
		l.pop().finish(p, nil)
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

// giveUp handles an exchange that failed: what must be told is told later, and
// callers wait for Redis, unless it has refused for good. c.mu must be held.
func (c *Coordinator) giveUp(asks []ask, ops []op, err error) {
	c.outbox = append(retold(ops), c.outbox...)
	if len(c.outbox) > maxOutbox {
		c.outbox = c.outbox[:maxOutbox]
	}
	for _, a := range asks {
		a.lane.trouble = err
		if !refused(err) {
			continue
		}
		for a.lane.waiters.Len() > 0 {
			a.lane.pop().finish(nil, err)
		}
	}
}

// note counts failures in a row, says the first and the recovery once each, and
// sets when to try again: after 50 ms, doubling to 2 s, with jitter. c.mu must be
// held.
func (c *Coordinator) note(err error) {
	if err == nil {
		if c.failing > 0 {
			c.log.Info("Redis answers again", "failures", c.failing)
		}
		c.failing = 0
		return
	}
	if c.ctx.Err() != nil {
		return
	}
	if c.failing == 0 {
		c.log.Warn("Redis does not answer; callers wait", "err", err)
	}
	c.failing++
	wait := min(2*time.Second, 50*time.Millisecond<<min(c.failing-1, 6))
	c.retryAt = time.Now().Add(wait/2 + rand.N(wait))
}

// passing lists the answers of Redis that asking again may change.
var passing = []string{
	"LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK",
	"OOM", "BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED", "NOSCRIPT", "ERR max number of clients",
}

// refused tells an answer of Redis that will stay (a wrong password, a key of
// another type) from one that may pass, and from no answer at all.
func refused(err error) bool {
	var answer redis.Error
	if !errors.As(err, &answer) {
		return false
	}
	return !slices.ContainsFunc(passing, func(prefix string) bool {
		return strings.HasPrefix(answer.Error(), prefix)
	})
}

// listen hears when this process's turn has come earlier than it was told.
// Messages can be lost: every wait has an end of its own.
func (c *Coordinator) listen() {
	sub := c.rdb.Subscribe(c.ctx, c.keys.wakeChannel(c.worker))
	defer sub.Close()
	messages := sub.Channel(redis.WithChannelHealthCheckInterval(30 * time.Second))
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return
			}
			if wait, endpoint, ok := strings.Cut(m.Payload, " "); ok {
				c.hear(endpoint, millis(wait))
			}
		case <-c.ctx.Done():
			return
		}
	}
}

func (c *Coordinator) hear(endpoint string, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.lanes[endpoint]
	if !ok {
		return
	}
	at := time.Now().Add(wait)
	if l.called.IsZero() || at.Before(l.called) {
		l.called = at // the message may have overtaken the reply that it is about
	}
	if l.placed && at.Before(l.notBefore) {
		l.notBefore = at
		c.signal()
	}
}
