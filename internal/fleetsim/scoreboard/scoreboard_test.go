package scoreboard

import (
	"testing"

	"github.com/fleetlimit/fleetlimit/internal/fleetsim"
)

// The short form of the scoreboard: ours in every situation, each with one limit
// and one kind of window, such that all of them have their turn.
func TestGoalsAreReached(t *testing.T) {
	for i, s := range Catalogue {
		limit, window := 120, Windows[i%2]
		if i%4 >= 2 && !raceDetector {
			limit = 600
		}
		if s.Name == "thousand" && raceDetector {
			continue // a thousand processes take minutes under the race detector
		}
		r := Run{Situation: s, Strategy: fleetsim.Fleetlimit, Limit: limit, Window: window, Seed: 1}
		t.Run(r.Situation.Name, func(t *testing.T) {
			t.Parallel()
			r.Play(t)
			for _, c := range r.Missed() {
				t.Errorf("%s\n%s", c, r.Name())
			}
		})
	}
}

// What people use today is played in one situation, so that the comparison itself
// is known to run.
func TestOthersArePlayed(t *testing.T) {
	s, _ := Find("saturated")
	for _, strategy := range fleetsim.Strategies() {
		if strategy.Name == fleetsim.Fleetlimit.Name {
			continue
		}
		r := Run{Situation: s, Strategy: strategy, Limit: 60, Window: "sliding", Seed: 1}
		t.Run(strategy.Name, func(t *testing.T) {
			t.Parallel()
			r.Play(t)
			switch {
			case r.Row.Utilization < 0.8 || r.Row.Utilization > 1.001:
				t.Errorf("utilisation %.3f", r.Row.Utilization)
			case strategy.Name == fleetsim.Oracle.Name && r.Row.Own429 > 0:
				t.Errorf("the oracle was refused %d times", r.Row.Own429)
			case strategy.Name == fleetsim.Reactive.Name && r.Row.Own429 == 0:
				t.Error("who only reacts was never refused")
			}
		})
	}
}
