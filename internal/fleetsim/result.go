package fleetsim

import (
	"slices"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// Result is what came of a scenario.
type Result struct {
	Stats mockapi.Stats

	// Own429 is how many requests of the fleet were answered 429.
	Own429 int
	// Utilization is the share of the limit that the fleet used, and
	// TotalUtilization that of fleet and strangers together.
	Utilization, TotalUtilization float64
	// Wait is the time between a call and its leaving the process.
	WaitP50, WaitP99         time.Duration
	LateWaitP50, LateWaitP99 time.Duration // of calls from the third minute on
	CommandsPerAdmission     float64
	// Jain is Jain's index of fairness between processes: 1 is equal shares.
	Jain float64
	// PerProcess is the number of answered calls of each process.
	PerProcess []int
}

func (w *World) result(stats mockapi.Stats, fleet, stranger float64) Result {
	r := Result{
		Stats: stats, Own429: int(stats.Responses429),
		Utilization: fleet, TotalUtilization: fleet + stranger,
		PerProcess: make([]int, w.scenario.Fleet.Processes),
	}
	var waits, late []time.Duration
	for _, c := range w.calls {
		if c.status == 200 {
			r.PerProcess[c.process]++
		}
		if c.waited < 0 {
			continue
		}
		waits = append(waits, c.waited)
		if c.begun >= 2*time.Minute {
			late = append(late, c.waited)
		}
	}
	r.WaitP50, r.WaitP99 = percentile(waits, 0.50), percentile(waits, 0.99)
	r.LateWaitP50, r.LateWaitP99 = percentile(late, 0.50), percentile(late, 0.99)
	if stats.Accepted > 0 {
		r.CommandsPerAdmission = float64(w.commands.Load()) / float64(stats.Accepted)
	}
	r.Jain = jain(r.PerProcess)
	return r
}

func percentile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[int(q*float64(len(d)-1)+0.5)]
}

// jain is (Σx)² / (n Σx²); R. Jain, D. Chiu, W. Hawe, 1984.
func jain(shares []int) float64 {
	var sum, squares float64
	for _, x := range shares {
		sum += float64(x)
		squares += float64(x) * float64(x)
	}
	if squares == 0 {
		return 1
	}
	return sum * sum / (float64(len(shares)) * squares)
}
