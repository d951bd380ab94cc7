package scoreboard

import (
	"fmt"
	"math"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/fleetsim"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// Check is one goal and what came of it.
type Check struct {
	What      string
	Got, Want float64
	// Least tells that Got must not be below Want; else it must not be above.
	Least bool
}

// Missed tells that the goal was not reached. What cannot be computed is missed.
func (c Check) Missed() bool {
	if c.Least {
		return !(c.Got >= c.Want)
	}
	return !(c.Got <= c.Want)
}

func (c Check) String() string {
	bound := "at most"
	if c.Least {
		bound = "at least"
	}
	text := fmt.Sprintf("%s: %.4g, want %s %.4g", c.What, c.Got, bound, c.Want)
	if c.Missed() {
		text += fmt.Sprintf(" (missed by %.4g)", math.Abs(c.Got-c.Want))
	}
	return text
}

func no(what string, n int) Check                 { return Check{What: what, Got: float64(n)} }
func atMost(what string, got, want float64) Check { return Check{What: what, Got: got, Want: want} }
func atLeast(what string, got, want float64) Check {
	return Check{What: what, Got: got, Want: want, Least: true}
}
func ms(d time.Duration) float64       { return float64(d) / float64(time.Millisecond) }
func ratio(a, b time.Duration) float64 { return float64(a) / math.Max(1, float64(b)) }

const end = time.Duration(math.MaxInt64)

// checks are the goals of the situation, and those that hold in all of them.
func (r Run) checks() []Check {
	checks := append(r.Situation.Goals(r),
		no("calls over a cap", int(r.Result.Stats.SlotViolations)),
		no("keys left in Redis", len(r.Result.KeysLeft)),
	)
	// A limit below the policy's is not known before the first answer.
	if s := r.Scenario(); s.Fleet.PolicyLimit <= s.API.Limit {
		checks = append(checks, no("requests over the limit by the fleet's own fault", int(r.Result.Stats.LimitViolations)))
	}
	return checks
}

// Missed are the goals that a run of ours did not reach.
func (r Run) Missed() (missed []Check) {
	if r.Strategy.Name != fleetsim.Fleetlimit.Name {
		return nil
	}
	for _, c := range r.Checks {
		if c.Missed() {
			missed = append(missed, c)
		}
	}
	return missed
}

// use is the share of the run's limit that was used in a span.
func (r Run) use(from, to time.Duration) float64 {
	return float64(r.Result.Accepted(from, to)) / (float64(r.Limit) * float64(to-from) / float64(window))
}

// slotsBack returns the longest time from a job seen done to the start of another,
// and how many jobs of dead workers were seen done.
func slotsBack(r fleetsim.Result) (longest time.Duration, adopted int) {
	for _, done := range r.JobsDone {
		if done.Adopted {
			adopted++
		}
		next := end
		for _, a := range r.Attempts {
			if a.Endpoint == mockapi.PostVideoAnalyses && a.Left >= done.At && a.Status == 200 {
				next = min(next, a.Left-done.At)
			}
		}
		if next != end {
			longest = max(longest, next)
		}
	}
	return longest, adopted
}

// bestJain is Jain's index of the most even way to share what the processes got
// in all.
func bestJain(shares []int) float64 {
	n, sum := len(shares), 0
	for _, x := range shares {
		sum += x
	}
	low, rest := sum/n, sum%n
	squares := (n-rest)*low*low + rest*(low+1)*(low+1)
	if squares == 0 {
		return 1
	}
	return float64(sum) * float64(sum) / (float64(n) * float64(squares))
}
