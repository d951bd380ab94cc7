package coordinator

import (
	"math/rand/v2"
	"time"
)

// headStart is how far one step of priority is ahead in the shared queue.
const headStart = time.Minute

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
	if len(asks) > 0 && asks[0].after > 0 {
		x.args = append(x.args, string(opHeard), &asks[0].known, &asks[0].after)
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
	case opGranted:
		x.args = append(x.args, o.after, o.count, ms(time.Since(o.at)))
	case opAdopt:
		x.args = append(x.args, e, &p.lease)
	case opForget:
		x.args = append(x.args, e, o.after, ms(c.hearsay()), len(o.heard))
		for _, lease := range o.heard {
			x.args = append(x.args, lease)
		}
	case opHeard:
		x.args = append(x.args, o.birth, o.after)
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
