package client

import (
	"context"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// permit is what the transport does with a *[coordinator.Permit].
type permit interface {
	Context(parent context.Context) (context.Context, context.CancelFunc)
	Waited() time.Duration
	Gate() coordinator.Gate
	Valid() error
	Sending()
	Sent()
	Report(coordinator.Feedback)
	Lost() <-chan struct{}

	// Exactly one of these ends a permit's slot.
	Release()
	ReleaseAfter(time.Duration)
	Return()
	BindJob(job string)
	Keep()
}

// admission is [Limiter] with the permit as an interface.
type admission interface {
	Policy() coordinator.Policy
	acquire(ctx context.Context, endpoint string, priority coordinator.Priority, failed permit) (permit, error)
	JobSeen(endpoint, job string)
	JobDone(endpoint, job string)
}

type fleet struct{ Limiter }

// acquire asks for a permit; failed, if not nil, is that of the attempt to be
// repeated, whose place and priority the new one inherits.
func (f fleet) acquire(ctx context.Context, endpoint string, priority coordinator.Priority, failed permit) (permit, error) {
	r := coordinator.Request{Endpoint: endpoint, Priority: priority}
	if p, ok := failed.(*coordinator.Permit); ok {
		r.Retry = p
	}
	p, err := f.Acquire(ctx, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}
