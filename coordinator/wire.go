package coordinator

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	maxOps    = 512   // operations in one call of exchange.lua
	maxOutbox = 10000 // operations kept while Redis is away

	// headStart is how far one step of priority is ahead in the shared queue.
	headStart = time.Minute
)

// An ask is a wish for permits: the operation admit of exchange.lua.
type ask struct {
	lane     *lane
	n        int
	priority Priority
	since    string
	queue    bool
	known    int64 // the account's birth as this worker knows it; 0: not yet
	after    int64 // number of the last permit that this worker had heard of; 0: none yet
}

// An admission is the answer to it.
type admission struct {
	granted int
	last    int64  // number of the last permit
	at      string // instant, in milliseconds of Redis
	budget
	epoch int64
	gate  Gate
	wait  time.Duration
	since string

	paused time.Duration // how long the account, not the endpoint alone, is paused
}

// instant is the moment of the admission in milliseconds of Redis's clock.
func (a admission) instant() float64 {
	ms, _ := strconv.ParseFloat(a.at, 64)
	return ms
}

// A budget is what exchange.lua says of the account.
type budget struct {
	own     int64   // requests of the fleet in the window
	limit   int64   // what the fleet may spend in a window
	credit  float64 // content of the pace bucket
	born    int64   // the account's birth
	workers int64   // alive
	foreign int64   // strangers' requests in the window
}

// A settlement is what exchange.lua says in any case, as far as it is used.
type settlement struct {
	budget
	paused     time.Duration // how long the account is paused
	resumption time.Duration // how long all workers have yet to tell what they spent
}

// An answer is what Redis said in one exchange.
type answer struct {
	repeated bool // an earlier reply was lost
	settled  settlement
	replies  []admission
}

type opKind string

const (
	opRelease opKind = "release"
	opReturn  opKind = "return"
	opLate    opKind = "late"
	opAgain   opKind = "again"
	opBind    opKind = "bind"
	opSeen    opKind = "seen"
	opDone    opKind = "done"
	opLeave   opKind = "leave"
	opSaid    opKind = "said"
	opSpent   opKind = "spent"
	opAdopt   opKind = "adopt"
	opKnew    opKind = "knew"
	opResume  opKind = "resume"
	opForget  opKind = "forget"
)

// An op is one of the other operations of exchange.lua.
type op struct {
	kind   opKind
	lane   *lane
	permit *Permit
	linger time.Duration
	job    string
	said   Feedback
	at     time.Time // of what is told: when it was
	count  int
	tried  bool // Redis may have heard it already
	lot    *lot
	birth  int64
	after  int64    // number of a permit
	heard  []string // leases
}

// stale says whether a pushback is so old that the pause it asked for is over.
func (o op) stale(now time.Time) bool {
	asked := o.said.RetryAfter
	if asked < 0 {
		asked = max(o.said.Reset, 2*time.Second)
	}
	return o.pushback() && now.Sub(o.at) > asked
}

// pushback says whether the operation reports that the API pushed back.
func (o op) pushback() bool {
	return o.kind == opSaid && (o.said.Status == 429 || o.said.Status == 503)
}

// success says whether the operation reports that the API took a request of a permit
// that Redis knows.
func (o op) success() bool {
	return o.kind == opSaid && !o.permit.alone && o.said.Status >= 200 && o.said.Status < 400
}

// weight says how much is lost if the operation is never told.
func (o op) weight() int {
	switch {
	case o.kind == opSaid && !o.pushback():
		return 0 // the next response says it anew
	case o.kind == opSeen || o.kind == opLeave || o.kind == opForget:
		return 1 // the next poll, or heartbeat, says it anew; the place lapses
	case o.kind == opSaid || o.kind == opLate:
		return 2 // others are pushed back as well; the request is counted, a little early
	case o.kind == opAgain || o.kind == opReturn && o.permit.lease == "":
		return 3 // one request too few or too many in a window
	}
	return 4 // a slot stays taken until its lease ends
}

// compact drops reports that say nothing new: pushbacks whose pause is over, and of
// those that are no pushback all but the youngest permit's, for each endpoint. The
// order stays.
func compact(ops []op, now time.Time) []op {
	youngest := make(map[*lane]int)
	for i, o := range ops {
		if o.kind != opSaid || o.pushback() {
			continue
		}
		j, ok := youngest[o.lane]
		if !ok || o.permit.seq > ops[j].permit.seq {
			youngest[o.lane] = i
		}
	}
	kept := ops[:0]
	for i, o := range ops {
		if o.stale(now) {
			continue
		}
		if o.kind != opSaid || o.pushback() || youngest[o.lane] == i {
			kept = append(kept, o)
		}
	}
	return kept
}

