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
		s.settle(t, p, "a", "knew", known.born, "spent", 10, 10_000, "spent", 7, 2_000)
		s.settle(t, p, "b", "knew", known.born, "heard", known.born, last+3, "spent", 3, 1_000)
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
