package coordinator

import (
	"context"
	"time"
)

// State is a snapshot of an account. Whatever it holds was read from Redis and is
// bounded: numbers are sane, strings printable and at most 256 characters long.
type State struct {
	Account string

	// The budget, in requests per Window.
	Known       bool // a worker has written its policy down; if not, limits are 0
	PolicyLimit int  // what the policy allows
	Reported    int  // what the API reported last; 0: nothing yet
	Limit       int  // in force: the lower of the two, times Headroom
	Headroom    float64
	Window      time.Duration
	Jitter      time.Duration
	Used        int           // requests of the fleet in the last window (and jitter)
	Foreign     int           // requests of strangers on the same key, as last seen
	Reserve     int           // kept free while strangers use the key
	Budget      int           // what the fleet may spend: Limit less Foreign and Reserve
	Remaining   int           // requests that the window still has room for
	WindowWait  time.Duration // until there is room for one more request
	Pace        Pace

	Observed  time.Duration // how long ago the API told what is left; -1: never
	Strangers time.Duration // how long ago strangers were last seen; -1: never

	Granted  int64 // number of the last permit: grows by one with each
	Rejected int64 // 429s since the account was created
	Born     int64 // which account this is: changes when Redis has lost its memory
	Epoch    int64 // how often the API has pushed back

	Backoff   *Backoff        // the pause of the whole account that the API asked for; nil: none
	Hold      *Hold           // the pause that an operator asked for; nil: none
	Endpoints []EndpointState // in the order of the policy, or of their names
	Waiting   []Place         // who waits for budget, the first first; at most 200
	Queued    int             // how many wait for budget
	Workers   []WorkerState   // who is alive; at most 200
	Alive     int             // how many are alive
	Drained   []Drain         // workers that get no new permits; at most 200

	Policies []PolicyState // the different policies of live workers, the lowest limit first
}

// PolicyState is a policy that a live worker has, or more than one. While there are
// several, the strictest of each field counts.
type PolicyState struct {
	Policy Policy        // of its endpoints only Pattern and Slots
	Worker string        // one that has it: the last that said so
	Left   time.Duration // how long it counts still, unless somebody says so again
}

// Pace is the account's GCRA bucket.
type Pace struct {
	Credit   float64       // content in permits; below 0: in debt
	Size     float64       // the burst that it allows
	Interval time.Duration // the time that one permit takes at full pace
	Wait     time.Duration // until it holds a permit
	Small    bool          // callers have waited for the window, so bursts are kept small
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

// ReasonAway is the reason of a short pause in which the workers tell what they
// spent while Redis was away.
const ReasonAway = "Redis was away"

// Hold is a pause that an operator has asked for.
type Hold struct {
	Left   time.Duration
	Since  time.Duration // how long ago it began
	Reason string
	By     string
}

// EndpointState is one endpoint's counting semaphore.
type EndpointState struct {
	Pattern string
	Slots   int
	InUse   int
	Leases  []Lease // at most 200, the first to expire first
	Waiting int     // places in the queue for a slot
	Queue   []Place // the same, the first first; at most 200
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
	Endpoint string        // empty: budget alone
	Waited   time.Duration // a head start for its priority included
	Due      time.Duration // until it was told to come; -1: unknown
	Gate     Gate          // what it waits for
}

// WorkerState is a live process.
type WorkerState struct {
	Worker string
	Left   time.Duration // until it counts as dead, if it does not show up
}

// Drain keeps a worker from new permits.
type Drain struct {
	Worker string
	Left   time.Duration
	By     string
	Reason string
}

// Paused is how long nobody will be admitted, for whatever reason.
func (s *State) Paused() time.Duration {
	var left time.Duration
	if s.Backoff != nil {
		left = s.Backoff.Left
	}
	if s.Hold != nil {
		left = max(left, s.Hold.Left)
	}
	return left
}

// State reads a snapshot of the account from Redis. It changes nothing.
func (c *Coordinator) State(ctx context.Context) (*State, error) {
	endpoints := make([]string, len(c.policy.Endpoints))
	for i, e := range c.policy.Endpoints {
		endpoints[i] = e.Pattern
	}
	s, err := inspect(ctx, c.rdb, c.account, endpoints)
	if err != nil {
		return nil, err
	}
	for i, e := range c.policy.Endpoints {
		if told := s.Endpoints[i].Slots; told < 1 || told > e.Slots {
			s.Endpoints[i].Slots = e.Slots
		}
	}
	if !s.Known {
		s.PolicyLimit, s.Headroom = c.policy.Limit, c.policy.Headroom
		s.Window, s.Jitter = c.policy.Window, c.policy.Jitter
		s.Limit = int(float64(c.policy.Limit)*c.policy.Headroom + 1e-6)
		s.Budget, s.Remaining = s.Limit, s.Limit
	}
	s.nameGates()
	return s, nil
}