// retold returns what of the operations can be said again later although Redis may
// have carried them out.
func retold(ops []op) []op {
	again := slices.DeleteFunc(sayable(ops), func(o op) bool { return o.kind == opResume || o.kind == opKnew || o.kind == opForget })
	for i := range again {
		again[i].tried = true
	}
	return again
}

func (c *Coordinator) policyArgs() []any {
	p := c.policy
	return []any{p.Limit, ms(p.Window), ms(p.Jitter), p.Headroom, p.Burst}
}

// A call is the arguments of one call of exchange.lua. Its memory can be used again.
type call struct {
	lanes      []*lane // with slots, in the order of their numbers from 1
	keys, args []any
	command    []any
}

// number enters a lane and returns its number in this call; 0 for anyEndpoint.
func (x *call) number(l *lane) int {
	if l == nil || l.slots == 0 {
		return 0
	}
	for i, known := range x.lanes {
		if known == l {
			return i + 1
		}
	}
	x.lanes = append(x.lanes, l)
	return len(x.lanes)
}

// write fills in what is to be told, and then what is wished for: what operations
// free can be granted at once, and a pause that they report holds.
func (x *call) write(c *Coordinator, asks []ask, ops []op) {
	x.lanes = x.lanes[:0]
	for i := range ops {
		x.number(ops[i].lane)
	}
	for i := range asks {
		x.number(asks[i].lane)
	}
	x.keys = append(x.keys[:0], c.budgetKeys...)
	x.args = append(append(x.args[:0], c.callerArgs...), len(x.lanes))
	for _, l := range x.lanes {
		x.keys = append(x.keys, l.keys...)
		x.args = append(x.args, l.args...)
	}
	if c.sharded {
		x.args = append(x.args, "sharded")
	}
	for i := range ops {
		if !ops[i].frees() {
			x.writeOp(c, &ops[i])
		}
	}
	for i := range x.lanes {
		x.writeFrees(i+1, ops)
	}
	known := int64(0)
	for i := range asks {
		a := &asks[i]
		if a.known != 0 && a.known != known {
			known = a.known
			x.args = append(x.args, "knew", known)
		}
		since := a.since
		if since == "" {
			since = "0"
		}
		queue := 0
		if a.queue {
			queue = 1
		}
		x.args = append(x.args, "admit", x.number(a.lane), a.n, ms(time.Duration(a.priority)*headStart), since, queue)
	}
	x.command = append(x.command[:0], "evalsha", exchangeHash, len(x.keys))
	x.command = append(append(x.command, x.keys...), x.args...)
}

// frees says whether the operation gives a slot back at once. Redis is told of all
// of them together, last, for nothing that it is told depends on them.
func (o *op) frees() bool { return o.kind == opRelease && o.linger == 0 }

// writeFrees adds the leases of lane number e that end at once.
func (x *call) writeFrees(e int, ops []op) {
	count := len(x.args) + 2
	for i := range ops {
		if o := &ops[i]; o.frees() && o.lane == x.lanes[e-1] {
			if count > len(x.args) {
				x.args = append(x.args, "free", e, 0)
			}
			x.args = append(x.args, &o.permit.lease)
		}
	}
	if n := len(x.args) - count - 1; n > 0 {
		x.args[count] = n
	}
}

func (x *call) writeOp(c *Coordinator, o *op) {
	e, p := x.number(o.lane), o.permit
	x.args = append(x.args, string(o.kind))
	if o.job != "" {
		x.keys = append(x.keys, c.keys.job(o.lane.name, o.job))
	}
	switch o.kind {
	case opRelease:
		x.args = append(x.args, e, &p.lease, ms(o.linger))
	case opReturn:
		x.args = append(x.args, e, &p.lease, &p.seq)
	case opLate:
		x.args = append(x.args, &p.seq)
	case opBind:
		x.args = append(x.args, e, &p.lease, len(x.keys), ms(o.lane.jobTTL))
	case opSeen:
		x.args = append(x.args, e, len(x.keys), ms(o.lane.jobTTL))
	case opDone:
		x.args = append(x.args, e, len(x.keys))
	case opLeave:
		x.args = append(x.args, e)
	case opSpent:
		x.args = append(x.args, o.count, ms(time.Since(o.at)))
	case opAdopt:
		x.args = append(x.args, e, &p.lease)
	case opForget:
		x.args = append(x.args, e, o.after, ms(c.hearsay()), len(o.heard))
		for _, lease := range o.heard {
			x.args = append(x.args, lease)
		}
	case opKnew:
		x.args = append(x.args, o.birth)
	case opResume:
		x.args = append(x.args, ms(time.Since(o.at)))
	case opSaid:
		f, age := o.said, time.Since(o.at)
		x.args = append(x.args, e, &p.seq, &p.admitted, &p.base, &p.epoch, f.Status,
			f.Limit, f.Remaining, ms(older(f.Reset, age)), ms(older(f.RetryAfter, age)), rand.Float64())
	}
}

