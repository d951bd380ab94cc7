package coordinator

import (
	"container/heap"
	"context"
	"time"
)

// A lane is one queue of callers in this process: one for each endpoint with
// slots, and one for all requests that need budget alone. Its fields below the
// first group are guarded by Coordinator.mu.
type lane struct {
	name     string // the endpoint's pattern, or anyEndpoint
	number   int    // position in Policy.Endpoints, from 1; 0 for anyEndpoint
	slots    int    // 0 for anyEndpoint
	cap      int    // slots of the strictest policy in the fleet; guarded by Coordinator.mu
	leaseTTL time.Duration
	jobTTL   time.Duration
	keys     []any // of the endpoint, as exchange.lua gets them
	args     []any // the endpoint's name, slots and lease TTL

	waiters   waiters
	placed    bool      // this process has a place in the shared queue
	rank      Priority  // the priority with which it took the place
	notBefore time.Time // when to ask next; zero: at once
	called    time.Time // when another process has told this one to come, since it last asked
	gate      Gate      // what said no last
	paused    time.Time // until then Redis holds it back; of anyEndpoint, the whole account

	granted []grantHeard // leases of jobs, as replies told them lately
	doubt   *doubt       // a reply was lost that may have granted some; nil: none
	deaf    time.Time    // until then not all of them are remembered

	spoiled *KeyError // one of its keys holds something else; nil: none does
	looking bool      // Redis is being asked whether it still does
	look    time.Time // when to ask
	behind  []op      // what is to be told when it does no more

	report *op // the youngest that tells nothing new; it goes with the next exchange

	used int // slots that this process holds
	had  int // slots that it had when Redis went away

	renewed time.Time // the oldest renewal of their leases
	crowded bool      // in this outage the API has said that all slots are taken
}

// unplace notes that Redis knows no place of this lane: whoever waits asks anew, at once.
func (l *lane) unplace() {
	l.placed, l.notBefore, l.called = false, time.Time{}, time.Time{}
}

// A waiter is one call of Acquire.
type waiter struct {
	lane     *lane
	priority Priority
	arrival  uint64
	since    string // instant of an earlier attempt, as Redis gave it
	joined   time.Time
	deadline time.Time // zero: none
	index    int       // in the heap; -1: no longer waiting

	done   chan struct{} // closed when permit or err is set
	permit *Permit
	err    error
}

// finish wakes the caller with a permit or an error.
func (w *waiter) finish(p *Permit, err error) {
	w.serve(p)
	w.err = err
	close(w.done)
}

// serve gives the caller its permit. It is still to be woken.
func (w *waiter) serve(p *Permit) {
	if w.permit = p; p != nil {
		p.waited = p.counted.Sub(w.joined)
	}
}

func (w *waiter) before(v *waiter) bool {
	if w.priority != v.priority {
		return w.priority > v.priority
	}
	if (w.since == "") != (v.since == "") {
		return w.since != ""
	}
	return w.arrival < v.arrival
}

// waiters is a heap: highest priority first, then retries and arrivals in order.
type waiters []*waiter

func (q waiters) Len() int           { return len(q) }
func (q waiters) Less(i, j int) bool { return q[i].before(q[j]) }
func (q waiters) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}
func (q *waiters) Push(x any) {
	w := x.(*waiter)
	w.index = len(*q)
	*q = append(*q, w)
}
func (q *waiters) Pop() any {
	old := *q
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	w.index = -1
	return w
}

// endpoint is the lane's name in public: empty for requests that need budget alone.
func (l *lane) endpoint() string {
	if l.slots == 0 {
		return ""
	}
	return l.name
}

// waitsFor is what those who wait here are kept back by.
func (l *lane) waitsFor() Gate {
	if !l.placed {
		return ""
	}
	return l.gate
}

func (l *lane) pop() *waiter { return heap.Pop(&l.waiters).(*waiter) }

// fail ends the waiting of all. Coordinator.mu must be held.
func (l *lane) fail(err error) {
	for l.waiters.Len() > 0 {
		l.pop().finish(nil, err)
	}
}

// laneOf finds the lane of a request. c.mu must be held.
func (c *Coordinator) laneOf(r Request) (*lane, error) {
	if c.closed {
		return nil, ErrClosed
	}
	if r.Endpoint == "" {
		return c.lanes[anyEndpoint], nil
	}
	l, ok := c.lanes[r.Endpoint]
	if !ok || l.slots == 0 {
		return nil, ErrUnknownEndpoint
	}
	return l, nil
}

// join puts a caller into its lane.
func (c *Coordinator) join(ctx context.Context, r Request) (*waiter, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l, err := c.laneOf(r)
	if err != nil {
		return nil, err
	}
	w := &waiter{
		lane: l, priority: clampPriority(r.Priority), since: sinceOf(r),
		joined: time.Now(), done: make(chan struct{}),
	}
	w.deadline, _ = ctx.Deadline()
	if l.outlasts(w) {
		return nil, c.tooLate(w)
	}
	if c.away != nil && c.whenAway == FailFast {
		return nil, c.awayError()
	}
	c.enlist()
	c.arrivals++
	w.arrival = c.arrivals
	heap.Push(&l.waiters, w)
	// Who has a place waits for its turn, except to improve it.
	if !l.placed || w.priority > l.rank {
		if l.placed {
			l.notBefore = time.Time{}
		}
		c.signal()
	}
	return w, nil
}

// abandon takes a caller out of its lane; false: it has been served already.
func (c *Coordinator) abandon(w *waiter) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.index < 0 {
		return false
	}
	heap.Remove(&w.lane.waiters, w.index)
	c.leaveIfEmpty(w.lane)
	return true
}

// leaveIfEmpty gives the place in the shared queue up when nobody here needs it.
// c.mu must be held.
func (c *Coordinator) leaveIfEmpty(l *lane) {
	if l.waiters.Len() == 0 && l.placed {
		l.placed, l.notBefore = false, time.Time{}
		c.outbox = append(c.outbox, op{kind: opLeave, lane: l})
		c.signal()
	}
}

// lateness is how much later than foreseen those who are not the first in a queue are
// told to come, at most: LATE of account.lua. They are called when they are the first.
const lateness = 400 * time.Millisecond

// outlasts says whether the lane is known to stay shut past the caller's
// deadline. For a slot nothing is known: it may be released any time.
func (l *lane) outlasts(w *waiter) bool {
	switch l.gate {
	case GateBackoff, GatePace, GateWindow, GateDrain:
		return l.placed && !w.deadline.IsZero() && w.deadline.Before(l.notBefore.Add(-lateness))
	}
	return false
}

func (c *Coordinator) tooLate(w *waiter) error {
	e := &WaitError{Account: c.account, Gate: w.lane.gate, Wait: time.Until(w.lane.notBefore), deadline: true}
	if w.lane.slots > 0 {
		e.Endpoint = w.lane.name
	}
	return e
}

func clampPriority(p Priority) Priority { return min(max(p, Batch), Interactive) }

func sinceOf(r Request) string {
	if r.Retry == nil {
		return ""
	}
	return r.Retry.since
}
