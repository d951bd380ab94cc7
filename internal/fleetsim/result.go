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
	// SlotUse is the share of the slots of the first load's endpoint that was in
	// use; 0 without slots.
	SlotUse float64
	// Wait is the time between a call and its leaving the process with success.
	WaitP50, WaitP99         time.Duration
	LateWaitP50, LateWaitP99 time.Duration // of calls begun from the third minute on
	CommandsPerAdmission     float64
	// Jain is Jain's index of fairness between processes: 1 is equal shares.
	Jain float64
	// PerProcess is the number of answered calls of each process.
	PerProcess []int
	// Orphaned is for how long a lease was held at most for a dead worker.
	Orphaned time.Duration

	Calls    []Call
	Attempts []Attempt
	Samples  []Sample
	Crashes  []Crashed
	JobsDone []JobDone
	// Leases are the slots that were still taken when all calls had ended, and
	// KeysLeft the keys that Redis still held after all TTLs.
	Leases   []Lease
	KeysLeft []string
}

// late is the instant from which a call's wait is a late one: by then a fleet that
// starts with a burst has settled.
const late = 2 * time.Minute

// summarise fills in what follows from the logs.
func (w *World) summarise(r *Result) {
	r.Own429 = int(r.Stats.Responses429)
	r.Calls, r.Attempts, r.Samples = w.calls, w.attempts.all, w.samples
	r.Crashes, r.JobsDone = w.crashes, w.done
	r.PerProcess = make([]int, w.scenario.Fleet.Processes)
	var waits, lateWaits []time.Duration
	for _, c := range r.Calls {
		if c.Status == 200 {
			r.PerProcess[c.Process]++
		}
		if c.Waited < 0 {
			continue
		}
		waits = append(waits, c.Waited)
		if c.Begun >= late {
			lateWaits = append(lateWaits, c.Waited)
		}
	}
	r.WaitP50, r.WaitP99 = percentile(waits, 0.50), percentile(waits, 0.99)
	r.LateWaitP50, r.LateWaitP99 = percentile(lateWaits, 0.50), percentile(lateWaits, 0.99)
	r.Jain = jain(r.PerProcess)
	for _, s := range r.Samples {
		r.SlotUse += float64(s.InFlight)
		r.Orphaned = max(r.Orphaned, s.Orphaned)
	}
	if slots := w.scenario.capacity(); slots > 0 && len(r.Samples) > 0 {
		r.SlotUse /= float64(slots * len(r.Samples))
	} else {
		r.SlotUse = 0
	}
}

// UnderWay is how many requests had left and were not answered at an instant.
func (r Result) UnderWay(at time.Duration) (n int) {
	for _, a := range r.Attempts {
		if a.Left <= at && (a.Answered < 0 || a.Answered > at) {
			n++
		}
	}
	return n
}

// Rejected is how many requests that left in [from, to) were answered 429.
func (r Result) Rejected(from, to time.Duration) (n int) {
	for _, a := range r.Attempts {
		if a.Status == 429 && a.Left >= from && a.Left < to {
			n++
		}
	}
	return n
}

// Sent is how many requests left in [from, to).
func (r Result) Sent(from, to time.Duration) (n int) {
	for _, a := range r.Attempts {
		if a.Left >= from && a.Left < to {
			n++
		}
	}
	return n
}

// First429 is when the first 429 came back; without one, the start.
func (r Result) First429() (first time.Duration) {
	for _, a := range r.Attempts {
		if a.Status == 429 && (first == 0 || a.Answered < first) {
			first = a.Answered
		}
	}
	return first
}

// FirstAnswer is when the first answer came back to a request that arrived at an
// instant or later.
func (r Result) FirstAnswer(from time.Duration) (first time.Duration) {
	for _, a := range r.Attempts {
		if a.Arrived >= from && a.Answered >= 0 && (first == 0 || a.Answered < first) {
			first = a.Answered
		}
	}
	return first
}

// Accepted is how many requests that arrived in [from, to) were not answered 429.
func (r Result) Accepted(from, to time.Duration) (n int) {
	for _, a := range r.Attempts {
		if a.Arrived >= from && a.Arrived < to && a.Status != 429 {
			n++
		}
	}
	return n
}

// MostInWindow is the most requests that arrived within any span of this length,
// whatever they were answered.
func (r Result) MostInWindow(window time.Duration) (most int) {
	var at []time.Duration
	for _, a := range r.Attempts {
		if a.Arrived >= 0 {
			at = append(at, a.Arrived)
		}
	}
	slices.Sort(at)
	for first, last := 0, 0; last < len(at); last++ {
		for at[last]-at[first] >= window {
			first++
		}
		most = max(most, last-first+1)
	}
	return most
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
