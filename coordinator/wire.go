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
}

// An admission is the reply of admit.lua.
type admission struct {
	granted int
	last    int64  // number of the last permit
	at      string // instant, in milliseconds of Redis
	own     int64
	epoch   int64
	gate    Gate
	wait    time.Duration
	since   string
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
)

// An op is one operation of settle.lua.
type op struct {
	kind   opKind
	lane   *lane
	permit *Permit
	linger time.Duration
	job    string
	said   Feedback
}

// pushback says whether the operation reports that the API pushed back.
func (o op) pushback() bool {
	return o.kind == opSaid && (o.said.Status == 429 || o.said.Status == 503)
}

// compact drops reports that say nothing new: of those that are no pushback, the
// youngest permit's counts, for each endpoint. The order stays.
func compact(ops []op) []op {
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
		if o.kind == opReturn {
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
		ms(time.Duration(a.priority)*headStart), since, queue)
}

func (c *Coordinator) settleArgs(ops []op) ([]string, []any) {
	keys := c.keys.budget()
	numbers := make(map[*lane]int)
	var names []any
	for _, o := range ops {
		if o.lane.slots > 0 && numbers[o.lane] == 0 {
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
		case opSaid:
			f := o.said
			args = append(args, e, p.seq, p.admitted, p.base, p.epoch, f.Status,
				f.Limit, f.Remaining, ms(f.Reset), ms(f.RetryAfter), rand.Float64())
		}
	}
	return keys, args
}

// send does everything in one round trip. Operations go first: what they free can
// be granted at once, and a pause that they report holds. After Redis has lost
// its scripts the order may come out wrong; early then says so.
func (c *Coordinator) send(ctx context.Context, asks []ask, ops []op) (replies []admission, early bool, err error) {
	type call struct {
		script *redis.Script
		keys   []string
		args   []any
		cmd    *redis.Cmd
	}
	calls := make([]call, 0, len(asks)+1)
	if len(ops) > 0 {
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
			return nil, false, err
		}
		early = len(ops) > 0 && redis.HasErrorPrefix(calls[0].cmd.Err(), "NOSCRIPT")
		for i := range calls {
			if one := &calls[i]; redis.HasErrorPrefix(one.cmd.Err(), "NOSCRIPT") {
				one.cmd = one.script.Run(ctx, c.rdb, one.keys, one.args...)
			}
		}
	}
	replies = make([]admission, 0, len(asks))
	for i, call := range calls {
		values, err := call.cmd.StringSlice()
		if err != nil {
			return nil, false, err
		}
		if i < len(calls)-len(asks) {
			continue
		}
		reply, err := parseAdmission(values, asks[len(replies)].n)
		if err != nil {
			return nil, false, err
		}
		replies = append(replies, reply)
	}
	return replies, early, nil
}

func (c *Coordinator) admitOnce(ctx context.Context, a ask) (admission, error) {
	replies, _, err := c.send(ctx, []ask{a}, nil)
	if err != nil {
		return admission{}, err
	}
	return replies[0], nil
}

func parseAdmission(v []string, n int) (admission, error) {
	if len(v) != 8 {
		return admission{}, fmt.Errorf("fleetlimit: admit.lua answered %d values instead of 8", len(v))
	}
	a := admission{at: v[2], gate: Gate(v[5]), wait: millis(v[6]), since: v[7]}
	var err error
	for i, to := range map[int]*int64{1: &a.last, 3: &a.own, 4: &a.epoch} {
		if *to, err = strconv.ParseInt(v[i], 10, 64); err != nil {
			return admission{}, fmt.Errorf("fleetlimit: admit.lua answered %q as value %d", v[i], i+1)
		}
	}
	a.granted, err = strconv.Atoi(v[0])
	if err != nil || a.granted < 0 || a.granted > n {
		return admission{}, fmt.Errorf("fleetlimit: admit.lua granted %q of %d permits", v[0], n)
	}
	return a, nil
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
