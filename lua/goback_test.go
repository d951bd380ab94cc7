package lua

import (
	"testing"
	"time"
)

// A worker that has heard of a permit which its account has not granted yet knows that Redis
// has gone back to an older state: the account is born anew, and everybody tells. What it
// knows stays counted, and is not counted again.
func TestAnAccountThatHasGoneBackIsBornAnew(t *testing.T) {
	p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 60}
	onEachServer(t, func(t *testing.T, s *server) {
		known := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 10})
		s.advance(5 * time.Second)
		last := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1}).last
		s.advance(5 * time.Second)
		if r := s.settle(t, p, "a", "heard", known.born, last); r.born != known.born || r.away != 0 {
			t.Fatalf("%+v of an account that knows all", r)
		}
		if r := s.settle(t, p, "a", "heard", known.born-1, last+7); r.born != known.born || r.away != 0 {
			t.Fatalf("%+v, but the number is of another account", r)
		}
		// Seven more were granted, of which this state knows nothing.
		r := s.settle(t, p, "a", "heard", known.born, last+7)
		if r.born <= known.born || r.away < 4999 || r.away > 5000 {
			t.Fatalf("%+v, want another birth, and five seconds in which all tell", r)
		}
		s.settle(t, p, "a", "knew", known.born, "granted", last-1, 10, 10_000, "granted", last+7, 7, 2_000)
		s.settle(t, p, "b", "knew", known.born, "heard", known.born, last+3, "granted", last+3, 3, 1_000)
		s.advance(5 * time.Second)
		got := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1})
		if got.granted != 1 || got.own != 10+1+7+3+1 || got.born != r.born {
			t.Fatalf("%+v, want 11 that were known, 10 that were not, and one", got)
		}
		if got.last <= last+7 {
			t.Fatalf("number %d was given before", got.last)
		}
	})
}

// What an account that is born anew knew of the API's window is not reckoned from numbers that
// have jumped since: nobody would be granted anything until that window resets.
func TestAnAccountThatHasGoneBackDoesNotWaitForTheWindowsEnd(t *testing.T) {
	p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 60}
	onEachServer(t, func(t *testing.T, s *server) {
		s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1})
		s.advance(5 * time.Minute)
		r := s.admit(t, p, ask{worker: "a", endpoint: -1, n: 5})
		s.advance(time.Second)
		// Strangers have spent ten.
		s.settle(t, p, "a", "said", 0, r.last, r.atText, r.last-int64(r.own), r.epoch, 200, 60, 60-5-10, 55_000, -1, 0.5)
		s.advance(5 * time.Second)
		s.settle(t, p, "a", "heard", r.born, r.last+2)
		s.settle(t, p, "a", "knew", r.born, "granted", r.last+2, 2, 2_000)
		s.advance(6 * time.Second)
		r = s.admit(t, p, ask{worker: "a", endpoint: -1, n: 1})
		if r.granted != 1 || r.own != 5+2+1 {
			t.Fatalf("%+v, want one more than the 7 that were granted", r)
		}
	})
}
