package coordinator

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// However the fleet had spent its budget when Redis went away, and whenever each
// worker noticed: what all send alone never exceeds the limit in any window.
func TestSharesTogetherFitTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 200).Draw(t, "limit")
		workers := rapid.IntRange(1, 12).Draw(t, "workers")
		policy := Policy{Limit: limit, Headroom: 1}.WithDefaults()
		horizon := policy.Window + policy.Jitter
		start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

		// The window before the outage, as Redis granted it.
		fleet := make([]*share, workers)
		for i := range fleet {
			fleet[i] = &share{policy: policy}
		}
		var sent []time.Time
		used := rapid.IntRange(0, limit).Draw(t, "used")
		for range used {
			at := start.Add(-time.Duration(rapid.Int64Range(0, int64(horizon)-1).Draw(t, "granted before")))
			sent = append(sent, at)
		}
		slices.SortFunc(sent, time.Time.Compare)
		for _, at := range sent {
			fleet[rapid.IntRange(0, workers-1).Draw(t, "to")].add(at, 1, 0)
		}
		for _, s := range fleet {
			// What was heard may be old: then the rest may have been granted since,
			// to the extent that the bucket allowed.
			age := time.Duration(rapid.Int64Range(0, int64(30*time.Second)).Draw(t, "heard"))
			then := 0
			for _, at := range sent {
				if at.Before(start.Add(-age)) && at.After(start.Add(-age-horizon)) {
					then++
				}
			}
			since := float64(used-then) - float64(limit)*float64(age)/float64(policy.Window) - 1
			s.list(workers, start.Add(-time.Minute), 2*time.Minute, 10*time.Second)
			s.hear(budget{limit: int64(limit), own: int64(then), credit: max(0, since), workers: int64(workers)}, start.Add(-age))
		}

		now, all := start, slices.Clone(sent)
		begun := make([]bool, workers)
		noticed := make([]time.Time, workers)
		for i := range noticed {
			noticed[i] = start.Add(time.Duration(rapid.Int64Range(0, int64(policy.Jitter)).Draw(t, "noticed")))
		}
		for now.Before(start.Add(4 * horizon)) {
			for i, s := range fleet {
				if !begun[i] && !now.Before(noticed[i]) {
					s.begin(now, now)
					begun[i] = true
				}
				if begun[i] && s.wait(now) == 0 {
					s.take(now)
					all = append(all, now)
				}
			}
			now = now.Add(125 * time.Millisecond)
		}
		for i, j := 0, 0; j < len(all); j++ {
			for all[j].Sub(all[i]) >= policy.Window {
				i++
			}
			if j-i+1 > limit {
				t.Fatalf("%d requests in the window that ends %v after the start, limit %d", j-i+1, all[j].Sub(start), limit)
			}
		}
		last := 0
		for _, at := range all {
			if !at.Before(start.Add(2*horizon + policy.Jitter)) {
				last++
			}
		}
		if fair := limit / workers; last < fair*workers {
			t.Errorf("%d requests in the third and fourth window, want at least %d", last, fair*workers)
		}
	})
}

// A pause leaves the bucket in debt: what it owes is not there to be spent.
func TestBucketInDebtIsNoRoomInTheShare(t *testing.T) {
	now := time.Now()
	s := &share{policy: Policy{Limit: 120, Headroom: 1}.WithDefaults()}
	s.add(now, 30, 0)
	s.hear(budget{limit: 120, own: 120, credit: -9, workers: 4}, now)
	s.list(2, now.Add(-time.Minute), 2*time.Minute, 10*time.Second)
	s.begin(now, now)
	if at := now.Add(30 * time.Second); s.wait(at) == 0 {
		t.Errorf("may send %v more though the window is full", s.most(at)-30)
	}
}

func TestShareOfUnknownFleetIsNothing(t *testing.T) {
	now := time.Now()
	s := &share{policy: Policy{Limit: 100}.WithDefaults()}
	s.begin(now, now)
	if s.wait(now.Add(10*time.Minute)) == 0 {
		t.Error("spends although nobody knows how many share")
	}
}

func TestUnsentRequestOfTheShareComesBack(t *testing.T) {
	now := time.Now()
	s := &share{policy: Policy{Limit: 2, Headroom: 1}.WithDefaults()}
	s.hear(budget{limit: 2, workers: 1}, now)
	s.list(2, now.Add(-time.Minute), 2*time.Minute, 10*time.Second)
	s.begin(now, now)
	at := now.Add(time.Hour)
	s.take(at)
	s.untake(at, true)
	if s.own != 0 || len(s.untold(at)) != 0 {
		t.Errorf("own %d and untold %v after an unsent request", s.own, s.untold(at))
	}
	s.take(at)
	(&Coordinator{share: share{born: 1}}).told(s.untold(at), at, 1)
	s.untake(at, true)
	if s.own != 1 {
		t.Errorf("own %d, want 1: Redis has counted it", s.own)
	}
}

