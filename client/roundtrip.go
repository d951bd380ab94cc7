package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// maxStale is how many permits in a row may grow too old before they are used.
const maxStale = 5

// RoundTrip waits for admission, sends the request and returns its response.
// It repeats what the API asked to be repeated: a 429 once the fleet's pause is
// over, a 500 or 503 after an exponential backoff with jitter and at least
// Retry-After, provided that the body can be had again ([http.Request.GetBody]).
// When no retry is left, or none would begin before the context's deadline, the
// last response is returned as it came.
//
// Errors are those of the limiter (see [coordinator.WaitError]), of the base
// transport, or the context's; a call whose slot was lost while it was under
// way fails with [coordinator.ErrLeaseLost]. All can be tested with errors.Is
// and errors.As.
func (t *Transport) RoundTrip(req *http.Request) (result *http.Response, err error) {
	var (
		route  = t.routes.match(req)
		body   = req.Body
		failed permit
		stale  int
		h      *hold
	)
	defer func() {
		if h != nil && result == nil && err == nil {
			h.fail() // the base, or a listener, has panicked: heartbeats would keep the slot for ever
		}
	}()
	for number := 1; ; number++ {
		p, err := t.admission.acquire(req.Context(), route.endpoint, priorityOf(req.Context()), failed)
		if err != nil {
			closeBody(body)
			return nil, err
		}

		h = newHold(p, route, req.Context())
		if err := p.Valid(); err != nil {
			// This process stood still since the grant. Nothing has been sent.
			h.finish(p.Return)
			if stale++; stale < maxStale {
				number--
				continue
			}
			closeBody(body)
			return nil, err
		}
		resp, err := h.send(t.base, req, body)
		attempt := Attempt{
			Account: t.account, Endpoint: route.endpoint, Number: number, Err: err,
			Waited: p.Waited(), Gate: p.Gate(), Feedback: coordinator.NoFeedback,
		}
		if err != nil {
			t.onAttempt(attempt)
			return nil, err
		}
		feedback := ParseFeedback(resp, t.window, t.dialects...)
		p.Report(feedback)
		attempt.Status, attempt.Feedback = resp.StatusCode, feedback
		t.watch(route, resp)

		delay, again := t.retry.delay(number, feedback)
		if again && endsWithin(req.Context(), delay) {
			again = false
		}
		if again {
			body, again = replay(req)
		}
		attempt.Retried = again
		t.onAttempt(attempt)
		if !again {
			return t.deliver(h, resp, holdOf(req.Context())), nil
		}

		resp.Body.(*answer).discard()
		if err := sleep(req.Context(), delay); err != nil {
			closeBody(body)
			return nil, err
		}
		failed = p
	}
}

// watch has the end of a response told, and what it cost.
func (t *Transport) watch(r route, resp *http.Response) {
	if t.onAnswer == nil {
		return
	}
	body := resp.Body.(*answer)
	body.usage = newUsageScanner(resp.Header)
	status := resp.StatusCode
	body.hold.ended = func() {
		t.onAnswer(Answer{Account: t.account, Endpoint: r.endpoint, Status: status, CreditsUsed: body.usage.credits()})
	}
}

// deliver follows the job that the response is about, if any, unless the caller holds the
// slot.
func (t *Transport) deliver(h *hold, resp *http.Response, by *Hold) *http.Response {
	body := resp.Body.(*answer)
	switch success := resp.StatusCode/100 == 2; {
	case by != nil && success && h.route.endpoint != "" && by.take(h):
	case h.route.start != nil && success:
		jobStarted(h, resp.Header, body)
	case h.route.poll != nil:
		t.jobPolled(h.route, resp.StatusCode, resp.Header, body)
	}
	resp.Body = body.forCaller()
	return resp
}

// replay returns the request's body for another attempt, if it can be had.
func replay(req *http.Request) (io.ReadCloser, bool) {
	if req.Body == nil || req.Body == http.NoBody {
		return req.Body, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	return body, err == nil
}

func closeBody(body io.ReadCloser) {
	if body != nil {
		_ = body.Close() // the request was never sent: nothing depends on it
	}
}

func endsWithin(ctx context.Context, d time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) <= d
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("fleetlimit: waiting to retry: %w", context.Cause(ctx))
	}
}
