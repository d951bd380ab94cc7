package lua

import (
	"testing"
	"time"
)

var plain = limits{limit: 600, window: 60_000, jitter: 250, headroom: 1, burst: 300}

// grant admits n permits of budget alone and returns what would be said of the last.
func grant(t *testing.T, s *server, p limits, n int) saying {
	t.Helper()
	r := s.admit(t, p, ask{worker: "a", endpoint: -1, n: n})
	if r.granted != n {
		t.Fatalf("%d of %d granted", r.granted, n)
	}
	return saying{
		endpoint: -1, seq: r.last, admitted: r.at, base: r.last - int64(r.own), epoch: r.epoch,
		status: 200, limit: -1, remaining: -1, reset: -1, retryAfter: -1,
	}
}

func refused(x saying, retryAfter float64) []any {
	x.status, x.retryAfter = 429, retryAfter
	return x.args()
}

func TestVolleyOf429sIsOneStrike(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		x := grant(t, s, plain, 20)
		var ops []any
		for range 20 {
			ops = append(ops, refused(x, 20_000)...)
		}
		r := s.settle(t, plain, "a", ops...)
		if r.epoch != 1 || s.field(t, "strikes") != 1 || r.paused != 20_000 {
			t.Errorf("%+v and %v strikes, want epoch 1, one strike, 20 s", r, s.field(t, "strikes"))
		}
		s.advance(20 * time.Second)
		s.settle(t, plain, "a", refused(grant(t, s, plain, 1), -1)...)
		if got := s.field(t, "strikes"); got != 2 {
			t.Errorf("%v strikes after a 429 of the next epoch, want 2", got)
		}
	})
}

// A call may end long after a younger one, and be the first that shows a lower limit. A
// higher limit it may have been told long ago.
func TestALowerLimitIsBelievedThoughAnOlderCallTellsIt(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		older, younger := grant(t, s, plain, 1), grant(t, s, plain, 1)
		for _, told := range []struct {
			by          saying
			limit, want float64
		}{{younger, 600, 600}, {older, 300, 300}, {older, 500, 300}, {younger, 500, 300}, {grant(t, s, plain, 1), 500, 500}} {
			told.by.limit = told.limit
			s.settle(t, plain, "a", told.by.args()...)
			if got := s.field(t, "reported"); got != told.want {
				t.Errorf("limit %v is in force after %v was told, want %v", got, told.limit, told.want)
			}
		}
	})
}

func TestPauseEndsAfterFiveMinutesWhateverTheClockDoes(t *testing.T) {
	for _, test := range []struct {
		name  string
		asked float64
		jump  time.Duration
		want  time.Duration
	}{
		{"an hour is asked for", 3_600_000, 0, 5 * time.Minute},
		{"the clock is set back by an hour", 20_000, -time.Hour, 20 * time.Second},
		{"the clock is set back by ten seconds", 20_000, -10 * time.Second, 20 * time.Second},
		{"the clock is set forward by an hour", 20_000, time.Hour, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			onEachServer(t, func(t *testing.T, s *server) {
				s.settle(t, plain, "a", refused(grant(t, s, plain, 1), test.asked)...)
				s.advance(test.jump)
				r := s.admit(t, plain, ask{worker: "a", endpoint: -1, n: 1})
				// One emission interval may come on top.
				if r.wait > milliseconds(test.want)+101 || test.want > 0 && r.gate != "backoff" {
					t.Fatalf("gate %q, wait %v ms, want %v", r.gate, r.wait, test.want)
				}
				s.advance(test.want + 2*time.Millisecond)
				if r := s.admit(t, plain, ask{worker: "a", endpoint: -1, n: 1}); r.gate == "backoff" {
					t.Errorf("still paused for %v ms after %v", r.wait, test.want)
				}
			})
		})
	}
}

func TestFleetComesBackAtItsPace(t *testing.T) {
	for _, strangers := range []float64{0, 200, 500} {
		onEachServer(t, func(t *testing.T, s *server) {
			first, x := grant(t, s, plain, 1), grant(t, s, plain, 10)
			s.settle(t, plain, "a", refused(first, 20_000)...)
			// An answer that was under way tells of strangers, during the pause.
			x.limit, x.remaining = 600, 600-11-strangers
			s.settle(t, plain, "a", x.args()...)
			s.advance(20 * time.Second)
			r := s.admit(t, plain, ask{worker: "a", endpoint: -1, n: 100})
			if r.granted > 1 {
				t.Errorf("%d permits at the end of a pause with %v strangers, want 1", r.granted, strangers)
			}
		})
	}
}

