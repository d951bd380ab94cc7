package coordinator

import (
	"math"
	"time"
)

// A share is the part of the budget that this worker may spend alone while Redis is
// away: such a part that all workers' shares together fit the limit in every
// window, whenever each of them noticed. It remembers what Redis said last and what
// this worker sent lately. Coordinator.mu guards it.
//
// Be U what the fleet had in the window when Redis was last heard, G what it may
// have been granted since, N the number of workers, and H the horizon (window +
// jitter). In the first H of an outage a worker keeps its own count in the window
// at or below what it was at the start + (limit − U − G) ÷ N. The sum over all
// workers is at most the limit. In the second H it also keeps it at or below
// limit ÷ N, and from then on at that, for by then everybody does.
//
// Redis may be there for the others, who then have the whole limit. So beyond its part
// of what was free a worker spends nothing until they have noticed its silence, and
// from then on no faster than the scripts keep room for it: limit ÷ N in H.
type share struct {
	policy Policy // with its defaults

	// As Redis said last.
	known   bool
	heard   time.Time
	limit   float64 // requests per window, less strangers'
	used    float64
	credit  float64 // content of the pace bucket
	workers int
	alive   time.Time     // until when this worker is counted among them, as Redis was last told
	listed  time.Time     // since when it has been, without a gap; zero: never yet
	hearing time.Duration // how long it can take until all others have heard of it
	first   bool          // it was alone then: who came later waits for it to hear of them
	born    int64         // the account's birth
	knew    int64         // the birth of an account that Redis has forgotten; 0: none
	blind   time.Time     // until then Redis does not know all that it forgot
	instant float64       // the clock of Redis when it was last heard, ms; shown to people only

	grants []*lot // oldest first, not older than the horizon
	own    int    // sum of grants
	dirty  bool   // there is something that Redis does not know

	// During an outage.
	since   time.Time
	unknown bool      // to others, when it began: they share the budget without this worker
	base    float64   // bound in the first horizon
	part    float64   // of what was free
	noticed time.Time // until then no more than part is spent
	next    time.Time
	spent   int // permits taken in it
	number  int64

	// What the API's window had left when it said so last, and until when nothing
	// leaves it.
	left           float64
	leftAt, resets time.Time
}

// A lot is requests of about the same time.
type lot struct {
	first, last time.Time
	n           int
	untold      int   // of which Redis knows nothing
	alone       bool  // some of them were taken while Redis was away
	number      int64 // the highest of the others
}

func (s *share) horizon() time.Duration { return s.policy.Window + s.policy.Jitter }

// hear takes over what Redis said, as of the moment at which it was asked.
func (s *share) hear(b budget, asked time.Time) {
	if s.overtaken(b, asked) {
		return
	}
	s.known, s.heard = true, asked
	s.limit, s.used, s.credit = float64(b.limit), float64(b.own), b.credit
	s.limit = math.Min(s.limit, usableLimit(s.policy.Limit, s.policy.Headroom)) // whatever Redis says
	s.born = b.born
	s.count(int(b.workers), asked)
}

// overtaken says whether a reply is older than what is known: another was quicker, or is
// from a younger account.
func (s *share) overtaken(b budget, asked time.Time) bool {
	return s.known && asked.Before(s.heard) && b.born <= s.born
}

// count takes over how many workers are alive; 0 is an account that no heartbeat has
// told yet. A Redis that has lost its memory finds out only by and by.
func (s *share) count(workers int, now time.Time) {
	if workers < 1 {
		return
	}
	if now.Before(s.blind) {
		workers = max(workers, s.workers)
	}
	s.workers = workers
}

// list notes that Redis counts this worker as alive from now on for a while, one of so
// many. The others hear of it with their next heartbeats, if there are others.
func (s *share) list(workers int, now time.Time, alive, hearing time.Duration) {
	if s.listed.IsZero() || now.After(s.alive) {
		s.listed, s.first = now, workers == 1
	}
	s.alive, s.hearing = now.Add(alive), hearing
}

// add counts n requests of this worker.
func (s *share) add(now time.Time, n, untold int) *lot {
	s.evict(now)
	s.own += n
	if last := len(s.grants) - 1; last >= 0 && now.Sub(s.grants[last].first) < s.policy.Window/512 {
		g := s.grants[last]
		g.last, g.n, g.untold, g.alone = now, g.n+n, g.untold+untold, g.alone || untold > 0
		return g
	}
	g := &lot{first: now, last: now, n: n, untold: untold, alone: untold > 0}
	s.grants = append(s.grants, g)
	return g
}

// hold notes the number of a permit in it.
func (g *lot) hold(number int64) { g.number = max(g.number, number) }

func (s *share) evict(now time.Time) {
	for len(s.grants) > 0 && now.Sub(s.grants[0].last) >= s.horizon() {
		s.own -= s.grants[0].n
		s.grants = s.grants[1:]
	}
}

