package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/fleetlimit/fleetlimit/lua"
)

// State is a snapshot of an account.
type State struct {
	Account   string
	Limit     int // requests per window in force: policy or report, times headroom
	Reported  int // what the API reported last; 0: nothing yet
	Window    time.Duration
	Used      int             // requests of the fleet in the last window (and jitter)
	Foreign   int             // requests of strangers on the same key, as last seen
	Remaining int             // requests that the window still has room for
	Epoch     int64           // how often the API has pushed back
	Backoff   *Backoff        // the pause of the whole account; nil: none
	Endpoints []EndpointState // in the order of the policy
	Waiting   []Place         // who waits for budget, the first first; at most 100
	Queued    int             // how many wait for budget
	Workers   []WorkerState   // who is alive; at most 100
	Alive     int             // how many are alive
}

// Backoff is a pause that the API has asked for.
type Backoff struct {
	Left    time.Duration
	Since   time.Duration // how long ago it began
	Reason  string
	Worker  string // who saw it
	Strikes int    // pushbacks in a row
	Epoch   int64
}

// EndpointState is one endpoint's counting semaphore.
type EndpointState struct {
	Pattern string
	Slots   int
	InUse   int
	Leases  []Lease // at most 100, the first to expire first
	Waiting int     // places in the queue for a slot
	Backoff *Backoff
}

// Lease is a slot that is held.
type Lease struct {
	ID     string
	Worker string
	Held   time.Duration
	Left   time.Duration // until it ends, if it is not renewed
}

// Place is a process that waits.
type Place struct {
	Worker   string
	Endpoint string // empty: budget alone
	Waited   time.Duration
}

// WorkerState is a live process.
type WorkerState struct {
	Worker string
	Left   time.Duration // until it counts as dead, if it does not show up
}

// State reads a snapshot of the account from Redis. It changes nothing.
func (c *Coordinator) State(ctx context.Context) (*State, error) {
	keys := []string{c.keys.account(), c.keys.backoff(), c.keys.queue(), c.keys.workers()}
	for _, e := range c.policy.Endpoints {
		keys = append(keys, c.keys.backoffOf(e.Pattern), c.keys.slotsOf(e.Pattern), c.keys.queueOf(e.Pattern))
	}
	text, err := lua.Inspect.Run(ctx, c.rdb, keys).Text()
	if err != nil {
		return nil, fmt.Errorf("fleetlimit: reading the state of account %s: %w", c.account, err)
	}
	var parts map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &parts); err != nil {
		return nil, fmt.Errorf("fleetlimit: inspect.lua answered no JSON object: %w", err)
	}
	return c.stateFrom(parts)
}

type inspectedBackoff struct {
	LeftMS  float64 `json:"left_ms"`
	SinceMS float64 `json:"since_ms"`
	Reason  string  `json:"reason"`
	Worker  string  `json:"worker"`
	Strikes float64 `json:"strikes"`
	Epoch   float64 `json:"epoch"`
}

func (c *Coordinator) stateFrom(parts map[string]json.RawMessage) (*State, error) {
	var failed error
	read := func(name string, to any) bool {
		raw, ok := parts[name]
		if !ok {
			return false
		}
		if err := json.Unmarshal(raw, to); err != nil && failed == nil {
			failed = fmt.Errorf("fleetlimit: inspect.lua described %q in an unknown way: %w", name, err)
		}
		return true
	}
	backoff := func(name string) *Backoff {
		var b inspectedBackoff
		if !read(name, &b) || b.LeftMS <= 0 {
			return nil
		}
		return &Backoff{span(b.LeftMS), span(b.SinceMS), b.Reason, b.Worker, int(b.Strikes), int64(b.Epoch)}
	}

	s := &State{Account: c.account, Limit: int(float64(c.policy.Limit)*c.policy.Headroom + 1e-6), Window: c.policy.Window}
	s.Remaining = s.Limit
	var a struct {
		Limit, Used, Foreign, Room, Epoch float64
		Reported                          float64 `json:"reported_limit"`
		Window                            float64 `json:"window_ms"`
	}
	if read("account", &a) && a.Window > 0 {
		s.Limit, s.Reported, s.Window = int(a.Limit), int(a.Reported), span(a.Window)
		s.Used, s.Foreign, s.Remaining, s.Epoch = int(a.Used), int(a.Foreign), int(a.Room), int64(a.Epoch)
	}
	s.Backoff = backoff("backoff")

	var q struct {
		Waiting float64
		Places  []struct {
			Worker, Endpoint string
			Waited           float64 `json:"waited_ms"`
		}
	}
	read("queue", &q)
	s.Queued = int(q.Waiting)
	for _, p := range q.Places {
		s.Waiting = append(s.Waiting, Place{p.Worker, strings.TrimPrefix(p.Endpoint, anyEndpoint), span(p.Waited)})
	}

	var w struct {
		Alive   float64
		Workers []struct {
			Worker string
			Left   float64 `json:"left_ms"`
		}
	}
	read("workers", &w)
	s.Alive = int(w.Alive)
	for _, x := range w.Workers {
		s.Workers = append(s.Workers, WorkerState{x.Worker, span(x.Left)})
	}

	for _, e := range c.policy.Endpoints {
		es := EndpointState{Pattern: e.Pattern, Slots: e.Slots, Backoff: backoff("backoff:" + e.Pattern)}
		var slots struct {
			InUse  float64 `json:"in_use"`
			Leases []struct {
				Lease, Worker string
				Held          float64 `json:"held_ms"`
				Left          float64 `json:"left_ms"`
			}
		}
		read("slots:"+e.Pattern, &slots)
		es.InUse = int(slots.InUse)
		for _, l := range slots.Leases {
			es.Leases = append(es.Leases, Lease{l.Lease, l.Worker, span(l.Held), span(l.Left)})
		}
		var places struct{ Waiting float64 }
		read("queue:"+e.Pattern, &places)
		es.Waiting = int(places.Waiting)
		s.Endpoints = append(s.Endpoints, es)
	}
	return s, failed
}

func span(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
