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
			s.list(start.Add(-time.Minute), 2*time.Minute, 10*time.Second)
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
					s.begin(now)
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
	s.list(now.Add(-time.Minute), 2*time.Minute, 10*time.Second)
	s.begin(now)
	if at := now.Add(30 * time.Second); s.wait(at) == 0 {
		t.Errorf("may send %v more though the window is full", s.most(at)-30)
	}
}

func TestShareOfUnknownFleetIsNothing(t *testing.T) {
	now := time.Now()
	s := &share{policy: Policy{Limit: 100}.WithDefaults()}
	s.begin(now)
	if s.wait(now.Add(10*time.Minute)) == 0 {
		t.Error("spends although nobody knows how many share")
	}
}

func TestUnsentRequestOfTheShareComesBack(t *testing.T) {
	now := time.Now()
	s := &share{policy: Policy{Limit: 2, Headroom: 1}.WithDefaults()}
	s.hear(budget{limit: 2, workers: 1}, now)
	s.list(now.Add(-time.Minute), 2*time.Minute, 10*time.Second)
	s.begin(now)
	at := now.Add(time.Hour)
	s.take(at)
	s.untake(at, true)
	if s.own != 0 || len(s.untold(at)) != 0 {
		t.Errorf("own %d and untold %v after an unsent request", s.own, s.untold(at))
	}
	s.take(at)
	(&Coordinator{}).told(s.untold(at), at)
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
