package coordinator

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Feedback is what the API said about the budget in one response. Use
// [NoFeedback] as a start: -1 stands for what the response did not say.
type Feedback struct {
	Status     int           // HTTP status code; 0: there was no response
	Limit      int           // requests per window
	Remaining  int           // requests left in the window
	Reset      time.Duration // until the window resets
	RetryAfter time.Duration // how long to wait
}

// NoFeedback is a response that said nothing.
var NoFeedback = Feedback{Limit: -1, Remaining: -1, Reset: -1, RetryAfter: -1}

// Permit is the right to send one request now. It holds one unit of budget,
// which is spent, and, where the endpoint needs it, a slot until one of Release,
// ReleaseAfter, Return, BindJob and Keep ends it; the first of them counts. Until then
// heartbeats renew the slot, however long the work takes. All methods are safe for
// concurrent use and none waits for Redis.
type Permit struct {
	c        *Coordinator
	lane     *lane
	lease    string // empty: no slot
	seq      int64
	base     int64  // number of the last permit that had left the window at the admission
	epoch    int64  // how often the API had pushed back by then
	admitted string // instant of Redis
	since    string // instant of Redis from which it waited
	asked    time.Time
	counted  time.Time // when the own share counted it
	waited   time.Duration
	gate     Gate // what it waited for last
	alone    bool // taken from the own share while Redis was away

	// Guarded by Coordinator.mu.
	unknown bool      // Redis does not know the lease
	knownTo int64     // the birth of the account that was told of it last; 0: of none yet
	gone    bool      // the lease was lost
	renewed time.Time // the lease lives at least leaseTTL from here

	mu       sync.Mutex
	ended    bool
	reported bool
	sent     bool
	sending  bool          // some of the request may have left
	valid    bool          // Valid has said so, and the request may soon be under way
	cause    error         // why the lease was lost
	lost     chan struct{} // closed then; nil: nobody has asked for it
	watches  []*lostWatch
}

func (c *Coordinator) newPermit(l *lane, r *admission, seq int64, asked, now time.Time) *Permit {
	p := &Permit{
		c: c, lane: l, seq: seq, base: r.last - r.own, epoch: r.epoch,
		admitted: r.at, since: r.since, asked: asked, counted: now, renewed: asked, knownTo: r.born,
	}
	if l.slots > 0 {
		p.lease = c.leaseName(r.at, seq)
	}
	return p
}

// leaseName names a lease as exchange.lua does.
func (c *Coordinator) leaseName(instant string, number int64) string {
	name := append(make([]byte, 0, 128), c.worker...)
	name = append(append(append(name, ':'), instant...), ':')
	return string(strconv.AppendInt(name, number, 10))
}

// Waited is the time between the call of Acquire and the grant.
func (p *Permit) Waited() time.Duration { return p.waited }

// Gate is what the permit waited for last; empty if nothing kept it back.
func (p *Permit) Gate() Gate { return p.gate }

// Release gives the slot back; the budget stays spent.
func (p *Permit) Release() { p.end(op{kind: opRelease}) }

// ReleaseAfter gives the slot back after d: the call was broken off, and the API
// may take this long to notice.
func (p *Permit) ReleaseAfter(d time.Duration) {
	p.end(op{kind: opRelease, linger: min(max(d, 0), p.lane.leaseTTL)})
}

// Return gives slot and budget back: the request was never sent.
func (p *Permit) Return() { p.end(op{kind: opReturn}) }

// BindJob hands the slot over to a job that the call has started. It is then
// held, whatever becomes of this process, until [Coordinator.JobDone] is called
// for the job, or until nobody has seen it for the endpoint's JobTTL. On an
// endpoint without JobTTL, or with a job whose name is no good (1 to 256
// printable ASCII characters), it does the same as Keep.
func (p *Permit) BindJob(job string) {
	if p.lane.jobTTL == 0 || !validJob(job) {
		p.Keep()
		return
	}
	p.end(op{kind: opBind, job: job})
}

// Keep leaves the slot taken until its lease ends by itself: the call may have
// started something that nobody can watch.
func (p *Permit) Keep() { p.end(op{}) }

// Sent says that the request has just been written to the network. If that was
// unusually long after the admission, the account counts it from now. Each
// further call says that it was written once more, as net/http does with some
// requests whose connection was cut; the account counts that as well.
func (p *Permit) Sent() {
	p.mu.Lock()
	again := p.sent
	p.sent = true
	p.mu.Unlock()
	if !again && time.Since(p.asked) <= p.c.policy.Jitter/2 {
		return
	}
	o := op{kind: opLate, lane: p.c.lanes[anyEndpoint], permit: p}
	if again || p.alone {
		o.kind = opAgain // of a permit that Redis does not know, this says the same
	}
	p.c.post(o)
}

// brokenOff is how long the API is given to notice that a call has ended.
const brokenOff = time.Second

// Sending says that the request is about to be written: some of it may be with the API long
// before [Permit.Sent]. Close takes such a call for one that goes on for a moment, or that has
// started its job.
func (p *Permit) Sending() {
	p.mu.Lock()
	p.sending = true
	p.mu.Unlock()
}

