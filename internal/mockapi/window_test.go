package mockapi

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestSlidingWindowFreesEachRequestExactlyOneWindowLater(t *testing.T) {
	inBubble(t, Config{Limit: 3, NoLatency: true}, func(t *testing.T, r *rig) {
		for i, s := range []time.Duration{0, 10, 20} {
			r.at(s * time.Second)
			got := r.mustGet(200)
			r.expect("limit", got.int("X-RateLimit-Limit"), 3)
			r.expect("remaining", got.int("X-RateLimit-Remaining"), 2-i)
			r.expect("reset: the oldest leaves", got.untilReset(), 60-int(s))
			r.expect("Retry-After of a success", got.header.Get("Retry-After"), "")
		}
		r.at(25500 * time.Millisecond)
		got := r.mustGet(429)
		r.expect("remaining", got.int("X-RateLimit-Remaining"), 0)
		r.expect("Retry-After, rounded up", got.int("Retry-After"), 35)
		r.at(60*time.Second - 1)
		r.expect("Retry-After, at least one second", r.mustGet(429).int("Retry-After"), 1)
		r.at(60 * time.Second)
		r.mustGet(200)
		r.mustGet(429)
		r.at(70 * time.Second)
		r.mustGet(200)
		s := r.Stats()
		r.expect("accepted", s.Accepted, int64(5))
		r.expect("429s", s.Responses429, int64(3))
		r.expect("limit violations", s.LimitViolations, int64(3))
		r.expect("most in a window", s.MaxInWindow, 3)
		r.expect("in window", s.InWindow, 3)
	})
}

func TestFixedWindowResetsAtItsPhase(t *testing.T) {
	cfg := Config{Limit: 2, Mode: Fixed, Phase: 15 * time.Second, NoLatency: true}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		r.at(14 * time.Second)
		r.expect("reset", r.mustGet(200).untilReset(), 1)
		r.mustGet(200)
		r.expect("Retry-After", r.mustGet(429).int("Retry-After"), 1)
		r.at(15*time.Second - 1)
		r.mustGet(429)
		r.at(15 * time.Second)
		r.expect("reset", r.mustGet(200).untilReset(), 60)
		r.expect("remaining", r.mustGet(200).int("X-RateLimit-Remaining"), 0)
		r.at(16 * time.Second)
		r.expect("Retry-After", r.mustGet(429).int("Retry-After"), 59)
		r.at(75 * time.Second)
		r.expect("remaining", r.mustGet(200).int("X-RateLimit-Remaining"), 1)
		// Twice the limit within one sliding window, as such APIs allow.
		r.expect("most in a sliding window", r.Stats().MaxInWindow, 4)
	})
}

func TestRejectedRequestsCountOnlyIfConfigured(t *testing.T) {
	for _, mode := range []Mode{Sliding, Fixed} {
		cfg := Config{Limit: 2, Mode: mode, NoLatency: true, CountRejected: true}
		inBubble(t, cfg, func(t *testing.T, r *rig) {
			r.mustGet(200)
			r.mustGet(200)
			r.at(30 * time.Second)
			r.mustGet(429)
			r.mustGet(429)
			r.at(60 * time.Second)
			want := 429 // the rejected ones still count
			if mode == Fixed {
				want = 200
			}
			r.mustGet(want)
			r.at(120 * time.Second)
			r.mustGet(200)
		})
	}
}

func TestFloodOfCountedRejectionsIsBounded(t *testing.T) {
	inBubble(t, Config{Limit: 2, CountRejected: true}, func(t *testing.T, r *rig) {
		r.Spend("", 100_000)
		r.expect("stranger rejected", r.Stats().StrangerRejected, int64(99_998))
		if n := len(r.primary.window.log.ring); n > 4096 {
			t.Errorf("the log holds %d entries", n)
		}
		r.expect("room", r.Spend("", 1), 0)
	})
}

func TestResetHeaderRounding(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want int
	}{
		{Config{}, 61},
		{Config{HeaderRounding: RoundDown}, 60},
		{Config{HeaderRounding: RoundNearest}, 60},
		{Config{ResetFullWindow: true}, 61},
		{Config{HeaderRounding: RoundDown, ResetFullWindow: true, ClockOffset: 400 * time.Millisecond}, 60},
		{Config{HeaderRounding: RoundNearest, ClockOffset: 400 * time.Millisecond}, 61},
		{Config{ClockOffset: -17 * time.Hour}, 61},
	} {
		tc.cfg.NoLatency = true
		inBubble(t, tc.cfg, func(t *testing.T, r *rig) {
			r.at(300 * time.Millisecond)
			r.expect("reset", r.mustGet(200).untilReset(), tc.want)
		})
	}
}

func TestClockOffsetShowsInDateAndReset(t *testing.T) {
	cfg := Config{Limit: 1, NoLatency: true, ClockOffset: -90 * time.Minute}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		got := r.mustGet(200)
		wall := time.Now().Add(-90 * time.Minute)
		r.expect("Date", got.header.Get("Date"), wall.UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
		r.expect("reset", got.int("X-RateLimit-Reset"), int(wall.Unix())+60)
		r.expect("Retry-After", r.mustGet(429).int("Retry-After"), 60)
	})
}

