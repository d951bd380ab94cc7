package coordinator

import (
	"math"
	"strconv"
	"time"
)

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
