package fleetsim

import (
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// A fleet that has just begun loses a single permit of its Redis's memory. Who knows of it says
// so as soon as it is connected again, before others are granted as many anew.
func TestOnePermitThatAnOldDumpDoesNotKnowIsTold(t *testing.T) {
	s := Scenario{
		Seed: 995544706, Length: 150 * time.Second,
		API: API{
			Limit: 20, Mode: mockapi.Fixed, Phase: 14 * time.Millisecond, Travel: 31 * time.Millisecond,
			Latency: map[string]mockapi.Latency{
				mockapi.PostResponses: {Mean: 23 * time.Millisecond, Jitter: 1},
				mockapi.PostMaveChat:  {Mean: 12 * time.Second, Jitter: 1},
			},
			Rounding: mockapi.RoundDown, ClockOffset: -279 * time.Second,
			Config: func(c *mockapi.Config) { c.Grace = 500 * time.Millisecond },
		},
		Fleet: Fleet{Processes: 5, Skew: 18 * time.Second, Loads: []Load{
			{Endpoint: mockapi.PostMaveChat, Callers: 4, Arrival: OnOff{85 * time.Second, 35 * time.Second}},
			{Endpoint: mockapi.PostResponses, Callers: 3, Arrival: Saturated{}},
		}},
		Events: []Event{RedisGoesBack(3674*time.Millisecond, 2674*time.Millisecond)},
	}
	play(t, s, Fleetlimit, func(t *testing.T, r Result) {
		if most := r.MostInWindow(time.Minute); most > s.API.Limit || r.Own429 > 0 {
			t.Errorf("%d requests in a window of %d, %d × 429", most, s.API.Limit, r.Own429)
		}
		if len(r.Attempts) < 2*s.API.Limit {
			t.Errorf("%d requests: the test tries too little", len(r.Attempts))
		}
	})
}
