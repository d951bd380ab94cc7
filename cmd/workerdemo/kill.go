package main

import (
	"slices"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// perhapsKill kills, when half of the requests have ended, the worker that holds
// the most slots.
func (f *fleet) perhapsKill() {
	ended := f.tally.succeeded + f.tally.failed
	if !f.kill || f.victim != nil || ended < (ended+f.board.left)/2 {
		return
	}
	policy := f.plan.policy()
	var chosen *member
	most := -1
	for _, m := range f.members {
		held := 0
		for _, t := range f.board.held(m.name) {
			if t.sent && slices.ContainsFunc(policy.Endpoints, func(e coordinator.Endpoint) bool { return e.Pattern == t.item.Endpoint }) {
				held++
			}
		}
		if held > most {
			chosen, most = m, held
		}
	}
	f.victim = &victim{name: chosen.name, killed: time.Now(), slotsBack: -1}
	f.view.log("killing %s, which holds %d slots", chosen.name, most)
	chosen.kill()
}

// lookAfterVictim notes when the last of a dead worker's slots has come back.
func (f *fleet) lookAfterVictim() {
	v := f.victim
	if v == nil || !v.dead || v.slotsBack >= 0 {
		return
	}
	if v.states++; v.states == 1 {
		return // it may have been read before the death
	}
	held := 0
	for _, e := range f.state.Endpoints {
		if !f.scaled && f.plan.jobTTL(e.Pattern) > 0 {
			continue // a real job goes on for minutes, and keeps its slot by right
		}
		for _, l := range e.Leases {
			if strings.HasPrefix(l.Worker, v.name+"-") {
				held++
			}
		}
	}
	v.slots = max(v.slots, held)
	if held == 0 {
		v.slotsBack = time.Since(v.killed)
		f.view.log("the slots of %s are back after %v", v.name, v.slotsBack.Round(100*time.Millisecond))
	}
}

// slotsAreBack is true when there is nothing to wait for: nobody was killed, or
// the slots of the dead are back, or overdue.
func (f *fleet) slotsAreBack() bool {
	v := f.victim
	if v == nil || v.slotsBack >= 0 {
		return true
	}
	policy := f.plan.policy().WithDefaults()
	longest := policy.LeaseTTL
	if f.scaled {
		for _, e := range policy.Endpoints {
			longest = max(longest, e.JobTTL)
		}
	}
	return time.Since(v.killed) > longest+slotsGrace
}

// slotsGrace is how much longer than its lease a dead worker's slot may last.
const slotsGrace = 3 * time.Second
