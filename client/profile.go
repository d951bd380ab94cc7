package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Profile is what a client must know about one API besides its limits. It is
// plain data; the zero value describes an API without jobs whose headers say
// nothing but Retry-After.
type Profile struct {
	// Name is for people.
	Name string

	// BasePath is cut off a request's path before it is matched, as in
	// "/api/v1". A path that does not lie below it is matched as it is.
	BasePath string

	// Dialects are the header dialects to try on a response. The first that
	// finds anything counts.
	Dialects []Dialect

	// Jobs are the endpoints whose calls start a job that goes on, and keeps
	// its slot, after the call has returned.
	Jobs []Job
}

// Job tells how to follow what one endpoint starts. Successful responses of
// Start and Poll are read to their end, or up to 1 MiB, before the caller gets
// them, and are the same to the caller.
type Job struct {
	// Start is the pattern of the policy's endpoint that starts a job, as in
	// "POST /video-analyses". That endpoint must have a JobTTL.
	Start string

	// Poll is the [net/http.ServeMux] pattern of the requests that ask how a
	// job is doing, with the job's id as {id}: "GET /video-analyses/{id}".
	// A poll that finds the job done ends the slot, from any worker.
	Poll string

	// ID and Status are the members of the JSON object in the responses of
	// Start and Poll that carry the job's id and state. Only members of the
	// object itself are looked at. Defaults: "id" and "status".
	ID, Status string

	// Done lists the states in which the job takes no slot any more.
	// Default: "completed", "failed" and "cancelled".
	Done []string
}

// withDefaults returns j with its zero fields filled in.
func (j Job) withDefaults() Job {
	if j.ID == "" {
		j.ID = "id"
	}
	if j.Status == "" {
		j.Status = "status"
	}
	if len(j.Done) == 0 {
		j.Done = []string{"completed", "failed", "cancelled"}
	}
	return j
}

// check reports what is wrong with j, which stands in the profile under the
// name field, given the policy's endpoints.
func (j Job) check(field string, endpoints []coordinator.Endpoint) error {
	i := slices.IndexFunc(endpoints, func(e coordinator.Endpoint) bool { return e.Pattern == j.Start })
	switch {
	case i < 0:
		return &coordinator.ConfigError{Field: field + ".Start", Value: j.Start, Reason: "must be the pattern of one of the policy's endpoints"}
	case endpoints[i].JobTTL == 0:
		return &coordinator.ConfigError{Field: field + ".Start", Value: j.Start, Reason: fmt.Sprintf("must name an endpoint with a JobTTL; Policy.Endpoints[%d] has none", i)}
	case !strings.Contains(j.Poll, "{id}"):
		return &coordinator.ConfigError{Field: field + ".Poll", Value: j.Poll, Reason: `must contain the job's id as "{id}"`}
	}
	return nil
}