func TestOldObservationIsIgnored(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		old := grant(t, s, plain, 1)
		young := grant(t, s, plain, 1)
		young.limit, young.remaining = 500, 400
		old.limit, old.remaining = 600, 599
		s.settle(t, plain, "a", young.args()...)
		s.settle(t, plain, "a", old.args()...)
		if got := [2]float64{s.field(t, "reported"), s.field(t, "foreign")}; got != [2]float64{500, 98} {
			t.Errorf("limit and foreign %v, want those of the youngest permit: 500 and 98", got)
		}
	})
}

func TestBudgetIsRememberedForAWholeWindow(t *testing.T) {
	p := limits{limit: 10, window: 3_600_000, jitter: 250, headroom: 1, burst: 10}
	onEachServer(t, func(t *testing.T, s *server) {
		grant(t, s, p, 10)
		s.advance(45 * time.Minute)
		s.renew(t, p, "a", 30_000)
		s.advance(14 * time.Minute)
		if r := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1}); r.granted != 0 || r.gate != "window" {
			t.Errorf("%d granted, gate %q, 59 minutes after the hour's budget was spent", r.granted, r.gate)
		}
	})
}

// A request that leaves after its grant has left the window must not make the
// account forget another's.
func TestVeryLateRequestCountsOnTop(t *testing.T) {
	p := limits{limit: 10, window: 60_000, headroom: 1, burst: 10}
	onEachServer(t, func(t *testing.T, s *server) {
		old := grant(t, s, p, 1)
		s.advance(30 * time.Second)
		grant(t, s, p, 3)
		s.advance(40 * time.Second)
		grant(t, s, p, 2)
		s.settle(t, p, "a", "late", old.seq)
		if got := s.field(t, "own"); got != 6 {
			t.Errorf("%v requests in the window, want 3 + 2 and the late one", got)
		}
		s.settle(t, p, "a", "return", 0, "", old.seq)
		if got := s.field(t, "own"); got != 6 {
			t.Errorf("%v requests in the window after the return of one that had left it", got)
		}
	})
}

func TestReturningTwiceNeverOwesTheFleet(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		x := grant(t, s, plain, 3)
		for range 10 {
			s.settle(t, plain, "a", "return", 0, "", x.seq)
		}
		if own := s.field(t, "own"); own != 0 {
			t.Errorf("own %v, want 0", own)
		}
		if r := s.admit(t, plain, ask{worker: "a", endpoint: -1, n: 256}); r.granted > 256 || r.own != r.granted {
			t.Errorf("%+v after returns", r)
		}
	})
}

// The lease of a job may be shorter than that of the call which starts it: the
// key must live as long as the longest.
func TestShortLeaseShortensNoOther(t *testing.T) {
	p := plain
	p.endpoints = []endpoint{{"POST /video", 2, 30_000, 2000}}
	s := newMini(t)
	first := s.admit(t, p, ask{worker: "a", endpoint: 0, n: 1})
	second := s.admit(t, p, ask{worker: "b", endpoint: 0, n: 1})
	s.settle(t, p, "a", "bind", 1, first.lease("a", first.last), jobKey(p, 0), 2000)
	s.advance(5 * time.Second)
	if r := s.admit(t, p, ask{worker: "c", endpoint: 0, n: 2}); r.granted != 1 {
		t.Errorf("%d slots granted, want only that of the forgotten job", r.granted)
	}
	if _, lost := s.renew(t, p, "b", 30_000, held{0, second.lease("b", second.last)}); len(lost) > 0 {
		t.Errorf("lost %q", lost)
	}
}

// A call that was broken off just before its lease is renewed holds the slot for
// as long as it was said.
func TestLingeringLeaseOutlivesItsKey(t *testing.T) {
	p := plain
	p.endpoints = []endpoint{{"POST /chat", 1, 30_000, 0}}
	s := newMini(t)
	r := s.admit(t, p, ask{worker: "a", endpoint: 0, n: 1})
	s.advance(25 * time.Second)
	s.settle(t, p, "a", "release", 1, r.lease("a", r.last), 20_000)
	s.advance(15 * time.Second)
	if r := s.admit(t, p, ask{worker: "b", endpoint: 0, n: 1}); r.granted != 0 {
		t.Error("the slot was given away before its time")
	}
	s.advance(5 * time.Second)
	if r := s.admit(t, p, ask{worker: "b", endpoint: 0, n: 1}); r.granted != 1 {
		t.Error("the slot did not come back")
	}
}
