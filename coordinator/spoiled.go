package coordinator

import (
	"context"
	"errors"
	"slices"
	"time"
)

// An endpoint is spoiled while one of its keys in Redis holds something that is not the
// fleet's. A script that meets it fails, with all that it was told and asked. So what
// concerns a spoiled endpoint stays behind, its callers hear the [KeyError], and the
// others go on. Whether the key has been mended is asked for by itself: when somebody
// wants a slot, and every two seconds.

// spoil notes that an endpoint is spoiled, if an error says so, and fails those who wait
// for its slots. c.mu must be held.
func (c *Coordinator) spoil(err error) *lane {
	var bad *KeyError
	if !errors.As(err, &bad) {
		return nil
	}
	l := c.laneOfKey(bad.Key)
	if l == nil {
		return nil
	}
	l.spoiled, l.look = bad, time.Now().Add(lastRetry)
	l.unplace()
	l.fail(err)
	for p := range c.held {
		if p.lane == l {
			p.knownTo = untoldOf // until it is told again, no heartbeat says that it is lost
		}
	}
	c.signal() // the dispatcher may sleep, and is to look
	return l
}

// untoldOf is the birth of no account: it was told of no lease.
const untoldOf = -1

// spoiledBy is spoil after an exchange. It returns whether the same without what concerns
// that endpoint is another one, which may succeed. c.mu must be held.
func (c *Coordinator) spoiledBy(asks []ask, ops []op, err error) bool {
	l := c.spoil(err)
	return l != nil && (slices.ContainsFunc(asks, func(a ask) bool { return a.lane == l }) ||
		slices.ContainsFunc(ops, func(o op) bool { return o.lane == l }))
}

// laneOfKey finds the endpoint whose key this is; nil: it is not an endpoint's.
func (c *Coordinator) laneOfKey(key string) *lane {
	for _, l := range c.lanes {
		if slices.Contains(l.keys, any(key)) {
			return l
		}
	}
	return nil
}

// lookAtSpoiled has Redis asked for each spoiled endpoint whose time has come, and says
// how long it is until the next one's. c.mu must be held.
func (c *Coordinator) lookAtSpoiled(now time.Time) time.Duration {
	next := time.Hour
	for _, l := range c.lanes {
		switch {
		case l.spoiled == nil || l.looking:
		case l.waiters.Len() > 0 || !now.Before(l.look):
			l.looking = true
			bad := l.spoiled
			c.done.Go(func() { c.lookAt(l, bad) })
		default:
			next = min(next, l.look.Sub(now))
		}
	}
	return next
}

// lookAt asks whether a key has been mended. Then what has stayed behind is told, and
// which leases are held: who mended the key has deleted them.
func (c *Coordinator) lookAt(l *lane, bad *KeyError) {
	problem, err := inTime(c.ctx, c.timeout, func(ctx context.Context) (error, error) {
		return checkKey(ctx, c.rdb, bad.Key, bad.Err)
	}, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	l.looking = false
	defer c.signal()
	switch {
	case c.closed || c.away != nil:
	case err != nil && !refused(err):
		c.lose(err)
	case err != nil:
		l.fail(err)
		l.look = time.Now().Add(lastRetry)
	case problem != nil:
		c.spoil(problem)
	default:
		l.spoiled = nil
		c.outbox, l.behind = append(l.behind, c.outbox...), nil
		c.trimOutbox()
		for p := range c.held {
			if p.lane == l {
				p.unknown, c.share.dirty = true, true
			}
		}
	}
}

// stayBehind takes what concerns spoiled endpoints out of the outbox, once: it can be much, and
// the others' exchanges must not be the slower for it. But what the API said there of the whole
// account concerns all. c.mu must be held.
func (c *Coordinator) stayBehind() {
	spoiled := false
	for i := range c.outbox {
		switch o := &c.outbox[i]; {
		case !o.ofSpoiled():
		case o.kind == opSaid && !o.ofCap():
			o.lane = c.lanes[anyEndpoint]
		default:
			spoiled = true
		}
	}
	if !spoiled {
		return
	}
	c.outbox = slices.DeleteFunc(c.outbox, func(o op) bool {
		if !o.ofSpoiled() {
			return false
		}
		if l := o.lane; o.kind != opLeave { // else it could end a place that is taken later; it lapses
			l.behind, _ = trim(append(l.behind, o))
		}
		return true
	})
}

// ofSpoiled says whether an operation needs the keys of a spoiled endpoint.
func (o *op) ofSpoiled() bool { return o.lane != nil && o.lane.spoiled != nil }
