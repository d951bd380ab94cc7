// Package scoreboard is the comparison of strategies: the situations, what must
// hold in each of them for this project, and how the results are shown.
package scoreboard

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/fleetlimit/fleetlimit/internal/fleetsim"
	"github.com/fleetlimit/fleetlimit/internal/mockapi"
)

// Situation is one row of the scoreboard, whatever the limit and the window.
type Situation struct {
	Name string
	// Title says it to somebody who does not know the names.
	Title string
	// Peers tells that all strategies are compared in it, not only ours and the
	// oracle.
	Peers bool
	// Build makes the scenario for a limit, which in a change of tier is the
	// higher one.
	Build func(limit int) fleetsim.Scenario
	// Goals are what must hold for ours.
	Goals func(Run) []Check
}

// Run is one scenario played with one strategy.
type Run struct {
	Situation Situation
	Strategy  fleetsim.Strategy
	Limit     int
	Window    string // sliding or resetting
	Seed      uint64

	// What came of it.
	Result fleetsim.Result
	Row    Row
	Checks []Check
}

// Windows are the names of the two kinds of window.
var Windows = []string{"sliding", "resetting"}

// Scenario is what the run plays.
func (r Run) Scenario() fleetsim.Scenario {
	s := r.Situation.Build(r.Limit)
	s.Name, s.Seed = r.Situation.Name, r.Seed
	if r.Window == "resetting" {
		s.API.Mode = mockapi.Fixed
		s.API.Phase = time.Duration(rand.New(rand.NewPCG(r.Seed, 0)).Int64N(int64(window)))
	}
	travel := s.API.Travel
	if travel == 0 {
		travel = fleetsim.DefaultTravel
	}
	config := s.API.Config
	s.API.Config = func(c *mockapi.Config) {
		c.Grace = travel + 100*time.Millisecond // what is in flight when news arrives
		if config != nil {
			config(c)
		}
	}
	return s
}

const (
	window = time.Minute
	// Moments of the scenarios.
	middle   = 5 * time.Minute
	outageAt = 4 * time.Minute
	outage   = 30 * time.Second
	pauseAt  = 2 * time.Minute
	pause    = 20 * time.Second
	// tierFactor is how much a tier changes, as between basic and enterprise.
	tierFactor = 5
	leaseTTL   = 30 * time.Second
)