// A heartbeat can overtake the exchange that creates the account, which then does not
// know of any worker: who forgot what the heartbeat had said would wait for ever in an
// outage.
func TestAnAccountThatKnowsNoWorkersChangesNothing(t *testing.T) {
	now := time.Now()
	s := share{policy: Policy{Limit: 60, Window: time.Minute}.WithDefaults()}
	s.count(4, now)
	s.hear(budget{limit: 60, born: 1}, now)
	if s.workers != 4 {
		t.Errorf("%d workers, want the 4 that the heartbeat told", s.workers)
	}
}

// Redis may be there for the others: beyond its part of what was free, a worker spends
// nothing before they have noticed, and from then on no faster than its share grows in
// the scripts, whatever it had spent before.
func TestAShareIsSpentAsTheOthersMakeRoomForIt(t *testing.T) {
	start := time.Now()
	s := &share{policy: Policy{Limit: 60, Headroom: 1}.WithDefaults()}
	for i := range 40 {
		s.add(start.Add(time.Duration(i)*time.Second), 1, 0)
	}
	now := start.Add(59 * time.Second)
	s.hear(budget{limit: 60, own: 51, workers: 4}, now) // 8 are free, but for the next one
	s.list(2, now.Add(-time.Minute), 2*time.Minute, 10*time.Second)
	noticed := now.Add(10 * time.Second)
	s.begin(now, noticed)
	at, before := now, 0
	for ; at.Before(now.Add(50 * time.Second)); at = at.Add(50 * time.Millisecond) {
		if s.wait(at) == 0 {
			s.take(at)
		}
		if at.Before(noticed) {
			before = s.spent
		}
		if most := 2 + 1 + 15*max(0, at.Sub(noticed).Seconds())/60.25; float64(s.spent) > most {
			t.Fatalf("%d spent after %v, want %.1f at most", s.spent, at.Sub(now), most)
		}
	}
	if before != 2 || s.spent < 11 {
		t.Errorf("%d spent before the others have noticed and %d in all, want a fourth of what was free, 2, and its share, 15 in a minute", before, s.spent)
	}
}

// oneOfFour is one of four workers, with a limit of 60, when Redis goes away.
func oneOfFour(now time.Time) (*Coordinator, *share) {
	c := &Coordinator{share: share{policy: Policy{Limit: 60, Headroom: 1}.WithDefaults()}}
	c.share.hear(budget{limit: 60, workers: 4}, now)
	c.share.list(2, now.Add(-time.Minute), 2*time.Minute, 10*time.Second)
	c.share.begin(now, now)
	return c, &c.share
}

// An API that says how little is left until its window resets is believed, for others
// send as well.
func TestAFullWindowIsLeftAloneUntilItResets(t *testing.T) {
	now := time.Now()
	c, s := oneOfFour(now)
	at := now.Add(10 * time.Second)
	f := NoFeedback
	f.Status, f.Limit, f.Remaining, f.Reset = 200, 60, 4, 20*time.Second
	c.heed(op{lane: new(lane), said: f, at: at})
	if wait := s.wait(at.Add(2 * time.Second)); wait != 0 {
		t.Errorf("waits %v, though the others have sent 2 of the 4 at most", wait)
	}
	if wait := s.wait(at.Add(5 * time.Second)); wait != 15*time.Second {
		t.Errorf("waits %v, want 15 s, until the reset: the others may have taken what was left", wait)
	}
	f.Reset = 2 * time.Second // a sliding window, in which something leaves all the time
	c.heed(op{lane: new(lane), said: f, at: at})
	if wait := s.wait(at.Add(20 * time.Second)); wait != 0 {
		t.Errorf("waits %v after the reset", wait)
	}
}

// A reset that is farther away than a window can be is none.
func TestAResetOfADayHoldsUpAShareForAWindowAtMost(t *testing.T) {
	now := time.Now()
	c, s := oneOfFour(now)
	f := NoFeedback
	f.Status, f.Limit, f.Remaining, f.Reset = 200, 60, 0, 24*time.Hour
	c.heed(op{lane: new(lane), said: f, at: now})
	if wait := s.wait(now.Add(10 * time.Second)); wait != 50*time.Second {
		t.Errorf("waits %v ten seconds later, want 50 s", wait)
	}
}
