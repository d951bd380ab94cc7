package coordinator

import (
	"slices"
	"time"
)

const (
	maxOps    = 512   // operations in one call of exchange.lua
	maxOutbox = 10000 // operations kept while Redis is away
)

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
	opGranted opKind = "granted"
	opAdopt   opKind = "adopt"
	opKnew    opKind = "knew"
	opResume  opKind = "resume"
	opForget  opKind = "forget"
	opHeard   opKind = "heard"
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
func (o *op) stale(now time.Time) bool {
	asked := o.said.RetryAfter
	if asked < 0 {
		asked = max(o.said.Reset, 2*time.Second)
	}
	return o.pushback() && now.Sub(o.at) > asked
}

// pushback says whether the operation reports that the API pushed back.
func (o *op) pushback() bool {
	return o.kind == opSaid && (o.said.Status == 429 || o.said.Status == 503)
}

// ofCap says whether the API pushed back for too many calls at once at the endpoint, and not
// for the account.
func (o *op) ofCap() bool { return o.said.Status == 429 && o.said.Remaining > 0 }

// success says whether the operation reports that the API took a request of a permit
// that Redis knows.
func (o *op) success() bool {
	return o.kind == opSaid && !o.permit.alone && o.said.Status >= 200 && o.said.Status < 400
}

// weight says how much is lost if the operation is never told.
func (o *op) weight() int {
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
	for i := range ops {
		o := &ops[i]
		if o.kind != opSaid || o.pushback() {
			continue
		}
		j, ok := youngest[o.lane]
		if !ok || o.permit.seq > ops[j].permit.seq {
			youngest[o.lane] = i
		}
	}
	kept := 0
	for i := range ops {
		o := &ops[i]
		if o.kind == opSaid && (o.stale(now) || !o.pushback() && youngest[o.lane] != i) {
			continue
		}
		if kept != i {
			ops[kept] = *o
		}
		kept++
	}
	return ops[:kept]
}

// retold returns what of the operations can be said again later although Redis may
// have carried them out.
func retold(ops []op) []op {
	again := slices.DeleteFunc(sayable(ops), func(o op) bool {
		return o.kind == opResume || o.kind == opKnew || o.kind == opForget || o.kind == opHeard
	})
	for i := range again {
		again[i].tried = true
	}
	return again
}
