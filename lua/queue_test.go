package lua

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A waiter is a worker that wants permits for one endpoint and sleeps for as long
// as it is told.
type waiter struct {
	ask
	wants int
	came  float64 // instant of its first ask
	next  float64 // instant of its next ask
	deaf  bool    // messages to it are lost
	mute  int     // it dies after this many asks
}

func (w *waiter) waits() bool { return w.wants > 0 && w.mute > 0 }

// A hall is a simulation of workers that wait.
type hall struct {
	f       fails
	s       *server
	p       limits
	waiters []*waiter
	held    []slot
	grants  []float64
	served  []*waiter // in the order of their last permits
	asks    int
}

type slot struct {
	until float64
	held
	worker string
}

func newHall(f fails, s *server, p limits) *hall {
	s.reset(f)
	return &hall{f: f, s: s, p: p}
}

func (h *hall) add(endpoint, wants int, after float64) *waiter {
	w := &waiter{wants: wants, came: h.s.now() + after, next: h.s.now() + after, mute: math.MaxInt}
	w.ask = ask{worker: fmt.Sprintf("w%02d", len(h.waiters)), endpoint: endpoint, queue: true}
	h.waiters = append(h.waiters, w)
	return w
}

// run lets time pass until everybody alive is served, and returns how long it took.
func (h *hall) run(hold float64, longest time.Duration) time.Duration {
	start := h.s.micros
	for {
		w := h.nextWaiter()
		if w == nil {
			return time.Duration(h.s.micros-start) * time.Microsecond
		}
		if h.releaseNext(w.next) {
			continue
		}
		h.goTo(w.next)
		if passed := time.Duration(h.s.micros-start) * time.Microsecond; passed > longest {
			h.f.Fatalf("%s still waits after %v for %d permits", w.place(h.p), passed, w.wants)
		}
		h.turn(w, hold)
	}
}

func (h *hall) nextWaiter() *waiter {
	var first *waiter
	for _, w := range h.waiters {
		if w.waits() && (first == nil || w.next < first.next) {
			first = w
		}
	}
	return first
}

func (h *hall) turn(w *waiter, hold float64) {
	w.n = w.wants
	w.mute--
	h.asks++
	r := h.s.admit(h.f, h.p, w.ask)
	now := h.s.now()
	for seq := r.last - int64(r.granted) + 1; seq <= r.last; seq++ {
		h.grants = append(h.grants, now)
		if w.endpoint >= 0 {
			h.held = append(h.held, slot{now + hold, held{w.endpoint, r.lease(w.worker, seq)}, w.worker})
		}
	}
	if w.wants -= r.granted; w.wants == 0 {
		h.served = append(h.served, w)
	}
	w.next = now + r.wait
	h.check()
	h.hear()
}

// hear moves up the next ask of those who were told that they may come earlier.
func (h *hall) hear() {
	for _, w := range h.waiters {
		if !w.waits() || w.deaf || w.next <= h.s.now() {
			continue
		}
		keys := []string{"due"}
		if w.endpoint >= 0 {
			keys = append(keys, "due:"+h.p.endpoints[w.endpoint].name)
		}
		for _, key := range keys {
			if due, ok := h.s.score(h.f, key, w.place(h.p)); ok {
				w.next = max(h.s.now(), min(w.next, due))
			}
		}
	}
}

func (h *hall) check() {
	now, in := h.s.now(), 0
	for _, at := range h.grants {
		if at > now-h.p.horizon() {
			in++
		}
	}
	if in > h.p.limit {
		h.f.Fatalf("%d permits in a window of %d", in, h.p.limit)
	}
	for e, endpoint := range h.p.endpoints {
		busy := 0
		for _, s := range h.held {
			if s.endpoint == e {
				busy++
			}
		}
		if busy > endpoint.slots {
			h.f.Fatalf("%d slots of %s are in use, there are %d", busy, endpoint.name, endpoint.slots)
		}
	}
	h.s.requireTTLs(h.f)
}

// releaseNext gives back the slot whose time comes first, if it comes before t.
func (h *hall) releaseNext(t float64) bool {
	first := -1
	for i, s := range h.held {
		if s.until <= t && (first < 0 || s.until < h.held[first].until) {
			first = i
		}
	}
	if first < 0 {
		return false
	}
	s := h.held[first]
	h.held = append(h.held[:first], h.held[first+1:]...)
	h.goTo(s.until)
	h.s.settle(h.f, h.p, s.worker, "release", s.endpoint+1, s.lease, 0)
	h.hear()
	return true
}

