package fleetsim

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

func TestExplore(t *testing.T) {
	for _, limit := range []int{120, 600} {
		for _, mode := range []mockapi.Mode{mockapi.Sliding, mockapi.Fixed} {
			api := API{Limit: limit, Mode: mode, Phase: 17 * time.Second}
			if mode == mockapi.Sliding {
				api.Phase = 0
			}
			japi := api
			japi.Jitter = 500 * time.Millisecond
			slots := api
			slots.Latency = mockapi.Latency{Mean: 20 * time.Second}
			drop := api
			drop.Limit = 600
			rise := api
			rise.Limit = 120
			for _, s := range []Scenario{
				{Name: "saturated", API: api},
				{Name: "burst", API: api, Fleet: Fleet{Arrival: Bursts{limit / 16, 75 * time.Second}}},
				{Name: "stranger", API: api, Events: []Event{Stranger(0, 0.3)}},
				{Name: "stranger-burst", API: api, Events: []Event{StrangerBursts(0.2, 6)}},
				{Name: "tier-drop", API: drop, Events: []Event{SetLimit(5*time.Minute, 120)}},
				{Name: "tier-rise", API: rise, Fleet: Fleet{PolicyLimit: 600}, Events: []Event{SetLimit(5*time.Minute, 600)}},
				{Name: "slots", API: slots, Fleet: Fleet{Endpoint: "POST /focus-groups"}},
				{Name: "surprise-429", API: api, Events: []Event{Surprise(3*time.Minute, 20*time.Second)}},
				{Name: "jitter", API: japi, Fleet: Fleet{Jitter: 500 * time.Millisecond}},
			} {
				t.Run(fmt.Sprintf("%s/%d/%s", s.Name, limit, mode), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := Run(t, s, Fleetlimit)
						t.Logf("%-14s %d %-7s 429 %d viol %d slotviol %d pause %d util %.2f%% total %.2f%% p50 %v p99 %v late %v %v cmds %.2f jain %.5f max %v", s.Name, limit, mode, r.Own429, r.Stats.LimitViolations, r.Stats.SlotViolations, r.Stats.PauseViolations, 100*r.Utilization, 100*r.TotalUtilization, r.WaitP50.Round(time.Millisecond), r.WaitP99.Round(time.Millisecond), r.LateWaitP50.Round(time.Millisecond), r.LateWaitP99.Round(time.Millisecond), r.CommandsPerAdmission, r.Jain, r.Stats.MaxInFlight["POST /focus-groups"])
					})
				})
			}
		}
	}
}

func TestStrangerTuning(t *testing.T) {
	for _, limit := range []int{120, 600} {
		for _, mode := range []mockapi.Mode{mockapi.Sliding, mockapi.Fixed} {
			var n, pct []float64
			for seed := range uint64(4) {
				synctest.Test(t, func(t *testing.T) {
					r := Run(t, Scenario{Seed: seed + 1, API: API{Limit: limit, Mode: mode}, Events: []Event{Stranger(0, 0.3)}}, Fleetlimit)
					n = append(n, float64(r.Own429))
					pct = append(pct, float64(int(r.TotalUtilization*10000))/100)
				})
			}
			t.Log(limit, mode, n, pct)
		}
	}
}
