package coordinator

import (
	"context"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// listen hears when this process's turn has come earlier than it was told, and when
// all are to tell what they know. Messages can be lost: every wait has an end of its
// own. A subscription that had to be renewed says that Redis may have lost more than
// messages.
func (c *Coordinator) listen() {
	subscribe := c.rdb.Subscribe
	if c.sharded {
		subscribe = c.rdb.SSubscribe
	}
	sub := subscribe(c.ctx, c.keys.wakeChannel(c.worker), c.keys.wakeAll())
	c.unsubscribe = func() { sub.Close() }
	messages := sub.ChannelWithSubscriptions(redis.WithChannelHealthCheckInterval(30 * time.Second))
	for confirmed := 0; ; {
		select {
		case m, ok := <-messages:
			if !ok {
				return
			}
			switch m := m.(type) {
			case *redis.Message:
				switch {
				case m.Channel != c.keys.wakeAll():
					c.hear(m.Payload)
				case m.Payload == callLook:
					c.look()
				default:
					c.tellAll()
				}
			case *redis.Subscription:
				if confirmed++; confirmed > 2 {
					c.look()
				}
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// callLook calls all workers to look at an account that Redis has forgotten, or that pauses no
// more (LOOK in account.lua). Any other message to all begins a resumption, in which they go on alone.
const callLook = "look"

// tellAll is what a worker does when Redis wants to hear from everybody.
func (c *Coordinator) tellAll() {
	c.mu.Lock()
	alone := c.whenAway == OwnShare && c.away == nil && !c.closed
	if alone {
		c.lose(errResumption)
	}
	c.mu.Unlock()
	if !alone {
		c.look()
	}
}

// look asks Redis how things stand, and with it whether it knows them still.
func (c *Coordinator) look() {
	c.mu.Lock()
	there, heard := c.away == nil && !c.closed, c.opHeard()
	c.mu.Unlock()
	if !there {
		return
	}
	now := time.Now()
	// Close waits for the answer: Redis must not carry it out after that.
	a, err := c.sendInTime(context.WithoutCancel(c.ctx), nil, heard)
	if err != nil {
		return // a heartbeat, or a caller, will notice
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away == nil {
		c.learn(a.settled.budget, now)
		c.observe(nil, nil, a)
		if c.share.dirty {
			c.signal()
		}
	}
}

// hear takes in a message, "<ms> <endpoint>": come in so long, it will be your turn.
func (c *Coordinator) hear(message string) {
	wait, endpoint, _ := strings.Cut(message, " ")
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.lanes[endpoint]
	if !ok {
		return
	}
	at := time.Now().Add(millis(wait))
	c.drained = earlier(c.drained, at) // nobody calls a worker that is drained
	if l.called.IsZero() || at.Before(l.called) {
		l.called = at // the message may have overtaken the reply that it is about
	}
	if l.placed && at.Before(l.notBefore) {
		l.notBefore = at
		c.signal()
	}
}