// send does everything in one call of one script.
func (c *Coordinator) send(ctx context.Context, x *call, asks []ask, ops []op) (a answer, err error) {
	x.write(c, asks, ops)
	values, err := c.process(ctx, x.command)
	if redis.HasErrorPrefix(err, "NOSCRIPT") { // Redis does not know it, or has forgotten it
		x.command[0], x.command[1] = "eval", exchangeSource
		values, err = c.process(ctx, x.command)
	}
	if err != nil {
		return answer{}, c.nameKey(ctx, x.keys, err)
	}
	return parseAnswer(values, asks)
}

// sendInTime is send within the time-out, whatever becomes of the connection.
// Permits that come later go back.
func (c *Coordinator) sendInTime(ctx context.Context, asks []ask, ops []op) (answer, error) {
	asked := time.Now()
	a, err := inTime(ctx, c.timeout, func(ctx context.Context) (answer, error) {
		return c.sendOnce(ctx, asks, ops)
	}, func(late answer) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, r := range late.replies {
			c.undo(asks[i], r, asked)
		}
		c.signal()
	})
	c.meet.Do(func() { close(c.met) })
	c.exchanged(asked, asks, len(ops), a, err)
	return a, err
}

// inTime makes a call that may hang and waits for it no longer than the time-out. If
// it succeeds after that, late gets its result.
func inTime[T any](ctx context.Context, timeout time.Duration, call func(context.Context) (T, error), late func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done, gone := make(chan result), make(chan struct{})
	go func() {
		value, err := call(ctx)
		select {
		case done <- result{value, err}:
		case <-gone:
			if err == nil && late != nil {
				late(value)
			}
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		close(gone)
		var none T
		return none, fmt.Errorf("no answer within %v: %w", timeout, context.Cause(ctx))
	}
}

// How many values exchange.lua answers, and how many more for each ask.
const (
	settledValues  = 11
	admittedValues = 6
)

func parseAnswer(v []string, asks []ask) (answer, error) {
	if want := settledValues + admittedValues*len(asks); len(v) != want {
		return answer{}, nonsense("exchange.lua", "%d values instead of %d", len(v), want)
	}
	r := newReader(v)
	var a answer
	r.skip(1)
	epoch := r.int()
	a.settled.paused, a.settled.resumption = r.duration(), r.duration()
	a.settled.born, a.settled.own, a.settled.limit = r.int(), r.int(), r.int()
	a.settled.credit, a.settled.workers, a.settled.foreign = r.float(), r.int(), r.int()
	at := r.text()
	a.replies = make([]admission, 0, len(asks))
	for i := range asks {
		reply := admission{budget: a.settled.budget, epoch: epoch, at: at, paused: a.settled.paused}
		reply.granted, reply.last, reply.own = int(r.int()), r.int(), r.int()
		reply.gate, reply.wait, reply.since = Gate(r.text()), r.duration(), r.text()
		if reply.granted > asks[i].n {
			return answer{}, nonsense("exchange.lua", "%d granted of %d permits", reply.granted, asks[i].n)
		}
		a.replies = append(a.replies, reply)
	}
	if r.bad >= 0 {
		return answer{}, nonsense("exchange.lua", "value %d is %q", r.bad+1, clean(v[r.bad]))
	}
	return a, nil
}

// A reader reads the values of a reply one after the other. It remembers the first
// that makes no sense.
type reader struct {
	values []string
	next   int
	bad    int // index; below 0: none
}

func newReader(values []string) *reader { return &reader{values: values, bad: -1} }

func (r *reader) skip(n int) { r.next += n }

func (r *reader) text() string {
	r.next++
	return r.values[r.next-1]
}

// int reads a count, a number or an instant: none is negative.
func (r *reader) int() int64 {
	n, err := strconv.ParseInt(r.text(), 10, 64)
	if err != nil || n < 0 {
		r.fail()
		return 0
	}
	return n
}

func (r *reader) float() float64 {
	f, err := strconv.ParseFloat(r.text(), 64)
	if err != nil || math.IsNaN(f) {
		r.fail()
	}
	return f
}

func (r *reader) duration() time.Duration { return millis(r.text()) }

func (r *reader) fail() {
	if r.bad < 0 {
		r.bad = r.next - 1
	}
}

// older is what is left of a duration; unknown ones are -1, and none becomes so.
func older(d, age time.Duration) time.Duration {
	if d <= 0 {
		return d
	}
	return max(d-age, time.Millisecond)
}

// ms writes a duration in the unit of the scripts. Unknown ones are -1.
func ms(d time.Duration) string {
	if d == -1 {
		return "-1"
	}
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 3, 64)
}

// millis reads a duration that a script answered, between 0 and a day.
func millis(s string) time.Duration {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(f) || f < 0 {
		return 0
	}
	return time.Duration(min(f, 86400e3) * float64(time.Millisecond))
}
