package coordinator

import "time"

// Load is what this process has under way.
type Load struct {
	Account string
	Away    error      // why Redis cannot be asked; nil: it can
	Lanes   []LaneLoad // requests that need budget alone first, then the policy's endpoints
}

// LaneLoad is the part of one endpoint.
type LaneLoad struct {
	Endpoint string        // empty: budget alone
	Waiting  int           // callers that wait for a permit
	Longest  time.Duration // how long the one that waits longest has waited
	Gate     Gate          // what they wait for; empty: for an answer of Redis
	Held     int           // slots that this process holds
}

// Load looks at this process alone and does not ask Redis.
func (c *Coordinator) Load() Load {
	c.mu.Lock()
	defer c.mu.Unlock()
	load := Load{Account: c.account, Away: c.away, Lanes: make([]LaneLoad, len(c.lanes))}
	now := time.Now()
	for _, l := range c.lanes {
		lane := LaneLoad{Endpoint: l.endpoint(), Waiting: l.waiters.Len(), Held: l.used}
		for _, w := range l.waiters {
			lane.Longest = max(lane.Longest, now.Sub(w.joined))
		}
		switch {
		case lane.Waiting == 0:
		case c.away != nil:
			lane.Gate = GateAway
		default:
			lane.Gate = l.waitsFor()
		}
		load.Lanes[l.number] = lane
	}
	return load
}
