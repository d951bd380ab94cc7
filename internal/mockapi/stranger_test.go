package mockapi

import (
	"context"
	"math"
	"testing"
	"time"
)

func (r *rig) stranger(s Stranger) (stop func()) {
	r.t.Helper()
	stop, err := r.StartStranger(s)
	if err != nil {
		r.t.Fatal(err)
	}
	return stop
}

func TestPoissonStrangerUsesItsShareOfTheLimit(t *testing.T) {
	inBubble(t, Config{Limit: 600, Seed: 2}, func(t *testing.T, r *rig) {
		stop := r.stranger(Stranger{Fraction: 0.3})
		r.at(time.Hour)
		n := r.Stats().StrangerAccepted // 10,800 expected; σ is 104
		if n < 10_400 || n > 11_200 {
			t.Errorf("the stranger spent %d in an hour", n)
		}
		_, share := r.Utilization(0, time.Hour)
		if abs(share-0.3) > 0.015 {
			t.Errorf("utilisation by the stranger is %v", share)
		}
		if err := r.SetLimit(60); err != nil {
			t.Fatal(err)
		}
		r.at(2 * time.Hour)
		if later := r.Stats().StrangerAccepted - n; later < 900 || later > 1300 {
			t.Errorf("after the tier change the stranger spent %d in an hour", later)
		}
		stop()
		stop()
		n = r.Stats().StrangerAccepted
		time.Sleep(time.Hour)
		r.expect("spent after stop", r.Stats().StrangerAccepted, n)
		s := r.Stats()
		r.expect("requests of the fleet", s.Requests, int64(0))
		r.expect("most of the fleet in a window", s.MaxInWindow, 0)
	})
}

func TestBurstingStrangerSpendsAtOnce(t *testing.T) {
	inBubble(t, Config{Limit: 10, NoLatency: true}, func(t *testing.T, r *rig) {
		r.stranger(Stranger{Burst: 4, Every: 20 * time.Second})
		r.at(19 * time.Second)
		r.expect("remaining", r.Stats().Remaining, 10)
		r.at(21 * time.Second)
		r.expect("remaining, before any key was seen", r.Stats().Remaining, 6)
		r.expect("remaining", r.mustGet(200).int("X-RateLimit-Remaining"), 5)
		r.at(61 * time.Second)
		s := r.Stats()
		r.expect("accepted", s.StrangerAccepted, int64(9))
		r.expect("rejected", s.StrangerRejected, int64(3))
		r.expect("status", r.get().status, 429)
		s = r.Stats()
		r.expect("limit violations", s.LimitViolations, int64(0))
		r.expect("unavoidable", s.Unavoidable429, int64(1))
		r.expect("429s", s.Responses429, int64(1))
	})
}

func TestStrangerIsNoExcuseOnceTheFleetAloneIsOver(t *testing.T) {
	for _, mode := range []Mode{Sliding, Fixed} {
		inBubble(t, Config{Limit: 4, Mode: mode, NoLatency: true}, func(t *testing.T, r *rig) {
			r.expect("spent", r.Spend("", 1), 1)
			for range 3 {
				r.mustGet(200)
			}
			r.mustGet(429) // the stranger took the fourth
			r.expect("limit violations", r.Stats().LimitViolations, int64(0))
			r.at(time.Minute)
			for range 4 {
				r.mustGet(200)
			}
			r.expect("spent", r.Spend("", 2), 0)
			r.mustGet(429)
			r.expect("limit violations", r.Stats().LimitViolations, int64(1))
		})
	}
}

func TestSpendOnANamedKey(t *testing.T) {
	inBubble(t, Config{Limit: 5, NoLatency: true}, func(t *testing.T, r *rig) {
		r.mustGet(200)
		r.expect("spent", r.Spend("mvra_other", 9), 5)
		r.expect("spent", r.Spend("mvra_other", -1), 0)
		r.expect("remaining", r.mustGet(200).int("X-RateLimit-Remaining"), 3)
		r.expect("other key", r.doCtx(context.Background(), "mvra_other", GetPersonas, "").status, 429)
		r.stranger(Stranger{Key: "mvra_third", Burst: 2, Every: time.Second})
		r.at(1500 * time.Millisecond)
		got := r.doCtx(context.Background(), "mvra_third", GetPersonas, "")
		r.expect("remaining", got.int("X-RateLimit-Remaining"), 2)
	})
}

func TestStrangersThatMakeNoSenseAreErrors(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		for _, s := range []Stranger{
			{}, {Fraction: -1}, {Fraction: math.NaN()}, {Fraction: math.Inf(1)},
			{Burst: -1}, {Burst: 1, Fraction: 0.1}, {Burst: 1, Every: -time.Second},
		} {
			if _, err := r.StartStranger(s); err == nil {
				t.Errorf("%+v is no error", s)
			}
		}
		r.Close()
		if _, err := r.StartStranger(Stranger{Burst: 1}); err == nil {
			t.Error("a stranger started after Close")
		}
	})
}

func TestLoweredTierIsAViolationOnlyOnceTheFleetCouldKnow(t *testing.T) {
	inBubble(t, Config{Limit: 10, NoLatency: true, Grace: time.Second}, func(t *testing.T, r *rig) {
		for range 6 {
			r.mustGet(200)
		}
		if err := r.SetLimit(4); err != nil {
			t.Fatal(err)
		}
		r.at(time.Second)
		got := r.mustGet(429) // nobody could know
		r.expect("limit", got.int("X-RateLimit-Limit"), 4)
		r.expect("Retry-After: capacity, not the oldest", got.int("Retry-After"), 59)
		r.at(2 * time.Second)
		r.mustGet(429) // still in grace
		r.expect("limit violations", r.Stats().LimitViolations, int64(0))
		r.expect("unavoidable", r.Stats().Unavoidable429, int64(2))
		r.at(2*time.Second + 1)
		r.mustGet(429)
		r.expect("limit violations", r.Stats().LimitViolations, int64(1))
		r.at(time.Minute)
		for range 4 {
			r.mustGet(200)
		}
		if err := r.SetTier("starter"); err != nil {
			t.Fatal(err)
		}
		got = r.mustGet(200)
		r.expect("limit", got.int("X-RateLimit-Limit"), 60)
		r.expect("remaining", got.int("X-RateLimit-Remaining"), 55)
	})
}

func TestAnswerFromBeforeATierChangeIsNoNews(t *testing.T) {
	cfg := Config{Limit: 10, NoLatency: true, Latency: map[string]Latency{PostMaveChat: {Mean: 10 * time.Second}}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		late := make(chan answer, 1)
		go func() { late <- r.do(PostMaveChat, "{}") }()
		r.at(time.Second)
		for range 5 {
			r.mustGet(200)
		}
		if err := r.SetLimit(4); err != nil {
			t.Fatal(err)
		}
		r.mustGet(429)
		got := <-late
		r.expect("limit of the late answer", got.int("X-RateLimit-Limit"), 10)
		r.at(11 * time.Second)
		r.mustGet(429)
		r.expect("limit violations", r.Stats().LimitViolations, int64(1))
	})
}