// Catalogue is all situations, in the order in which they are shown.
var Catalogue = []Situation{
	{
		Name: "saturated", Title: "always more work than the limit allows", Peers: true,
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{API: fleetsim.API{Limit: limit}}
		},
		Goals: func(r Run) []Check {
			return []Check{
				no("own 429s", r.Result.Own429),
				atLeast("utilisation", r.Result.Utilization, 0.99),
				atMost("late wait p99 ÷ p50", ratio(r.Result.LateWaitP99, r.Result.LateWaitP50), 1.5),
				atLeast("Jain index", r.Result.Jain, 0.999),
			}
		},
	},
	{
		Name: "burst", Title: "half the limit at once, every 75 s", Peers: true,
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API: fleetsim.API{Limit: limit},
				Fleet: fleetsim.Fleet{Loads: []fleetsim.Load{{
					Arrival: fleetsim.Bursts{Size: limit / 2, Every: 75 * time.Second},
				}}},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				no("own 429s", r.Result.Own429),
				atMost("wait p99, ms", ms(r.Result.WaitP99), 250),
			}
		},
	},
	{
		Name: "stranger", Title: "somebody else uses 30 % of the key", Peers: true,
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API:    fleetsim.API{Limit: limit},
				Events: []fleetsim.Event{fleetsim.Stranger(0, 0.3)},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				atMost("own 429s", float64(r.Result.Own429), 1),
				atLeast("total utilisation", r.Result.TotalUtilization, 0.95),
			}
		},
	},
	{
		Name: "stranger-burst", Title: "somebody else takes 20 % of the limit at once, now and then",
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API:    fleetsim.API{Limit: limit},
				Events: []fleetsim.Event{fleetsim.StrangerBursts(0.2, 5)},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				atMost("own 429s ÷ requests", float64(r.Result.Own429)/float64(max(1, r.Result.Stats.Requests)), 0.01),
			}
		},
	},
	{
		Name: "tier-drop", Title: "the limit falls to a fifth",
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API:    fleetsim.API{Limit: limit},
				Events: []fleetsim.Event{fleetsim.SetLimit(middle, limit/tierFactor)},
			}
		},
		Goals: func(r Run) []Check {
			// In flight is what had left when the first request could be refused.
			inFlight := r.Result.UnderWay(middle + fleetsim.DefaultTravel)
			return []Check{
				no("own 429s before the change", r.Result.Rejected(0, middle-time.Second)),
				atMost("own 429s, of those in flight", float64(r.Result.Own429), float64(inFlight)),
				no("own 429s from a second after the change", r.Result.Rejected(middle+time.Second, end)),
			}
		},
	},
	{
		Name: "tier-rise", Title: "the limit rises fivefold",
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API:    fleetsim.API{Limit: limit / tierFactor},
				Fleet:  fleetsim.Fleet{PolicyLimit: limit},
				Events: []fleetsim.Event{fleetsim.SetLimit(middle, limit)},
			}
		},
		Goals: func(r Run) []Check {
			full := r.Result.FirstAnswer(middle) + window
			return []Check{
				no("own 429s once the limit is known", r.Result.Rejected(2*window, end)),
				atLeast("utilisation from a window after the first header", r.use(full, 2*middle), 0.99),
			}
		},
	},
	{
		Name: "slots", Title: "5 calls at once of 20 s each, 32 callers", Peers: true,
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API: fleetsim.API{Limit: limit, Latency: map[string]mockapi.Latency{
					mockapi.PostFocusGroups: {Mean: 20 * time.Second},
				}},
				Fleet: fleetsim.Fleet{Loads: []fleetsim.Load{{Endpoint: mockapi.PostFocusGroups}}},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				no("own 429s", r.Result.Own429),
				atMost("most calls at once", float64(r.Result.Stats.MaxInFlight[mockapi.PostFocusGroups]), 5),
				atLeast("slot use", r.Result.SlotUse, 0.98),
			}
		},
	},
	{
		Name: "jobs", Title: "3 jobs at once of 2-10 minutes, a worker dies",
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				// The job of the dead worker must be able to end.
				Length: 20 * time.Minute,
				API:    fleetsim.API{Limit: limit},
				Fleet:  fleetsim.Fleet{Loads: []fleetsim.Load{{Endpoint: mockapi.PostVideoAnalyses}}},
				Events: []fleetsim.Event{fleetsim.CrashHolder(time.Minute, 30*time.Second)},
			}
		},
		Goals: func(r Run) []Check {
			back, adopted := slotsBack(r.Result)
			return []Check{
				no("own 429s", r.Result.Own429),
				atMost("most jobs at once", float64(r.Result.Stats.MaxInFlight[mockapi.PostVideoAnalyses]), 3),
				atLeast("jobs of the dead worker that were seen done", float64(adopted), 1),
				atMost("from a job seen done to the next, ms", ms(back), 1000),
			}
		},
	},
	{
		Name: "surprise-429", Title: "the API says 429 out of the blue: wait 20 s", Peers: true,
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API:    fleetsim.API{Limit: limit},
				Events: []fleetsim.Event{fleetsim.Pause(pauseAt, pause)},
			}
		},
		Goals: func(r Run) []Check {
			heard := r.Result.First429()
			over := heard + pause
			return []Check{
				atMost("own 429s, of those in flight", float64(r.Result.Own429), float64(r.Result.UnderWay(heard))+1),
				no("sent in the pause", r.Result.Sent(heard+time.Millisecond, over)),
				no("429s after the pause", r.Result.Rejected(over, end)),
				atLeast("utilisation from a window after the pause", r.use(over+window, 2*middle), 0.99),
			}
		},
	},
	{
		Name: "redis-away", Title: "Redis is away for 30 s",
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API:    fleetsim.API{Limit: limit},
				Events: []fleetsim.Event{fleetsim.RedisAway(outageAt, outage)},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				no("own 429s", r.Result.Own429),
				atLeast("utilisation in the outage", r.use(outageAt, outageAt+outage), 0.75),
			}
		},
	},
	{
		Name: "crashes", Title: "a worker is killed every 20 s",
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API: fleetsim.API{
					Limit:   limit,
					Latency: map[string]mockapi.Latency{mockapi.PostFocusGroups: {Mean: 20 * time.Second}},
					// The API goes on with a call whose client has died.
					Config: func(c *mockapi.Config) { c.KeepBroken = true },
				},
				Fleet: fleetsim.Fleet{Loads: []fleetsim.Load{
					{Endpoint: mockapi.PostFocusGroups, Callers: 1}, {Callers: 3},
				}},
				Events: []fleetsim.Event{fleetsim.Crashes(20*time.Second, 5*time.Second)},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				no("own 429s", r.Result.Own429),
				atMost("longest time for which a dead worker held a slot, s", r.Result.Orphaned.Seconds(), leaseTTL.Seconds()),
			}
		},
	},
	{
		Name: "jitter-skew", Title: "0-500 ms on the way, clocks wrong by ± 90 s",
		Build: func(limit int) fleetsim.Scenario {
			return fleetsim.Scenario{
				API:   fleetsim.API{Limit: limit, Travel: 500 * time.Millisecond, ClockOffset: 90 * time.Second},
				Fleet: fleetsim.Fleet{Jitter: 500 * time.Millisecond, Skew: 90 * time.Second},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				no("own 429s", r.Result.Own429),
				atLeast("utilisation", r.Result.Utilization, 0.98),
			}
		},
	},
	{
		Name: "thousand", Title: "1,000 processes wait, with a limit of 600",
		Build: func(limit int) fleetsim.Scenario {
			// In proportion to the limit: each process gets six requests.
			return fleetsim.Scenario{
				API:   fleetsim.API{Limit: limit},
				Fleet: fleetsim.Fleet{Processes: max(1, limit*1000/600), Loads: []fleetsim.Load{{Callers: 1}}},
			}
		},
		Goals: func(r Run) []Check {
			return []Check{
				no("own 429s", r.Result.Own429),
				atMost("Redis commands per admission", r.Result.CommandsPerAdmission, 3),
				// Requests are whole, and few for each.
				atLeast("Jain index, of the best possible", r.Result.Jain/bestJain(r.Result.PerProcess), 0.99),
			}
		},
	},
}

// Find returns the situation of a name.
func Find(name string) (Situation, bool) {
	i := slices.IndexFunc(Catalogue, func(s Situation) bool { return s.Name == name })
	if i < 0 {
		return Situation{}, false
	}
	return Catalogue[i], true
}
