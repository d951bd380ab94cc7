package lua

import (
	"testing"
	"time"
)

var crowded = limits{limit: 100, window: 60_000, jitter: 250, headroom: 1, burst: 100}

// observe lets a permit's response say what the API's window still holds, and in how
// many milliseconds it resets.
func observe(t *testing.T, s *server, remaining, reset float64) {
	t.Helper()
	x := grant(t, s, crowded, 1)
	x.limit, x.remaining, x.reset = 100, remaining, reset
	s.settle(t, crowded, "a", x.args()...)
}

// wanted is how many of 100 permits are granted, once the bucket is full.
func wanted(t *testing.T, s *server) int {
	t.Helper()
	return s.admit(t, crowded, ask{worker: "a", endpoint: -1, n: 100}).granted
}

// Forty of our own requests grow older than the window, but a window that resets has
// not let them go.
func TestNothingLeavesAResettingWindowBeforeItsReset(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		grant(t, s, crowded, 40)
		s.advance(50 * time.Second)
		observe(t, s, 10, 30_000)
		s.advance(12 * time.Second)
		if n := wanted(t, s); n > 9 {
			t.Errorf("%d requests 18 s before the reset, where the API had room for 10", n)
		}
		s.advance(19 * time.Second)
		if n := wanted(t, s); n < 20 {
			t.Errorf("%d requests after the reset", n)
		}
	})
}

// A reset that is always a window away tells nothing of when something leaves.
func TestAResetThatIsPutOffTellsNothing(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		grant(t, s, crowded, 40)
		s.advance(40 * time.Second)
		observe(t, s, 20, 60_000)
		s.advance(10 * time.Second)
		observe(t, s, 10, 60_000)
		s.advance(12 * time.Second)
		if n := wanted(t, s); n < 20 {
			t.Errorf("%d requests, though forty have left the window", n)
		}
	})
}

// A reset far away must not stall the fleet for longer than a window.
func TestAResetIsNoFurtherThanAWindow(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		observe(t, s, 1, 86_400_000)
		if left := s.field(t, "reset_ms") - s.now(); left > crowded.window+1 {
			t.Errorf("the reset is said to be %v ms away", left)
		}
	})
}

func TestStrangersAreForgottenWhenTheyAreSeenNoMore(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		observe(t, s, 49, -1) // fifty by strangers
		s.advance(61 * time.Second)
		observe(t, s, 99, -1)
		if n := wanted(t, s); n >= 99 {
			t.Errorf("%d of 99 requests a minute after strangers were seen: no reserve", n)
		}
		s.advance(130 * time.Second)
		observe(t, s, 99, -1)
		if n := wanted(t, s); n != 99 {
			t.Errorf("%d of 99 requests three minutes after strangers were seen", n)
		}
	})
}

// When all that was seen of strangers has left the window it is forgotten, in the very
// instant for which those who wait were told to come: else they would come again and again
// in that instant, which in virtual time never ends.
func TestStrangersAreForgottenInTheInstantOfWhichTheWaitTells(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		observe(t, s, 0, -1)
		s.advance(seconds(crowded.horizon()))
		if n := wanted(t, s); n == 0 {
			t.Error("nothing is granted when all that the API had counted has left its window")
		}
	})
}