// goTo moves the clock forward to the first microsecond that is not before t.
func (h *hall) goTo(t float64) {
	if by := math.Ceil((t - h.s.now()) * 1000); by > 0 {
		h.s.advance(time.Duration(by) * time.Microsecond)
	}
}

func seconds(x float64) time.Duration { return time.Duration(x * float64(time.Millisecond)) }

func TestWhoComesWhenToldIsServed(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		rapid.Check(t, func(t *rapid.T) {
			p := drawLimits(t)
			p.headroom = 1
			p.endpoints[0].jobLease, p.endpoints[1].jobLease = 0, 0
			h := newHall(t, s, p)
			demand := 0
			for range rapid.IntRange(1, 8).Draw(t, "workers") {
				after := rapid.Float64Range(0, p.window/10).Draw(t, "after")
				w := h.add(rapid.IntRange(-1, 1).Draw(t, "endpoint"), rapid.IntRange(1, 4).Draw(t, "wants"), math.Round(after))
				w.headStart = rapid.SampledFrom([]float64{0, 0, 0, 60_000, -60_000}).Draw(t, "head start")
				switch rapid.IntRange(0, 5).Draw(t, "fate") {
				case 0:
					w.mute = rapid.IntRange(1, 2).Draw(t, "dies after")
				case 1:
					w.deaf = true
				}
				demand += w.wants
			}
			// Everything in single file, and whoever dies is waited for: to be told
			// its turn takes 5 minutes at most.
			hold := rapid.SampledFrom([]float64{100, 2000}).Draw(t, "hold")
			rounds := float64(demand/p.limit + 2)
			longest := rounds*p.horizon() + float64(demand)*(hold+p.window/float64(p.limit)+10_000) + 9*longestPause
			h.run(hold, seconds(longest))
		})
	})
}

func TestWorkersAreServedInTheOrderOfTheirComing(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		for _, p := range []limits{
			{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 1},
			{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 10},
			{limit: 5, window: 1000, headroom: 1, burst: 5},
		} {
			for _, spread := range []float64{0, 1, 700} {
				h := newHall(t, s, p)
				for i := range 20 {
					h.add(-1, 1, float64(i)*spread)
				}
				took := h.run(0, time.Hour)
				for i, w := range h.served {
					if want := h.waiters[i]; w != want {
						t.Fatalf("limit %d burst %d: %s was served as number %d before %s", p.limit, p.burst, w.worker, i, want.worker)
					}
				}
				windows := float64((20-p.burst)/p.limit + 1)
				if most := seconds(20*spread + windows*p.horizon()); took > most {
					t.Errorf("limit %d burst %d: 20 permits took %v, want at most %v", p.limit, p.burst, took, most)
				}
				if perPermit := float64(h.asks) / 20; perPermit > 3 {
					t.Errorf("limit %d burst %d: %.1f asks for each permit", p.limit, p.burst, perPermit)
				}
			}
		}
	})
}

func TestWaitersShareAlike(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 1}
		h := newHall(t, s, p)
		// One wants far more than the others; they do not wait for it.
		h.add(-1, 40, 0)
		for i := range 4 {
			h.add(-1, 3, 10+float64(i))
		}
		h.run(0, time.Hour)
		if last := h.served[len(h.served)-1]; last != h.waiters[0] {
			t.Errorf("%s was served last, want the one that wants most", last.worker)
		}
		if got := h.served[3].wants; got != 0 {
			t.Errorf("wants %d", got)
		}
	})
}

func TestPausedEndpointHoldsUpNobodyElse(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server) {
		p := limits{limit: 60, window: 60_000, jitter: 250, headroom: 1, burst: 1,
			endpoints: []endpoint{{"POST /chat", 2, 30_000, 0}}}
		h := newHall(t, s, p)
		r := s.admit(t, p, ask{worker: "x", endpoint: 0, n: 1})
		refused := saying{endpoint: 0, seq: r.last, admitted: r.at, epoch: r.epoch, base: r.last - 1,
			status: 429, limit: 60, remaining: 59, reset: -1, retryAfter: 240_000}
		s.settle(t, p, "x", refused.args()...)
		paused := h.add(0, 1, 0)
		for i := range 10 {
			h.add(-1, 1, float64(i+1))
		}
		h.run(0, 10*time.Minute)
		if h.served[10] != paused {
			t.Fatalf("the paused endpoint was not served last")
		}
		if last := h.grants[9] - h.waiters[1].came; last > 12_000 {
			t.Errorf("10 requests without slot took %v behind a paused endpoint, want 10 s", seconds(last))
		}
	})
}
