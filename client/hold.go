package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// brokenGrace is how long the slot of a call that was broken off stays taken:
// the API needs a moment to notice, and counts the call until then.
const brokenGrace = time.Second

// hold is the life of one attempt's permit: from admission to the end of the
// response body, or to whatever else ends the slot. The first settlement
// counts, all later ones change nothing.
type hold struct {
	permit permit
	route  route
	trail  trail

	// ctx is the attempt's: it ends with the request's, or with the lease.
	ctx    context.Context
	cancel context.CancelFunc

	ended func() // called once, when nothing is read any more; nil: nobody cares
	last  sync.Once

	settled atomic.Bool
	once    sync.Once
	unwatch func() bool
}

func newHold(p permit, r route, parent context.Context) *hold {
	h := &hold{permit: p, route: r, unwatch: func() bool { return false }}
	h.ctx, h.cancel = p.Context(parent)
	return h
}

// settle decides what becomes of the slot.
func (h *hold) settle(how func()) {
	h.once.Do(func() {
		h.settled.Store(true)
		how()
	})
}

// finish settles and ends the attempt's context; nothing is read any more.
func (h *hold) finish(how func()) {
	h.unwatch()
	h.settle(how)
	h.end()
}

func (h *hold) end() {
	h.cancel()
	if h.ended != nil {
		h.last.Do(h.ended)
	}
}

// watch covers a body that nobody closes: the slot ends with the context.
func (h *hold) watch() {
	h.unwatch = context.AfterFunc(h.ctx, func() {
		h.settle(h.releaseLater)
		h.end()
	})
}

func (h *hold) releaseLater() { h.permit.ReleaseAfter(brokenGrace) }

// send sends the request with the given body and settles the permit if there
// is no response. It takes the body over, as RoundTrip does.
func (h *hold) send(base http.RoundTripper, req *http.Request, body io.ReadCloser) (*http.Response, error) {
	attempt := req.WithContext(httptrace.WithClientTrace(h.ctx, h.trail.follow(h.permit)))
	attempt.Body = body

	if h.ctx.Err() != nil {
		closeBody(body)
		err := h.explain(context.Cause(h.ctx))
		h.finish(h.permit.Return)
		return nil, err
	}
	resp, err := base.RoundTrip(attempt)
	if err != nil {
		err = h.explain(err)
		h.fail()
		return nil, err
	}
	resp.Request = req
	if resp.Body == nil {
		resp.Body = http.NoBody
	}
	resp.Body = newAnswer(resp.Body, h)
	return resp, nil
}

// fail ends an attempt of which there will be no answer.
func (h *hold) fail() {
	switch {
	case h.trail.unsent():
		h.finish(h.permit.Return)
	case h.route.start != nil:
		h.finish(h.permit.Keep) // a job may have been started
	default:
		h.finish(h.releaseLater)
	}
}

// explain says that the loss of the lease is behind an error, where it is.
func (h *hold) explain(err error) error {
	select {
	case <-h.permit.Lost():
	default:
		return err
	}
	cause := context.Cause(h.ctx)
	if cause == nil { // Lost is closed a moment before the context ends
		cause = coordinator.ErrLeaseLost
	}
	return fmt.Errorf("%w: %s was broken off", cause, h.route.endpoint)
}

// trail is what the base transport tells of an attempt under way.
type trail struct {
	asked, connected atomic.Bool
	trace            httptrace.ClientTrace
}

func (t *trail) follow(p permit) *httptrace.ClientTrace {
	t.trace.GetConn = func(string) { t.asked.Store(true) }
	t.trace.GotConn = func(httptrace.GotConnInfo) {
		t.connected.Store(true)
		p.Sending()
	}
	t.trace.WroteRequest = func(httptrace.WroteRequestInfo) { p.Sent() } // net/http may send it twice
	return &t.trace
}

// unsent is true only if it is certain that no byte was sent: the base asked
// for a connection and never got one. A base without traces is never certain.
func (t *trail) unsent() bool {
	return t.asked.Load() && !t.connected.Load()
}
