package fleetsim

import (
	"fmt"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
	"github.com/fleetlimit/fleetlimit/internal/race"
)

// One worker of a saturated fleet is cut off from Redis alone, for shorter and for longer
// than it counts as alive (30 s). It goes on with its share, and the others with the
// budget, but for what is kept free for it.
func TestAWorkerThatIsCutOffAloneTakesTheFleetOverNoLimit(t *testing.T) {
	for _, limit := range []int{120, 600} {
		for _, mode := range []mockapi.Mode{mockapi.Sliding, mockapi.Fixed} {
			for i, length := range []time.Duration{3 * time.Second, 20 * time.Second, 75 * time.Second} {
				for j, processes := range []int{4, 8} {
					if limit == 600 && (race.Enabled || (i+j)%2 == 0) {
						continue // each takes long
					}
					name := fmt.Sprintf("limit=%d/%s/processes=%d/cut=%v", limit, mode, processes, length)
					t.Run(name, func(t *testing.T) {
						cutOff(t, limit, mode, processes, length, uint64(1+i+2*j))
					})
				}
			}
		}
	}
}

func cutOff(t *testing.T, limit int, mode mockapi.Mode, processes int, length time.Duration, seed uint64) {
	at := 2*time.Minute + time.Duration(seed)*1234*time.Millisecond
	cut := int(seed) % processes
	s := Scenario{
		Seed: seed, Length: at + length + 90*time.Second,
		API:    API{Limit: limit, Mode: mode, Phase: time.Duration(seed) * 11 * time.Second},
		Fleet:  Fleet{Processes: processes},
		Events: []Event{CutOff(at, length, cut)},
	}
	play(t, s, Fleetlimit, func(t *testing.T, r Result) {
		most, excess := r.MostInWindow(time.Minute), 0
		anyWindow := true
		if length > 30*time.Second {
			// The others go by the headers, which tell of the API's own window, and not
			// to the last request.
			excess, anyWindow = 1, mode == mockapi.Sliding
		}
		if r.Own429 > excess || r.Stats.LimitViolations > int64(excess) || anyWindow && most > limit+excess {
			t.Errorf("%d × 429, %d over the limit, %d in a window of %d", r.Own429, r.Stats.LimitViolations, most, limit)
		}
		// From the middle of a long cut on it sends its share.
		alone := 0
		for _, a := range r.Attempts {
			if a.Process == cut && a.Left >= at+10*time.Second && a.Left < at+length {
				alone++
			}
		}
		share := float64(limit) / float64(processes) * (length - 10*time.Second).Minutes()
		if float64(alone) < 0.75*share-1 {
			t.Errorf("the one that is cut off sent %d, want its share, %.0f", alone, share)
		}
	})
}
