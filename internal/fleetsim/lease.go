package fleetsim

import (
	"context"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Crashed is a life of a process that ended as by SIGKILL.
type Crashed struct {
	Name string
	At   time.Duration
}

// A Lease is a slot that Redis holds to be taken.
type Lease struct {
	Endpoint, Name string
	// Left is for how long it will stay taken without renewal.
	Left time.Duration
}

// leases lists the leases that have not ended, of our own strategy.
func (w *World) leases() (all []Lease) {
	prefix := "fleetlimit:{" + coordinator.AccountName(apiKey, nil) + "}:slots:"
	now := float64(time.Now().UnixMicro()) / 1000
	for _, key := range w.Redis.Keys() {
		endpoint, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		members, err := w.observer.ZRangeWithScores(context.Background(), key, 0, -1).Result()
		if err != nil {
			continue // it has expired meanwhile
		}
		for _, m := range members {
			if m.Score > now {
				all = append(all, Lease{endpoint, m.Member.(string), time.Duration((m.Score - now) * float64(time.Millisecond))})
			}
		}
	}
	return all
}

// A Sample is the state of the world at an instant.
type Sample struct {
	At time.Duration
	// InFlight is how many calls, or jobs, of the first load's endpoint the API
	// works at.
	InFlight int
	// Orphans is how many leases are still held for workers that died, by how
	// long ago they died at most.
	Orphaned time.Duration
}

// sampling is the time between two samples.
const sampling = 250 * time.Millisecond

// sample looks at the world until the scenario ends. Only scenarios with slots
// have something to see.
func (w *World) sample() {
	if w.scenario.capacity() == 0 && len(w.scenario.Fleet.Loads) == 1 {
		return
	}
	for sleep(w.ctx, sampling) {
		s := Sample{At: w.now(), InFlight: w.Upstream.Stats().InFlight[w.scenario.Fleet.Loads[0].Endpoint]}
		if crashes := snapshot(w, &w.crashes); len(crashes) > 0 {
			s.Orphaned = orphaned(crashes, w.leases(), s.At)
		}
		w.mu.Lock()
		w.samples = append(w.samples, s)
		w.mu.Unlock()
	}
}

// orphaned returns for how long the owner of a lease has been dead at most. Leases
// of jobs outlive their owner by right.
func orphaned(crashes []Crashed, leases []Lease, now time.Duration) (longest time.Duration) {
	for _, l := range leases {
		for _, c := range crashes {
			if strings.HasPrefix(l.Name, c.Name+":") {
				longest = max(longest, now-c.At)
			}
		}
	}
	return longest
}