// endAtClose ends a permit that is held still when the coordinator is closed.
func (p *Permit) endAtClose() {
	p.mu.Lock()
	valid, sending := p.valid, p.sending || p.sent
	p.mu.Unlock()
	switch {
	case sending && p.lane.jobTTL > 0:
		p.Keep() // it may have started a job
	case sending || valid:
		p.ReleaseAfter(brokenOff)
	default:
		p.Release()
	}
}

// Report passes on what the API said. Only the first report of a permit counts.
func (p *Permit) Report(f Feedback) {
	p.mu.Lock()
	first := !p.reported
	p.reported = true
	p.mu.Unlock()
	if !first {
		return
	}
	f = f.clamp()
	p.c.heard(op{kind: opSaid, lane: p.lane, permit: p, said: f, at: time.Now()})
	if hook := p.c.events.Reported; hook != nil {
		hook(Report{p.c.account, p.lane.endpoint(), f})
	}
}

// Lost is closed when the slot's lease was lost before it was released. Whoever
// holds the permit then runs a call that the fleet does not know of.
func (p *Permit) Lost() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost == nil {
		p.lost = make(chan struct{})
		if p.cause != nil {
			close(p.lost)
		}
	}
	return p.lost
}

// Valid says whether the request may still be sent. A process that was stopped after
// the grant (a debugger, a frozen machine) finds out before it sends anything, and
// not with its next heartbeat: the error is [ErrLeaseLost] if the slot was lost, or
// cannot have been renewed in time by the clock of this process, and [ErrStale] if
// the permit is older than the window, which counts it no more. Such a permit is to
// be given back with Return, and another one to be asked for. A request whose permit was
// valid may soon be under way: Close leaves its slot taken for a moment.
func (p *Permit) Valid() error {
	c := p.c
	c.mu.Lock()
	if c.held[p] && time.Since(p.renewed) > p.lane.leaseTTL {
		c.mu.Unlock()
		c.expire(time.Now())
		c.mu.Lock()
	}
	gone := p.gone // whoever found out may not have told the permit yet
	c.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.cause != nil:
		return p.cause
	case gone:
		return ErrLeaseLost
	}
	if time.Since(p.asked) > c.policy.Window {
		return ErrStale
	}
	p.valid = true
	return nil
}

// Context returns a child of parent that ends with the cause [ErrLeaseLost] when
// the lease is lost. The function frees its resources and must be called.
func (p *Permit) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	if p.lease == "" {
		return ctx, func() { cancel(nil) }
	}
	w := &lostWatch{cancel}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause != nil {
		cancel(p.cause)
	} else {
		p.watches = append(p.watches, w)
	}
	return ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.watches = slices.DeleteFunc(p.watches, func(v *lostWatch) bool { return v == w })
		cancel(nil)
	}
}

// A lostWatch is a context that ends if the lease is lost.
type lostWatch struct{ cancel context.CancelCauseFunc }

func (p *Permit) end(o op) {
	p.mu.Lock()
	first := !p.ended
	p.ended = true
	p.mu.Unlock()
	if !first || p.lease == "" && o.kind != opReturn {
		return
	}
	o.lane, o.permit = p.lane, p
	c := p.c
	c.mu.Lock()
	held := p.lease != "" && c.unhold(p)
	if held && c.away != nil && o.kind != opRelease && o.kind != opReturn {
		p.lane.had-- // the slot goes on being taken
	}
	if o.kind == opReturn {
		c.share.untake(p.counted, p.alone)
	}
	switch {
	case p.alone:
		c.append(p.endAlone(o)...)
	case o.kind != "":
		c.append(o)
	}
	c.mu.Unlock()
	c.signal()
}

// endAlone returns what Redis must be told of the end of a permit that it did not
// grant. Coordinator.mu must be held.
func (p *Permit) endAlone(o op) []op {
	if o.kind == opReturn {
		if p.lease == "" {
			return nil
		}
		o.kind = opRelease
	}
	switch {
	case !p.unknown && o.kind == "":
		return nil
	case !p.unknown:
		return []op{o}
	case o.kind == opRelease && o.linger == 0:
		return nil
	}
	adopt := op{kind: opAdopt, lane: o.lane, permit: p}
	if o.kind == "" {
		return []op{adopt}
	}
	return []op{adopt, o}
}

func (p *Permit) opReturn() op {
	p.ended = true
	return op{kind: opReturn, lane: p.lane, permit: p}
}

// lose closes Lost, once, unless the permit has ended.
func (p *Permit) lose(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.cause != nil {
		return
	}
	p.cause = cause
	if p.lost != nil {
		close(p.lost)
	}
	for _, w := range p.watches {
		w.cancel(cause)
	}
	p.watches = nil
}

// clamp keeps what the API said within sane bounds; what makes no sense becomes
// unknown.
func (f Feedback) clamp() Feedback {
	if f.Limit < 1 || f.Limit > maxLimit {
		f.Limit = -1
	}
	if f.Remaining < 0 {
		f.Remaining = -1
	}
	f.Remaining = min(f.Remaining, maxLimit)
	f.Reset = clampDuration(f.Reset)
	f.RetryAfter = clampDuration(f.RetryAfter)
	return f
}

func clampDuration(d time.Duration) time.Duration {
	if d < 0 {
		return -1
	}
	return min(d, 24*time.Hour)
}

func validJob(id string) bool {
	if id == "" || len(id) > 256 {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' {
			return false
		}
	}
	return true
}
