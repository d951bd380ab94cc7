package fleetsim

import (
	"net/http"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// Strategy is a way for a fleet to hold back.
type Strategy struct {
	Name string
	// New makes the guard of one process, which sends through p.Base.
	New func(p *Process) (Guard, error)
}

// Guard is what stands between the callers of one process and the network. Close
// leaves nothing running.
type Guard interface {
	http.RoundTripper
	Close()
}

// Strategies are all that can be compared, ours first.
func Strategies() []Strategy {
	return []Strategy{
		Fleetlimit, Reactive, ProcessBucket, StaticShare,
		RedisRateBurstLimit, RedisRateBurst1, RedisRate90, Oracle,
	}
}

// Fleetlimit is this project: headroom 1, burst half the limit.
var Fleetlimit = Strategy{"fleetlimit", newFleetlimit}

type ours struct {
	*client.Transport
	c *coordinator.Coordinator
}

func newFleetlimit(p *Process) (Guard, error) {
	s := p.World.scenario
	policy := mavera.Policy(mavera.Enterprise)
	policy.Limit, policy.Window = s.Fleet.PolicyLimit, s.API.Window
	policy.Headroom, policy.Jitter = 1, s.Fleet.Jitter
	for i := range policy.Endpoints {
		if n, ok := s.API.Slots[policy.Endpoints[i].Pattern]; ok {
			policy.Endpoints[i].Slots = n
		}
	}
	c, err := coordinator.New(p.Redis, policy, coordinator.Options{APIKey: apiKey, Worker: p.Name(), Logger: quiet})
	if err != nil {
		return nil, err
	}
	t, err := client.New(c, mavera.Profile(), client.Options{Base: p.Base})
	if err != nil {
		return nil, err
	}
	return ours{t, c}, nil
}

// Close returns when Redis has heard the rest, or cannot be reached.
func (o ours) Close() { _ = o.c.Close() }