func TestResetFullWindowLeavesRetryAfterExact(t *testing.T) {
	inBubble(t, Config{Limit: 1, NoLatency: true, ResetFullWindow: true}, func(t *testing.T, r *rig) {
		r.mustGet(200)
		r.at(45 * time.Second)
		got := r.mustGet(429)
		r.expect("reset", got.untilReset(), 60)
		r.expect("Retry-After", got.int("Retry-After"), 15)
	})
}

func TestHeadersTellTheStateAtAdmissionOrAtResponse(t *testing.T) {
	for atResponse, want := range map[bool]int{false: 9, true: 6} {
		cfg := Config{
			Limit: 10, HeadersAtResponse: atResponse,
			Latency: map[string]Latency{GetPersonas: {Mean: 5 * time.Second}},
		}
		inBubble(t, cfg, func(t *testing.T, r *rig) {
			time.AfterFunc(time.Second, func() { r.Spend("", 3) })
			r.expect("remaining", r.mustGet(200).int("X-RateLimit-Remaining"), want)
		})
	}
}

// naive is the documented rule, word by word.
type naive struct {
	mode          Mode
	length, phase time.Duration
	accepted      []arrival
}

func (n *naive) used(now instant, of ...source) (used int) {
	for _, a := range n.accepted {
		in := a.at > now-n.length
		if n.mode == Fixed {
			start := n.phase - n.length
			for start+n.length <= now {
				start += n.length
			}
			in = a.at >= start
		}
		for _, s := range of {
			if in && a.from == s {
				used++
			}
		}
	}
	return used
}

func TestWindowAgreesWithTheNaiveRule(t *testing.T) {
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 1))
		mode := []Mode{Sliding, Fixed}[seed%2]
		length := time.Duration(2 + rng.IntN(60))
		phase := time.Duration(rng.Int64N(int64(length)))
		limit := 1 + rng.IntN(12)
		w := &window{mode: mode, length: length, phase: phase}
		n := &naive{mode: mode, length: length, phase: phase}
		now := instant(0)
		for range 250 {
			now += time.Duration(rng.IntN(6))
			w.advance(now)
			if got, want := w.used(), n.used(now, fleet, stranger); got != want {
				t.Fatalf("seed %d at %d: %d used, want %d", seed, now, got, want)
			}
			if got, want := w.ofFleet(), n.used(now, fleet); got != want {
				t.Fatalf("seed %d at %d: %d of the fleet, want %d", seed, now, got, want)
			}
			if w.used() < limit {
				from := []source{fleet, stranger}[rng.IntN(2)]
				w.add(now, from, limit)
				n.accepted = append(n.accepted, arrival{now, from})
				continue
			}
			// Capacity returns at resetAt and not before.
			reset := w.resetAt(now, limit)
			if n.used(reset, fleet, stranger) >= limit || n.used(reset-1, fleet, stranger) < limit {
				t.Fatalf("seed %d at %d: capacity does not return at %d", seed, now, reset)
			}
			if rng.IntN(10) == 0 {
				limit = 1 + rng.IntN(12)
			}
		}
	}
}

func TestUtilization(t *testing.T) {
	inBubble(t, Config{Limit: 60, NoLatency: true}, func(t *testing.T, r *rig) {
		for range 30 {
			r.mustGet(200)
		}
		r.Spend("", 6)
		r.at(time.Minute)
		if err := r.SetLimit(120); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			r.mustGet(200)
		}
		r.at(2 * time.Minute)
		for _, tc := range []struct {
			from, to        time.Duration
			fleet, stranger float64
		}{
			{0, time.Minute, 0.5, 0.1},
			{time.Minute, 2 * time.Minute, 0.5, 0},
			{0, 2 * time.Minute, 0.5, 6. / 180},
			{30 * time.Second, time.Minute, 0, 0},
			{time.Minute, time.Minute, 0, 0},
			{time.Hour, 2 * time.Hour, 0, 0},
		} {
			fleet, stranger := r.Utilization(tc.from, tc.to)
			if abs(fleet-tc.fleet) > 1e-6 || abs(stranger-tc.stranger) > 1e-6 {
				t.Errorf("%v-%v: %v and %v, want %v and %v", tc.from, tc.to, fleet, stranger, tc.fleet, tc.stranger)
			}
		}
	})
}

func abs(f float64) float64 { return max(f, -f) }

func TestUtilizationForgetsWhatIsOldAndStaysBounded(t *testing.T) {
	inBubble(t, Config{NoLatency: true}, func(t *testing.T, r *rig) {
		for range 20 {
			r.mustGet(200)
			time.Sleep(11 * time.Hour)
		}
		if n := len(r.timeline.buckets); n > 2*timelineBuckets {
			t.Errorf("%d buckets", n)
		}
		time.Sleep(1000 * time.Hour)
		r.mustGet(200)
		now := r.Since()
		fleet, _ := r.Utilization(now-time.Minute, now+time.Second)
		if fleet == 0 {
			t.Error("the last request is not in the timeline")
		}
		if fleet, _ := r.Utilization(0, time.Minute); fleet != 0 {
			t.Errorf("the first request is remembered: %v", fleet)
		}
	})
}
