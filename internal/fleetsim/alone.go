package fleetsim

import (
	"context"
	"net/http"

	"golang.org/x/time/rate"
)

// ProcessBucket is the cookbook's advice for a production client, patterns 2 and
// 5: a token bucket at 90 % of the tier, in each process, as if it were alone.
var ProcessBucket = Strategy{"process-bucket", func(p *Process) (Guard, error) {
	return newAlone(p, 0.9, 1), nil
}}

// StaticShare divides by the number of processes what the API allows: its rate,
// and its slots, of which each process has at least one.
var StaticShare = Strategy{"static-share", func(p *Process) (Guard, error) {
	return newAlone(p, 1, p.World.scenario.Fleet.Processes), nil
}}

// alone is a process that throttles itself.
type alone struct {
	*reactive
	bucket *rate.Limiter
	slots  chan struct{} // nil: it does not count them
}

func newAlone(p *Process, headroom float64, processes int) alone {
	s := p.World.scenario
	a := alone{reactive: newReactive(p, nil)}
	perSecond := headroom * float64(s.API.Limit) / s.API.Window.Seconds() / float64(processes)
	a.bucket = rate.NewLimiter(rate.Limit(perSecond), max(1, s.API.Limit/10/processes))
	if n := s.capacity(); n > 0 && processes > 1 {
		a.slots = make(chan struct{}, max(1, n/processes))
	}
	a.base = throttled{a.admit, p.Base}
	return a
}

func (a alone) admit(ctx context.Context) error { return a.bucket.Wait(ctx) }

func (a alone) RoundTrip(req *http.Request) (*http.Response, error) {
	if a.slots == nil {
		return a.reactive.RoundTrip(req)
	}
	select {
	case a.slots <- struct{}{}:
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
	resp, err := a.reactive.RoundTrip(req)
	if err != nil {
		<-a.slots
		return nil, err
	}
	resp.Body = &whenClosed{ReadCloser: resp.Body, do: func() { <-a.slots }}
	return resp, nil
}

// throttled waits for admission before every attempt.
type throttled struct {
	admit func(context.Context) error
	base  http.RoundTripper
}

func (t throttled) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := t.admit(req.Context()); err != nil {
		return nil, err
	}
	return t.base.RoundTrip(req)
}
