package lua

import (
	"testing"
	"time"
)

// A hush is a fleet of three with a limit of 60, of which one falls silent: its share
// is 20 in a minute.
type hush struct {
	*testing.T
	s *server
	p limits
}

func inAHush(t *testing.T, test func(h hush)) {
	onEachServer(t, func(t *testing.T, s *server) {
		h := hush{t, s, limits{limit: 60, window: 60_000, headroom: 1, burst: 60}}
		h.beat("a", "b", "c")
		h.budget("a", 60)
		test(h)
	})
}

func (h hush) beat(workers ...string) {
	h.Helper()
	for _, w := range workers {
		h.s.renew(h, h.p, w, 30_000)
	}
}

// budget is what the fleet may spend, as a worker is told when it asks.
func (h hush) budget(worker string, want int) {
	h.Helper()
	if r := h.s.admit(h, h.p, ask{worker: worker, endpoint: -1, n: 1}); r.budget != want {
		h.Errorf("%s is told of a budget of %d, want %d", worker, r.budget, want)
	}
}

func TestTheShareOfASilentWorkerIsKeptFreeUntilItIsHeardOrDead(t *testing.T) {
	inAHush(t, func(h hush) {
		h.s.advance(12_400 * time.Millisecond)
		h.beat("a", "b")
		h.budget("a", 60) // c is late, but not by much
		h.s.advance(200 * time.Millisecond)
		h.budget("a", 58) // one, and a little
		h.s.advance(6 * time.Second)
		h.budget("b", 56)
		h.beat("c")
		h.budget("b", 60)

		h.s.advance(10 * time.Second)
		h.beat("a", "b")
		h.s.advance(10 * time.Second)
		h.beat("a", "b")
		h.budget("a", 56) // for 7.5 s
		h.budget("c", 60) // asking is being heard
		h.budget("a", 60)
		h.beat("c")
		h.s.advance(25 * time.Second)
		h.beat("a", "b")
		h.budget("a", 54) // for 12.5 s
		h.s.advance(6 * time.Second)
		h.beat("a")
		// It is dead; should it live all the same, it is a stranger, who is waited for in
		// the headers: that reserve fades within three windows.
		h.s.admit(h, h.p, ask{worker: "a", endpoint: -1, n: 1})
		if n := h.s.field(h, "silent"); n != 0 {
			h.Errorf("%v silent workers, want none: it is dead", n)
		}
		for range 18 {
			h.s.advance(10 * time.Second)
			h.beat("a", "b")
		}
		h.budget("a", 60)
	})
}

func TestWhoLetsItsTurnGoByIsSilentAtOnce(t *testing.T) {
	inAHush(t, func(h hush) {
		for range 59 {
			h.s.admit(h, h.p, ask{worker: "a", endpoint: -1, n: 1})
		}
		r := h.s.admit(h, h.p, ask{worker: "b", endpoint: -1, n: 1, queue: true})
		if r.granted != 0 || r.wait < 59_000 {
			h.Fatalf("%+v, want to wait for the window", r)
		}
		for range 5 {
			h.s.advance(10 * time.Second)
			h.beat("a", "b", "c")
		}
		h.s.advance(10*time.Second + 900*time.Millisecond)
		h.beat("a", "b", "c")
		h.budget("a", 60)
		h.s.advance(100 * time.Millisecond)
		h.budget("a", 59)
		h.s.advance(3 * time.Second)
		h.budget("a", 58)
		h.budget("b", 60)
		h.budget("a", 60)
	})
}

func TestWhoSaysGoodbyeOrHasNeverBeatenIsNotSilent(t *testing.T) {
	inAHush(t, func(h hush) {
		h.s.renew(h, h.p, "c", 0)
		h.s.admit(h, h.p, ask{worker: "d", endpoint: -1, n: 200, queue: true}) // it waits, and dies
		h.s.advance(10 * time.Second)
		h.beat("a", "b")
		h.s.advance(10 * time.Second)
		h.beat("a", "b")
		h.s.advance(2 * time.Second)
		h.budget("a", 60)
		h.s.advance(time.Minute)
		h.beat("a", "b")
		h.budget("a", 60)
	})
}

// Who has come back goes on alone until it is heard of without saying so.
func TestAWorkerThatResumesIsAloneUntilItsNextExchange(t *testing.T) {
	inAHush(t, func(h hush) {
		h.s.settle(h, h.p, "c", "resume", 10_000)
		h.budget("a", 59)
		h.s.settle(h, h.p, "c")
		h.budget("a", 60)
	})
}

func TestAKeyThatIsDeletedKeepsNothingFree(t *testing.T) {
	inAHush(t, func(h hush) {
		h.s.advance(20 * time.Second)
		h.beat("a", "b")
		h.budget("a", 56)
		h.s.rdb.Del(h.Context(), h.s.prefix+"expected")
		h.budget("a", 60)
		h.beat("b")
		h.s.rdb.Del(h.Context(), h.s.prefix+"workers")
		h.beat("a") // b is expected, and nobody knows until when it lives
		h.s.advance(time.Minute)
		h.beat("a")
		h.budget("a", 60)
	})
}

// Nobody is kept from its own share, however many are silent: a clock that jumps ahead
// silences all.
func TestTheSilentLeaveTheOthersTheirShares(t *testing.T) {
	inAHush(t, func(h hush) {
		h.s.advance(29 * time.Second)
		r := h.s.admit(h, h.p, ask{worker: "a", endpoint: -1, n: 60})
		if r.budget < 20 || r.budget > 47 || r.granted < 20 {
			h.Errorf("%+v, want a budget of the 60 less two shares, as far as they have grown", r)
		}
		h.s.advance(4 * time.Minute) // what they may have spent as strangers is forgotten by then
		h.budget("a", 60)
	})
}

// What a worker spent alone was seen in the headers as strangers': told, it is that no
// more.
func TestWhatIsToldIsNoStrangersUse(t *testing.T) {
	inAHush(t, func(h hush) {
		h.s.advance(20 * time.Second)
		h.beat("a", "b", "c")
		r := h.s.admit(h, h.p, ask{worker: "a", endpoint: -1, n: 1})
		h.s.settle(h, h.p, "a", saying{
			endpoint: -1, seq: r.last, admitted: r.at, base: r.last - int64(r.own), epoch: r.epoch,
			status: 200, limit: 60, remaining: float64(60 - r.own - 8), reset: -1, retryAfter: -1,
		}.args()...)
		if n := h.s.field(h, "foreign"); n != 8 {
			h.Fatalf("%v requests of strangers, want 8", n)
		}
		h.s.settle(h, h.p, "c", "spent", 5, 3000)
		if n := h.s.field(h, "foreign"); n != 3 {
			h.Errorf("%v requests of strangers, want the 3 that nobody has told", n)
		}
	})
}
