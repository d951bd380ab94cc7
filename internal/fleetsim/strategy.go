package fleetsim

import (
	"net/http"

	"github.com/redis/go-redis/v9"

	"github.com/fleetlimit/fleetlimit/client"
	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// Strategy is a way for a fleet to hold back.
type Strategy struct {
	Name string
	// New makes the guard of one process, which sends through base.
	New func(w *World, rdb *redis.Client, base http.RoundTripper) (Guard, error)
}

// Guard is what stands between the callers of one process and the network.
type Guard interface {
	http.RoundTripper
	Close() // ends in good order
	Kill()  // ends as SIGKILL would
}

// Fleetlimit is this project: headroom 1, burst half the limit.
var Fleetlimit = Strategy{"fleetlimit", newFleetlimit}

type ours struct {
	*client.Transport
	c *coordinator.Coordinator
}

func newFleetlimit(w *World, rdb *redis.Client, base http.RoundTripper) (Guard, error) {
	policy := mavera.Policy(mavera.Enterprise)
	policy.Limit, policy.Window = w.scenario.Fleet.PolicyLimit, w.scenario.API.Window
	policy.Headroom, policy.Jitter = 1, w.scenario.Fleet.Jitter
	c, err := coordinator.New(rdb, policy, coordinator.Options{APIKey: apiKey, Logger: quiet})
	if err != nil {
		return nil, err
	}
	t, err := client.New(c, mavera.Profile(), client.Options{Base: departure{base}})
	if err != nil {
		return nil, err
	}
	return ours{t, c}, nil
}

func (o ours) Close() { o.c.Close() }
func (o ours) Kill()  { o.c.Close() }
