package coordinator

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/lua"
)

const (
	maxOps    = 256   // operations in one call of settle.lua
	maxOutbox = 10000 // operations kept while Redis is away

	// headStart is how far one step of priority is ahead in the shared queue.
	headStart = time.Minute
)

// An ask is a wish for permits: the arguments of admit.lua.
type ask struct {
	lane     *lane
	n        int
	priority Priority
	since    string
	queue    bool
	known    int64 // the account's birth, as far as this worker depends on it
}

// An admission is the reply of admit.lua.
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

// An account is what both scripts say of the budget at that moment.
type budget struct {
	own     int64   // requests of the fleet in the window
	limit   int64   // what the fleet may spend in a window
	credit  float64 // content of the pace bucket
	born    int64   // the account's birth
	workers int64   // alive
	foreign int64   // strangers' requests in the window
}

// A settlement is the reply of settle.lua, as far as it is used.
type settlement struct {
	budget
	paused     time.Duration // how long the account is paused
	resumption time.Duration // how long all workers have yet to tell what they spent
}

// An answer is what Redis said in one exchange.
type answer struct {
	settled settlement
	replies []admission
	early   bool // Redis admitted before it settled
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
)

// An op is one operation of settle.lua.
type op struct {
	kind   opKind
	lane   *lane
	permit *Permit
	linger time.Duration
	job    string
	said   Feedback
	at     time.Time // of what is told: when it was
	count  int
	lot    *lot
	birth  int64
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

// retold returns what of the operations can be said again although Redis may
// have carried them out: all but the return of budget, which would free twice.
func retold(ops []op) []op {
	again := make([]op, 0, len(ops))
	for _, o := range ops {
		switch o.kind {
		case opResume, opKnew:
			continue
		case opReturn:
			if o.permit.lease == "" {
				continue
			}
			o.kind = opRelease
		}
		again = append(again, o)
	}
	return again
}

func (c *Coordinator) policyArgs() []any {
	p := c.policy
	return []any{p.Limit, ms(p.Window), ms(p.Jitter), p.Headroom, p.Burst}
}

func (c *Coordinator) admitArgs(a ask) ([]string, []any) {
	keys := c.keys.budget()
	if a.lane.slots > 0 {
		keys = append(keys, c.keys.endpoint(a.lane.name)...)
	}
	since := a.since
	if since == "" {
		since = "0"
	}
	queue := "0"
	if a.queue {
		queue = "1"
	}
	args := append([]any{c.worker, a.lane.name, a.n}, c.policyArgs()...)
	return keys, append(args, a.lane.slots, ms(a.lane.leaseTTL),
		ms(time.Duration(a.priority)*headStart), since, queue, a.known)
}

func (c *Coordinator) settleArgs(ops []op) ([]string, []any) {
	keys := c.keys.budget()
	numbers := make(map[*lane]int)
	var names []any
	for _, o := range ops {
		if o.lane != nil && o.lane.slots > 0 && numbers[o.lane] == 0 {
			numbers[o.lane] = len(numbers) + 1
			keys = append(keys, c.keys.endpoint(o.lane.name)...)
			names = append(names, o.lane.name, o.lane.slots)
		}
	}
	args := append([]any{c.worker}, c.policyArgs()...)
	args = append(args, len(numbers))
	args = append(args, names...)
	for _, o := range ops {
		e, p := numbers[o.lane], o.permit
		args = append(args, string(o.kind))
		if o.job != "" {
			keys = append(keys, c.keys.job(o.lane.name, o.job))
		}
		switch o.kind {
		case opRelease:
			args = append(args, e, p.lease, ms(o.linger))
		case opReturn:
			args = append(args, e, p.lease, p.seq)
		case opLate:
			args = append(args, p.seq)
		case opBind:
			args = append(args, e, p.lease, len(keys), ms(o.lane.jobTTL))
		case opSeen:
			args = append(args, e, len(keys), ms(o.lane.jobTTL))
		case opDone:
			args = append(args, e, len(keys))
		case opLeave:
			args = append(args, e, o.lane.name)
		case opSpent:
			args = append(args, o.count, ms(time.Since(o.at)))
		case opAdopt:
			args = append(args, e, p.lease, ms(o.lane.leaseTTL))
		case opKnew:
			args = append(args, o.birth)
		case opResume:
			args = append(args, ms(time.Since(o.at)))
		case opSaid:
			f, age := o.said, time.Since(o.at)
			args = append(args, e, p.seq, p.admitted, p.base, p.epoch, f.Status,
				f.Limit, f.Remaining, ms(older(f.Reset, age)), ms(older(f.RetryAfter, age)), rand.Float64())
		}
	}
	return keys, args
}

// send does everything in one round trip. Operations go first: what they free can
// be granted at once, and a pause that they report holds. After Redis has lost
// its scripts the order may come out wrong; early then says so.
func (c *Coordinator) send(ctx context.Context, asks []ask, ops []op) (a answer, err error) {
	type call struct {
		script *redis.Script
		keys   []string
		args   []any
		cmd    *redis.Cmd
	}
	calls := make([]call, 0, len(asks)+1)
	if len(ops) > 0 || len(asks) == 0 {
		keys, args := c.settleArgs(ops)
		calls = append(calls, call{script: lua.Settle, keys: keys, args: args})
	}
	for _, a := range asks {
		keys, args := c.admitArgs(a)
		calls = append(calls, call{script: lua.Admit, keys: keys, args: args})
	}
	if len(calls) == 1 {
		one := &calls[0]
		one.cmd = one.script.Run(ctx, c.rdb, one.keys, one.args...)
	} else {
		pipe := c.rdb.Pipeline()
		for i := range calls {
			calls[i].cmd = calls[i].script.EvalSha(ctx, pipe, calls[i].keys, calls[i].args...)
		}
		if _, err := pipe.Exec(ctx); err != nil && !redis.HasErrorPrefix(err, "NOSCRIPT") {
			return answer{}, err
		}
		a.early = len(ops) > 0 && redis.HasErrorPrefix(calls[0].cmd.Err(), "NOSCRIPT")
		for i := range calls {
			if one := &calls[i]; redis.HasErrorPrefix(one.cmd.Err(), "NOSCRIPT") {
				one.cmd = one.script.Run(ctx, c.rdb, one.keys, one.args...)
			}
		}
	}
	a.replies = make([]admission, 0, len(asks))
	for i, call := range calls {
		values, err := call.cmd.StringSlice()
		if err != nil {
			return answer{}, err
		}
		if i < len(calls)-len(asks) {
			if a.settled, err = parseSettlement(values); err != nil {
				return answer{}, err
			}
			continue
		}
		reply, err := parseAdmission(values, asks[len(a.replies)].n)
		if err != nil {
			return answer{}, err
		}
		a.replies = append(a.replies, reply)
	}
	return a, nil
}

// sendInTime is send within the time-out, whatever becomes of the connection.
// Permits that come later go back.
func (c *Coordinator) sendInTime(ctx context.Context, asks []ask, ops []op) (answer, error) {
	asked := time.Now()
	a, err := inTime(ctx, c.timeout, func(ctx context.Context) (answer, error) {
		return c.send(ctx, asks, ops)
	}, func(late answer) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, r := range late.replies {
			c.undo(asks[i], r, asked)
		}
		c.signal()
	})
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

func parseSettlement(v []string) (settlement, error) {
	if len(v) != 10 {
		return settlement{}, fmt.Errorf("fleetlimit: settle.lua answered %d values instead of 10", len(v))
	}
	b, err := parseBudget(v, 5, 6, 7, 4, 8, 9)
	if err != nil {
		return settlement{}, fmt.Errorf("fleetlimit: settle.lua answered %w", err)
	}
	return settlement{budget: b, paused: millis(v[2]), resumption: millis(v[3])}, nil
}

// parseBudget reads the values of a reply at these places.
func parseBudget(v []string, own, limit, credit, born, workers, foreign int) (b budget, err error) {
	for _, n := range []struct {
		i  int
		to *int64
	}{{own, &b.own}, {limit, &b.limit}, {born, &b.born}, {workers, &b.workers}, {foreign, &b.foreign}} {
		if *n.to, err = strconv.ParseInt(v[n.i], 10, 64); err != nil || *n.to < 0 {
			return budget{}, fmt.Errorf("%q as value %d", v[n.i], n.i+1)
		}
	}
	if b.credit, err = strconv.ParseFloat(v[credit], 64); err != nil || math.IsNaN(b.credit) {
		return budget{}, fmt.Errorf("%q as value %d", v[credit], credit+1)
	}
	return b, nil
}

func parseAdmission(v []string, n int) (admission, error) {
	if len(v) != 14 {
		return admission{}, fmt.Errorf("fleetlimit: admit.lua answered %d values instead of 14", len(v))
	}
	a := admission{at: v[2], gate: Gate(v[5]), wait: millis(v[6]), since: v[7], paused: millis(v[13])}
	var err error
	if a.budget, err = parseBudget(v, 3, 8, 9, 10, 11, 12); err != nil {
		return admission{}, fmt.Errorf("fleetlimit: admit.lua answered %w", err)
	}
	for _, n := range []struct {
		i  int
		to *int64
	}{{1, &a.last}, {4, &a.epoch}} {
		if *n.to, err = strconv.ParseInt(v[n.i], 10, 64); err != nil {
			return admission{}, fmt.Errorf("fleetlimit: admit.lua answered %q as value %d", v[n.i], n.i+1)
		}
	}
	a.granted, err = strconv.Atoi(v[0])
	if err != nil || a.granted < 0 || a.granted > n {
		return admission{}, fmt.Errorf("fleetlimit: admit.lua granted %q of %d permits", v[0], n)
	}
	return a, nil
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
