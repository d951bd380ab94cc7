package scoreboard

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/fleetlimit/fleetlimit/internal/fleetsim"
)

// Name tells a run from all others, and how to repeat it.
func (r Run) Name() string {
	return fmt.Sprintf("-scenario %s -strategy %s -limit %d -window %s -seed %d",
		r.Situation.Name, r.Strategy.Name, r.Limit, r.Window, r.Seed)
}

// Play plays the run in a bubble of its own. It keeps the row and the checks, and
// not the log of every request.
func (r *Run) Play(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r.Result = fleetsim.Run(t, r.Scenario(), r.Strategy)
	})
	r.Row, r.Checks = r.row(), r.checks()
	r.Result.Calls, r.Result.Attempts, r.Result.Samples = nil, nil, nil
}

// Plan lists the runs for every limit and window: ours and the oracle in all
// situations, the others where the situation says so.
func Plan(situations []Situation, strategies []fleetsim.Strategy, limits []int, windows []string, seed uint64) (runs []Run) {
	for _, s := range situations {
		for _, strategy := range strategies {
			if !s.Peers && strategy.Name != fleetsim.Fleetlimit.Name && strategy.Name != fleetsim.Oracle.Name {
				continue
			}
			for _, limit := range limits {
				for _, window := range windows {
					runs = append(runs, Run{Situation: s, Strategy: strategy, Limit: limit, Window: window, Seed: seed})
				}
			}
		}
	}
	return runs
}
