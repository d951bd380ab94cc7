package coordinator

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// listen hears when this process's turn has come earlier than it was told, and when
// all are to tell what they know. Messages can be lost: every wait has an end of its
// own. A subscription that had to be renewed says that Redis may have lost more than
// messages.
func (c *Coordinator) listen() {
	heard := make(chan func())
	go c.receive(heard) // may hang as long as the client's time-outs allow
	for {
		select {
		case takeIn := <-heard:
			takeIn()
		case <-c.ctx.Done():
			return
		}
	}
}

// receive is the subscription's own goroutine: it subscribes, again and again.
func (c *Coordinator) receive(heard chan<- func()) {
	known := false // a subscription was confirmed
	for retry := firstRetry; ; retry = min(2*retry, lastRetry) {
		if c.receiveOnce(known, heard) {
			known, retry = true, firstRetry
		}
		if !sleepAbout(c.ctx, retry) {
			return
		}
	}
}

// channels are those that a worker listens to.
func (c *Coordinator) channels() []string {
	return []string{c.keys.wakeChannel(c.worker), c.keys.wakeAll()}
}

func (c *Coordinator) subscribe() *redis.PubSub {
	if c.sharded {
		return c.rdb.SSubscribe(c.ctx, c.channels()...)
	}
	return c.rdb.Subscribe(c.ctx, c.channels()...)
}

// subscribeAgain has Redis confirm a subscription that stands.
func (c *Coordinator) subscribeAgain(sub *redis.PubSub) error {
	subscribe := sub.Subscribe
	if c.sharded {
		subscribe = sub.SSubscribe
	}
	return subscribe(c.ctx, c.channels()...)
}

// confirmAfter is how long a subscription may be silent before Redis is to confirm it.
const confirmAfter = 30 * time.Second

// receiveOnce subscribes and hands on what is heard, as long as Redis confirms it, and tells
// whether it ever did. The client alone does not do: that the slot is another node's by now (MOVED),
// or that the channels are not granted, it takes for an answer like any other; and where a node
// has ended a subscription since its slot moves (SUNSUBSCRIBE), it listens on to nobody.
func (c *Coordinator) receiveOnce(renewed bool, heard chan<- func()) (confirmed bool) {
	// The client panics if it is a Ring that has no shard left, or is closed, and at a reply
	// of no known form.
	defer func() {
		if fault := recover(); fault != nil {
			c.announce(func() { c.log.Error("the Redis client panics where it is to listen", "panic", fault) })
		}
	}()
	sub := c.subscribe()
	defer sub.Close()
	defer context.AfterFunc(c.ctx, func() { sub.Close() })()
	missing := len(c.channels()) // confirmations
	for {
		patience := confirmAfter
		if missing > 0 {
			patience = c.timeout
		}
		m, err := sub.ReceiveTimeout(c.ctx, patience)
		var takeIn func()
		switch m := m.(type) {
		case *redis.Message:
			takeIn = func() { c.takeIn(m) }
		case *redis.Subscription:
			if strings.HasSuffix(m.Kind, "unsubscribe") {
				c.findMaster()
				return confirmed
			}
			if missing == 0 { // the client has renewed it by itself
				missing, renewed = len(c.channels()), true
			}
			if missing--; missing > 0 {
				continue
			}
			if renewed {
				takeIn = c.look
			}
			confirmed, renewed = true, false
		default:
			silence := net.Error(nil)
			if missing == 0 && errors.As(err, &silence) && silence.Timeout() && c.subscribeAgain(sub) == nil {
				missing = len(c.channels())
				continue
			}
			c.endOfListening(err)
			return confirmed
		}
		if takeIn != nil {
			select {
			case heard <- takeIn:
			case <-c.ctx.Done():
				return confirmed
			}
		}
	}
}

// endOfListening takes in why a subscription has ended. Of a Redis that is away the exchanges tell.
func (c *Coordinator) endOfListening(err error) {
	answer := redis.Error(nil)
	refused := errors.As(err, &answer)
	if refused {
		c.findMaster()
	}
	if refused && !strings.HasPrefix(err.Error(), "MOVED ") {
		c.announce(func() { c.log.Warn("Redis refuses to tell of wake-ups", "err", err) })
	}
}

func (c *Coordinator) takeIn(m *redis.Message) {
	switch {
	case m.Channel != c.keys.wakeAll():
		c.hear(m.Payload)
	case m.Payload == callLook:
		c.look()
	default:
		c.tellAll()
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
