package fleetsim

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// play runs a scenario in a bubble. On failure it prints what came of it, with the
// seed.
func play(t *testing.T, s Scenario, strategy Strategy, check func(t *testing.T, r Result)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := Run(t, s, strategy)
		check(t, r)
		if t.Failed() {
			t.Logf("seed %d: 429s %d, utilisation %.4f, jain %.4f, stats %+v", s.withDefaults().Seed, r.Own429, r.Utilization, r.Jain, r.Stats)
		}
	})
}

func TestEveryStrategyLeavesNothingBehind(t *testing.T) {
	for _, strategy := range Strategies() {
		t.Run(strategy.Name, func(t *testing.T) {
			s := Scenario{
				Length: 90 * time.Second,
				API:    API{Limit: 60},
				Fleet:  Fleet{Processes: 3},
				Events: []Event{Crash(20*time.Second, 1, 5*time.Second), RestartAPI(40*time.Second, 2*time.Second), RedisAway(60*time.Second, 5*time.Second)},
			}
			play(t, s, strategy, func(t *testing.T, r Result) {
				if r.Stats.Accepted < 60 || len(r.KeysLeft) > 0 {
					t.Errorf("%d requests accepted, keys left %v", r.Stats.Accepted, r.KeysLeft)
				}
			})
		})
	}
}

func TestTheOracleWastesNothingAndIsNeverRefused(t *testing.T) {
	for _, mode := range []mockapi.Mode{mockapi.Sliding, mockapi.Fixed} {
		s := Scenario{
			Length: 5 * time.Minute,
			API:    API{Limit: 120, Mode: mode, Phase: 10 * time.Second},
			Events: []Event{Stranger(0, 0.3), SetLimit(3*time.Minute, 240)},
		}
		play(t, s, Oracle, func(t *testing.T, r Result) {
			if r.Own429 > 0 || r.TotalUtilization < 0.99 {
				t.Errorf("%s: %d × 429, total utilisation %.4f", mode, r.Own429, r.TotalUtilization)
			}
		})
	}
}

func TestAKilledProcessGivesNothingBack(t *testing.T) {
	s := Scenario{
		Length: time.Minute,
		API: API{
			Latency: map[string]mockapi.Latency{mockapi.PostFocusGroups: {Mean: 5 * time.Minute}},
			Config:  func(c *mockapi.Config) { c.KeepBroken = true },
		},
		Fleet:  Fleet{Processes: 2, Loads: []Load{{Endpoint: mockapi.PostFocusGroups, Callers: 2}}},
		Events: []Event{Crash(10*time.Second, 0, time.Hour)},
	}
	play(t, s, Fleetlimit, func(t *testing.T, r Result) {
		if r.Orphaned < 15*time.Second || r.Orphaned > 30*time.Second {
			t.Errorf("the dead process held its slots for %v, want their TTL less a heartbeat", r.Orphaned)
		}
		if n := r.Stats.InFlight[mockapi.PostFocusGroups]; n != 4 {
			t.Errorf("the API works at %d calls, want 4: it has not seen that a client died", n)
		}
	})
}

func TestADeadProcessCannotBeKilledAgain(t *testing.T) {
	s := Scenario{
		Length: time.Minute, API: API{Limit: 60}, Fleet: Fleet{Processes: 1},
		Events: []Event{Crash(0, 0, 30*time.Second), Crash(60*time.Millisecond, 0, time.Second), Crash(40*time.Second, 0, time.Second)},
	}
	play(t, s, Fleetlimit, func(t *testing.T, r Result) {
		if len(r.Crashes) != 2 {
			t.Errorf("it died %d times, want twice: %v", len(r.Crashes), r.Crashes)
		}
	})
}

func TestARunIsRepeatable(t *testing.T) {
	var runs []string
	for range 2 {
		s := Scenario{Length: 2 * time.Minute, API: API{Limit: 120}, Fleet: Fleet{Processes: 3}, Seed: 7}
		play(t, s, Fleetlimit, func(t *testing.T, r Result) {
			runs = append(runs, fmt.Sprint(r.Stats.Accepted, r.Own429, r.PerProcess, r.LateWaitP50.Round(100*time.Millisecond)))
		})
	}
	if runs[0] != runs[1] {
		t.Errorf("the same seed gave %s and then %s", runs[0], runs[1])
	}
}

func TestWrongClocksShowInTheHeaders(t *testing.T) {
	w := &World{scenario: Scenario{Fleet: Fleet{Processes: 3, Skew: 90 * time.Second}}.withDefaults()}
	for process, want := range []string{"1090", "1000", "910"} {
		h := make(map[string][]string)
		header := headerOf(h, "Thu, 01 Jan 1970 00:10:00 GMT", "1000")
		w.skew(process, header)
		if got := header.Get("X-RateLimit-Reset"); got != want {
			t.Errorf("process %d sees the reset at %s, want %s", process, got, want)
		}
		date, err := time.Parse(time.RFC1123, header.Get("Date"))
		if ahead := 600 - date.Unix(); err != nil || fmt.Sprint(1000-ahead) != want {
			t.Errorf("process %d sees the date %v (%v): it must be off as the reset is", process, date, err)
		}
	}
}

func headerOf(h http.Header, date, reset string) http.Header {
	h.Set("Date", date)
	h.Set("X-RateLimit-Reset", reset)
	return h
}

// Who comes back while the API's pause is nearly over makes it as long as all need to tell
// what they spent. Each of those who were called to tell made it that long again, and called
// the others: the fleet stood still for ever. (A random scenario found it, by never ending.)
func TestAnOutageWithinAPauseOfTheAPIEndsWithIt(t *testing.T) {
	s := Scenario{
		Length: 6 * time.Minute,
		API:    API{Limit: 60},
		Fleet:  Fleet{Processes: 5},
		Events: []Event{Pause(2*time.Minute, 9*time.Second), CutOff(2*time.Minute+time.Second, 6*time.Second, 4)},
	}
	play(t, s, Fleetlimit, func(t *testing.T, r Result) {
		late := 0
		for _, a := range r.Attempts {
			if a.Left >= 4*time.Minute && a.Left < 6*time.Minute {
				late++
			}
		}
		if late < 115 || r.CommandsPerAdmission > 5 {
			t.Errorf("%d requests in the last two minutes, want nearly 120; %.1f commands for each", late, r.CommandsPerAdmission)
		}
	})
}
