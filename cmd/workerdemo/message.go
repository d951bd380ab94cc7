package main

import (
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
	"github.com/fleetlimit/fleetlimit/provider/mavera"
)

// Parent and worker talk in lines of JSON: the parent on the worker's stdin, the
// worker on its stdout. Secrets travel this way and not on the command line. A
// worker ends when its stdin does.

// setup is the first line that a worker gets.
type setup struct {
	Worker   string // name in Redis
	Redis    string // URL
	Upstream string // base URL
	Key      string
	Plan     plan
	Callers  map[string]int // by endpoint: how many may wait for admission at once
}

// plan is what parent and workers must agree on about the API.
type plan struct {
	Tier     mavera.Tier
	Headroom float64
	LeaseTTL time.Duration // zero: the library's default
	JobTTL   time.Duration // zero: that of the profile
}

func (p plan) policy() coordinator.Policy {
	policy := mavera.Policy(p.Tier)
	policy.Headroom = p.Headroom
	if p.LeaseTTL > 0 {
		policy.LeaseTTL = p.LeaseTTL
	}
	for i, e := range policy.Endpoints {
		if e.JobTTL > 0 && p.JobTTL > 0 {
			policy.Endpoints[i].JobTTL = p.JobTTL
		}
	}
	return policy
}

// jobTTL is that of an endpoint; zero where calls start no job.
func (p plan) jobTTL(endpoint string) time.Duration {
	for _, e := range p.policy().Endpoints {
		if e.Pattern == endpoint {
			return e.JobTTL
		}
	}
	return 0
}

// An item is one request to be carried out, to its end: a job that it starts is
// part of it.
type item struct {
	ID       int
	Endpoint string
	Job      string `json:",omitempty"` // already started, by a worker that died
}

// A kind of report from a worker.
type kind string

const (
	ready    kind = "ready"    // the worker has heard its setup
	want     kind = "want"     // room for N more items of Endpoint
	sent     kind = "sent"     // a request went out
	answered kind = "answered" // its response, or the end of the hope for one
	started  kind = "started"  // the item has started Job
	done     kind = "done"     // the item has ended; Error says how
)

// A report is one line from a worker.
type report struct {
	Kind     kind
	Endpoint string        `json:",omitempty"`
	N        int           `json:",omitempty"`
	Item     int           `json:",omitempty"`
	Poll     bool          `json:",omitempty"` // the request asks how a job is doing
	Again    bool          `json:",omitempty"` // the item has sent a request before
	Waited   time.Duration `json:",omitempty"` // between the caller's call and the sending
	Status   int           `json:",omitempty"` // 0: no response
	Job      string        `json:",omitempty"`
	Error    string        `json:",omitempty"` // empty: success
}