// begin is the start of an outage, which others will have noticed by then.
func (s *share) begin(now, noticed time.Time) {
	s.evict(now)
	s.since, s.noticed, s.spent = now, noticed, 0
	s.unknown = s.listed.IsZero() || now.After(s.alive) || !s.first && now.Sub(s.listed) < s.hearing
	if now.Before(s.blind) {
		s.used = s.limit // what Redis says is not all that was sent
	}
	if !s.known {
		s.limit = usableLimit(s.policy.Limit, s.policy.Headroom)
		s.used = s.limit
	}
	// A bucket in debt, as a pause leaves it, is no room.
	unheard := math.Max(0, s.credit+s.limit*float64(now.Sub(s.heard))/float64(s.policy.Window)) + 1
	free := math.Max(0, s.limit-s.used-unheard)
	s.part = 0
	if n := s.sharing(); n > 0 {
		s.part = free / float64(n)
	}
	s.base = float64(s.own) + s.part
	s.next = now.Add(s.interval())
}

// sharing is how many workers share what there is; 0: this one has no part in it.
func (s *share) sharing() int {
	if s.unknown {
		return 0
	}
	return s.workers
}

func (s *share) fair() float64 {
	n := s.sharing()
	if n == 0 {
		return 0
	}
	return s.limit / float64(n)
}

// most is how many requests of this worker the window may hold now.
func (s *share) most(now time.Time) float64 {
	if s.workers == 0 {
		return 0
	}
	switch age := now.Sub(s.since); {
	case age < s.horizon():
		return s.base
	case age < 2*s.horizon():
		return math.Min(s.base, s.fair())
	}
	return s.fair()
}

// interval spreads the share evenly; of who has none, what it had sent before.
func (s *share) interval() time.Duration {
	if s.sharing() == 0 {
		return time.Duration(float64(s.policy.Window) / math.Max(1, s.base))
	}
	return time.Duration(float64(s.horizon()) / math.Max(1, s.fair()))
}

// emission is the time in which the fleet spends one request at full pace.
func (s *share) emission() time.Duration {
	return time.Duration(float64(s.policy.Window) / math.Max(1, s.limit))
}

// wait is how long it takes until the next request fits the share; 0: it does now.
func (s *share) wait(now time.Time) time.Duration {
	s.evict(now)
	wait := max(0, s.next.Sub(now))
	if float64(s.spent)+1 > s.part+1e-9 {
		wait = max(wait, s.noticed.Sub(now))
	}
	if s.full(now) {
		wait = max(wait, s.resets.Sub(now))
	}
	if float64(s.own)+1 <= s.most(now)+1e-9 {
		return wait
	}
	room := s.horizon()
	if len(s.grants) > 0 {
		room = s.grants[0].last.Add(s.horizon()).Sub(now)
	}
	for _, change := range []time.Duration{s.horizon(), 2 * s.horizon()} { // the bound may rise
		if until := s.since.Add(change).Sub(now); until > 0 {
			room = min(room, until)
		}
	}
	return max(wait, room, time.Millisecond)
}

// full says whether the others may have filled the API's window by now, at their pace:
// one that resets has no room for a late share before it does. (A busy sliding window
// gives room back all the time, and its resets are too near to be told.)
func (s *share) full(now time.Time) bool {
	if !now.Before(s.resets) || s.workers == 0 {
		return false
	}
	others := (s.limit - s.fair()) * float64(now.Sub(s.leftAt)) / float64(s.policy.Window)
	return s.left-others < 1
}

// take spends one request; wait has said 0.
func (s *share) take(now time.Time) {
	interval := s.interval()
	behind := now.Add(-interval) // lateness is made good, by one request at most
	if s.noticed.After(behind) && !s.noticed.After(now) {
		behind = s.noticed
	}
	if s.next.Before(behind) {
		s.next = behind
	}
	s.next = s.next.Add(interval)
	s.spent++
	s.number++
	s.dirty = true
	s.add(now, 1, 1)
}

// untake takes a request back that was never sent. One of the own share stays
// spent if Redis has been told of it.
func (s *share) untake(counted time.Time, alone bool) {
	for _, g := range s.grants {
		if g.first.After(counted) || g.last.Before(counted) {
			continue
		}
		if alone && g.untold > 0 {
			g.n, g.untold, s.own = g.n-1, g.untold-1, s.own-1
		} else if !alone && g.n > g.untold {
			g.n, s.own = g.n-1, s.own-1
		}
		return
	}
}

// cut lowers the share when the API reports a lower limit.
func (s *share) cut(reported int) {
	limit := usableLimit(reported, s.policy.Headroom)
	if limit < s.limit {
		s.limit = limit
		s.base = math.Min(s.base, s.fair())
	}
}

// pause stops the spending for a while.
func (s *share) pause(until time.Time) {
	if until.After(s.next) {
		s.next = until
	}
}

// forgotten notes that Redis has lost its memory: all must be told again.
func (s *share) forgotten(now time.Time) {
	s.blind = now.Add(s.horizon())
	s.knew, s.dirty = s.born, true
	for _, g := range s.grants {
		g.untold = g.n
	}
}

// untold lists what Redis must be told.
func (s *share) untold(now time.Time) []op {
	s.evict(now)
	var ops []op
	for _, g := range s.grants {
		if g.untold > 0 {
			o := op{kind: opSpent, lot: g, count: g.untold, at: g.last}
			if !g.alone {
				o.kind, o.after = opGranted, g.number
			}
			ops = append(ops, o)
		}
	}
	return ops
}

// usableLimit is the part of a limit that may be spent, as the scripts reckon it.
func usableLimit(limit int, headroom float64) float64 {
	return math.Max(1, math.Floor(float64(limit)*headroom+1e-6))
}
