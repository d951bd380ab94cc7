package lua

import (
	"testing"
	"time"
)

// What was sent while Redis was away fills the window as if it had been granted
// at its time, told in whatever order.
func TestSpendingOfAnOutage(t *testing.T) {
	p := limits{limit: 10, window: 60_000, jitter: 250, headroom: 1, burst: 10}
	onEachServer(t, func(t *testing.T, s *server) {
		s.admit(t, p, ask{worker: "a", endpoint: -1, n: 2})
		s.advance(30 * time.Second)
		s.settle(t, p, "a", "spent", 1, 5_000, "spent", 2, 20_000)
		s.settle(t, p, "b", "spent", 1, 10_000, "spent", 9, 61_000)
		for _, want := range []struct {
			after time.Duration
			own   int
		}{
			{0, 6},
			{30*time.Second + 400*time.Millisecond, 4}, // the two granted first
			{10 * time.Second, 2},                      // 20 s old when told
			{10 * time.Second, 1},                      // 10 s
			{5 * time.Second, 0},                       // 5 s
		} {
			s.advance(want.after)
			r := s.admit(t, p, ask{worker: "c", endpoint: -1, n: 10})
			if r.own-r.granted != want.own && want.own > 0 || r.granted > 10-want.own {
				t.Fatalf("after %v: %d in the window, want %d", want.after, r.own-r.granted, want.own)
			}
			// Undone, so that only what was told counts.
			for seq := r.last; seq > r.last-int64(r.granted); seq-- {
				s.settle(t, p, "c", "return", 0, "", seq)
			}
		}
	})
}

func TestOneResumptionForTheFleet(t *testing.T) {
	p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 30}
	onEachServer(t, func(t *testing.T, s *server) {
		s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1})
		s.advance(20 * time.Second)
		r := s.settle(t, p, "a", "resume", 18_000)
		if r.away != 5000 || r.paused != 5000 {
			t.Fatalf("resumption %+v, want 5 s", r)
		}
		s.advance(2 * time.Second)
		if r := s.settle(t, p, "b", "spent", 3, 10, "resume", 20_000); r.away != 3000 {
			t.Fatalf("%v of the resumption left for the second, want 3 s", r.away)
		}
		s.advance(3 * time.Second)
		if r := s.settle(t, p, "c", "resume", 24_000); r.paused != 0 {
			t.Fatalf("the last to return paused the fleet once more: %+v", r)
		}
		got := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 60})
		if got.granted != 1 {
			t.Fatalf("%d granted at the end of the resumption, want one and no burst", got.granted)
		}
	})
}

// A pause of the API covers a resumption, or is made to: once, and not anew by each of those
// who are told of it and come to tell.
func TestAResumptionInAPauseOfTheAPIComesOnce(t *testing.T) {
	p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 30}
	onEachServer(t, func(t *testing.T, s *server) {
		g := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1})
		s.advance(100 * time.Millisecond)
		s.settle(t, p, "a", "said", 0, g.last, "0", 0, 0, 429, -1, -1, -1, 9_000, 0)
		s.advance(7 * time.Second)
		if r := s.settle(t, p, "a", "resume", 6_000); r.paused != 5000 || r.away != 0 {
			t.Fatalf("%+v, want a pause of 5 s, in which nobody goes on alone", r)
		}
		for i, worker := range []string{"b", "c", "b"} {
			s.advance(50 * time.Millisecond)
			want := float64(5000 - 50*(i+1))
			if r := s.settle(t, p, worker, "resume", 60); r.paused != want {
				t.Fatalf("%s came to tell, and the pause lasts %v, want %v", worker, r.paused, want)
			}
		}
	})
}

// Who was cut off alone does not stop the others.
func TestNoResumptionIfRedisWasThereForOthers(t *testing.T) {
	p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 30}
	onEachServer(t, func(t *testing.T, s *server) {
		s.advance(20 * time.Second)
		s.admit(t, p, ask{worker: "b", endpoint: -1, n: 1})
		s.advance(5 * time.Second)
		if r := s.settle(t, p, "a", "resume", 20_000, "spent", 4, 1_000); r.paused != 0 {
			t.Fatalf("paused: %+v", r)
		}
		if r := s.admit(t, p, ask{worker: "b", endpoint: -1, n: 1}); r.own != 6 {
			t.Fatalf("%d in the window, want 6", r.own)
		}
	})
}

// A Redis that has lost its memory grants nothing until the workers have told what
// they sent.
func TestLostMemoryIsNoticed(t *testing.T) {
	p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 30}
	onEachServer(t, func(t *testing.T, s *server) {
		first := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 20})
		s.advance(10 * time.Second)
		if r := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1, known: first.born}); r.granted != 1 {
			t.Fatalf("not granted by the account that the worker knows: %+v", r)
		}
		s.flush(t)
		s.advance(time.Second)
		r := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1, known: first.born})
		if r.granted != 0 || r.gate != "away" || r.born == first.born {
			t.Fatalf("granted by a Redis that knows nothing: %+v", r)
		}
		s.settle(t, p, "a", "spent", 21, 1_000)
		s.advance(2 * time.Second)
		if r := s.settle(t, p, "b", "spent", 9, 2_000); r.away != 3000 {
			t.Fatalf("%v of the resumption left, want 3 s", r.away)
		}
		s.advance(3 * time.Second)
		got := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 60, known: r.born})
		if got.own != 31 || got.granted != 1 {
			t.Fatalf("%d in the window and %d granted, want 31 and 1", got.own, got.granted)
		}
		// Somebody who comes when all have told stops nobody.
		if r := s.admit(t, p, ask{worker: "c", endpoint: -1, n: 1, known: first.born}); r.gate == "away" || r.gate == "backoff" {
			t.Fatalf("paused again: %+v", r)
		}
	})
}

func TestAdoptedLeaseIsOneLikeAnyOther(t *testing.T) {
	p := limits{limit: 60, window: 60_000, headroom: 1, burst: 30, endpoints: []endpoint{{"POST /x", 2, 30_000, 0}}}
	onEachServer(t, func(t *testing.T, s *server) {
		s.settle(t, p, "a", "adopt", 1, "a:1:1", "adopt", 1, "a:1:1", "adopt", 1, "b:1:2")
		if n, _ := s.rdb.ZCard(t.Context(), s.prefix+"slots:POST /x").Result(); n != 1 {
			t.Fatalf("%d leases, want 1: nobody adopts for others", n)
		}
		if r := s.admit(t, p, ask{worker: "b", endpoint: 0, n: 2}); r.granted != 1 {
			t.Fatalf("%d granted beside the adopted lease of two slots", r.granted)
		}
		if r := s.settle(t, p, "a", "release", 1, "a:1:1", 0); r.released != 1 {
			t.Fatalf("the adopted lease was not released: %+v", r)
		}
	})
}

func TestHeartbeatCountsTheWorkersForAll(t *testing.T) {
	p := limits{limit: 60, window: 60_000, headroom: 1, burst: 30}
	onEachServer(t, func(t *testing.T, s *server) {
		s.renew(t, p, "a", 30_000)
		s.renew(t, p, "b", 30_000)
		if r := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1}); r.workers != 2 || r.budget != 60 {
			t.Fatalf("%d workers and budget %d, want 2 and 60", r.workers, r.budget)
		}
	})
}
