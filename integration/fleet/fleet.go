// Package fleet runs workers as processes of their own against a real Redis and a
// judge, through wires that can be made bad. Tests and the soak use it.
//
// A program that starts workers is also the worker: it calls [Main] first, which
// takes over in the processes that [Start] has made.
package fleet

import (
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Setup is what a worker process is told at its start.
type Setup struct {
	Worker string
	Redis  string // URL, see package redisurl
	API    string // base URL
	Key    string // of the API; the account is named after it
	Policy coordinator.Policy

	// Callers says how many goroutines call each endpoint, one call after the other.
	Callers map[string]int

	// CallTimeout bounds one call, its wait for admission included. Default: a minute.
	CallTimeout time.Duration

	// As in coordinator.Options.
	RedisTimeout time.Duration
	WhenAway     coordinator.WhenAway
}

// Report is what a worker says of itself twice a second, and when it is asked.
type Report struct {
	Calls   int            // that have ended
	OK      int            // with status 2xx
	Errors  map[string]int // the others, by what went wrong
	Sent    int            // requests, retries and polls included
	Longest time.Duration  // the longest call so far
	Stalls  int            // times that this process was not run for more than a quarter of a second
	Away    int            // times that it has found Redis away

	State State
	Rest  Footprint // as of the last rest
}

// State is what a worker is doing.
type State string

// The states.
const (
	Working State = "working"
	Resting State = "resting" // no call is under way
	Closed  State = "closed"  // the coordinator is closed: the last report
)

// Footprint is what a worker holds while it rests, after a garbage collection.
type Footprint struct {
	Goroutines int
	Heap       uint64 // bytes
	Files      int    // open descriptors, connections included; -1: unknown
}

// command is a line to a worker.
type command string

const (
	work command = "work"
	rest command = "rest"
)
