package fleetsim

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// play runs a scenario in virtual time. The seed is in the name of the test.
func play(t *testing.T, s Scenario, check func(t *testing.T, r Result)) {
	t.Helper()
	for _, api := range []API{
		{Limit: 120, Mode: mockapi.Fixed, Phase: 17 * time.Second},
		{Limit: 600, Mode: mockapi.Sliding},
	} {
		s := s
		s.Seed = 1
		s.Length = 5 * time.Minute
		s.API.Limit, s.API.Mode, s.API.Phase = api.Limit, api.Mode, api.Phase
		t.Run(fmt.Sprintf("limit=%d/window=%s/seed=%d", api.Limit, api.Mode, s.Seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := Run(t, s, Fleetlimit)
				check(t, r)
				if t.Failed() {
					t.Logf("%+v", r)
				}
			})
		})
	}
}

func TestSaturatedFleetUsesTheWholeTierWithNo429(t *testing.T) {
	play(t, Scenario{}, func(t *testing.T, r Result) {
		if r.Own429 != 0 {
			t.Errorf("%d responses 429", r.Own429)
		}
		if r.Utilization < 0.99 {
			t.Errorf("utilisation %.4f, want 0.99", r.Utilization)
		}
		if r.LateWaitP99 > r.LateWaitP50*3/2 {
			t.Errorf("late wait p99 %v, p50 %v: want at most 1.5 times", r.LateWaitP99, r.LateWaitP50)
		}
		if r.Jain < 0.999 {
			t.Errorf("Jain index %.5f of %v, want 0.999", r.Jain, r.PerProcess)
		}
		if r.CommandsPerAdmission > 3 {
			t.Errorf("%.2f Redis commands per admission, want at most 3", r.CommandsPerAdmission)
		}
	})
}

func TestBurstOfHalfTheLimitIsAdmittedAtOnce(t *testing.T) {
	for _, limit := range []int{120, 600} {
		s := Scenario{Length: 5 * time.Minute, API: API{Limit: limit},
			Fleet: Fleet{Arrival: Bursts{Size: limit / 16, Every: 75 * time.Second}}}
		synctest.Test(t, func(t *testing.T) {
			r := Run(t, s, Fleetlimit)
			if r.Own429 != 0 || r.WaitP99 > 250*time.Millisecond {
				t.Errorf("limit %d: %d responses 429, wait p99 %v; want none and 250 ms", limit, r.Own429, r.WaitP99)
			}
		})
	}
}

func TestFiveSlotsAreFilledAndNeverSix(t *testing.T) {
	s := Scenario{
		API:   API{Latency: mockapi.Latency{Mean: 20 * time.Second}},
		Fleet: Fleet{Endpoint: mockapi.PostFocusGroups},
	}
	play(t, s, func(t *testing.T, r Result) {
		if most := r.Stats.MaxInFlight[mockapi.PostFocusGroups]; most != 5 || r.Own429 != 0 {
			t.Errorf("%d calls at once and %d responses 429, want 5 and none", most, r.Own429)
		}
		// A call takes 20 s, of which the network's jitter is 30 ms on average.
		if want := int64(5 * 15 * 98 / 100); r.Stats.Accepted < want {
			t.Errorf("%d calls, want at least %d", r.Stats.Accepted, want)
		}
	})
}

func TestLongJitterAndWrongClocksDoNoHarm(t *testing.T) {
	s := Scenario{
		API: API{
			Jitter: 500 * time.Millisecond,
			Config: func(c *mockapi.Config) { c.ClockOffset = 90 * time.Second },
		},
		Fleet: Fleet{Jitter: 500 * time.Millisecond},
	}
	play(t, s, func(t *testing.T, r Result) {
		if r.Own429 != 0 || r.Utilization < 0.98 {
			t.Errorf("%d responses 429, utilisation %.4f; want none and 0.98", r.Own429, r.Utilization)
		}
	})
}

func TestSurprise429StopsTheFleetForOnePause(t *testing.T) {
	s := Scenario{Events: []Event{Surprise(2*time.Minute, 20*time.Second)}}
	play(t, s, func(t *testing.T, r Result) {
		// What was on its way when the pause began: the requests of 60 ms and, at
		// the worst moment, a small burst of 2 % of the limit.
		inFlight := int(float64(r.Stats.Limit)*(0.06/60+0.02)) + 2
		if r.Own429 < 1 || r.Own429 > inFlight {
			t.Errorf("%d responses 429, want 1 to %d: those in flight", r.Own429, inFlight)
		}
		if lost := (1 - r.Utilization) * 300; lost > 25 {
			t.Errorf("a pause of 20 s cost %.0f s", lost)
		}
	})
}

func TestStrangersCostFew429s(t *testing.T) {
	play(t, Scenario{Events: []Event{Stranger(0, 0.3)}}, func(t *testing.T, r Result) {
		if r.Own429 > 2 || r.TotalUtilization < 0.90 {
			t.Errorf("%d responses 429, total utilisation %.4f", r.Own429, r.TotalUtilization)
		}
	})
}
