package mockapi

import (
	"math"
	"slices"
	"time"
)

// hold is one place taken in an endpoint.
type hold struct {
	id uint64
	// until is when the hold is expected to end. A job's ends then by itself;
	// a call's ends when its handler does.
	until instant
	job   bool
	alien bool // taken with OccupySlot
}

const never = instant(math.MaxInt64)

// slotSet is the counting semaphore of one endpoint and key, and the count of
// what is in flight where there is no cap.
type slotSet struct {
	size int // 0: no cap
	// listed is set where holds are few (capped) or end by themselves (jobs);
	// elsewhere a counter is enough.
	listed bool
	holds  []hold
	calls  int // in flight, if not listed
	most   int // of the fleet, ever
}

func newSlotSet(size int, jobs bool) slotSet {
	return slotSet{size: size, listed: size > 0 || jobs}
}

// expire frees the slots of jobs that have ended; the slot is free exactly at
// the job's end.
func (s *slotSet) expire(now instant) {
	s.holds = slices.DeleteFunc(s.holds, func(h hold) bool { return h.job && h.until <= now })
}

func (s *slotSet) full() bool { return s.size > 0 && len(s.holds) >= s.size }

// ofFleet is how many places the fleet holds.
func (s *slotSet) ofFleet() int {
	n := s.calls
	for _, h := range s.holds {
		if !h.alien {
			n++
		}
	}
	return n
}

// take adds a hold; the caller has looked whether there is room.
func (s *slotSet) take(h hold) {
	if s.listed {
		s.holds = append(s.holds, h)
	} else {
		s.calls++
	}
	s.most = max(s.most, s.ofFleet())
}

// becomeJob lets a call's hold end by itself at until.
func (s *slotSet) becomeJob(id uint64, until instant) {
	for i := range s.holds {
		if s.holds[i].id == id {
			s.holds[i].until, s.holds[i].job = until, true
		}
	}
}

// release ends a call's hold.
func (s *slotSet) release(id uint64) {
	if !s.listed {
		s.calls--
		return
	}
	s.holds = slices.DeleteFunc(s.holds, func(h hold) bool { return h.id == id })
}

// freeAt is when the first slot is expected to be free.
func (s *slotSet) freeAt() instant {
	at := never
	for _, h := range s.holds {
		at = min(at, h.until)
	}
	return at
}

func (s *slotSet) empty() bool { return s.calls == 0 && len(s.holds) == 0 }

// pause is an order to keep away, given by a Retry-After.
type pause struct {
	// from is when the order went out, the first if they overlap.
	from, until instant
	hold        bool // reject what disobeys
}

// order gives an order of d, which the header told in whole seconds. One that
// falls into a pause extends it by the exact duration alone: the roundings of a
// volley of 429s must not add up.
func (p *pause) order(now instant, d time.Duration, hold bool) {
	if now >= p.until {
		*p = pause{from: now, until: now + wholeSeconds(d), hold: hold}
		return
	}
	p.until = max(p.until, now+d)
	p.hold = p.hold || hold
}

// violated tells whether a request that arrives now ignores the order. It may
// be one that had not heard of it for grace after it went out.
func (p *pause) violated(now instant, grace time.Duration) bool {
	return now > p.from+grace && now < p.until
}

func (p *pause) holds(now instant) bool { return p.hold && now < p.until }
