package fleetsim

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Reactive only reacts: each request backs off by itself when it is answered 429,
// exponentially and with jitter, for Retry-After at least and five minutes at
// most, and tries again until it gets through. It is pattern 5 of the cookbook,
// and what all strategies but ours do on top of their own.
var Reactive = Strategy{"reactive", func(p *Process) (Guard, error) {
	return newReactive(p, p.Base), nil
}}

type reactive struct {
	base http.RoundTripper

	mu  sync.Mutex
	rng *rand.Rand
}

func newReactive(p *Process, base http.RoundTripper) *reactive {
	return &reactive{base: base, rng: p.Rand(2)}
}

const (
	firstBackoff   = time.Second
	longestBackoff = 5 * time.Minute
)

func (r *reactive) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 0; ; n++ {
		resp, err := r.base.RoundTrip(replayed(req))
		if err != nil || resp.StatusCode != http.StatusTooManyRequests {
			return resp, err
		}
		resp.Body.Close()
		if !sleep(req.Context(), r.backoff(n, resp.Header.Get("Retry-After"))) {
			return nil, context.Cause(req.Context())
		}
	}
}

func (r *reactive) backoff(n int, retryAfter string) time.Duration {
	seconds, _ := strconv.Atoi(retryAfter) // none counts as 0
	step := firstBackoff << min(n, 20)
	r.mu.Lock()
	jitter := time.Duration(r.rng.Int64N(int64(min(step, longestBackoff))))
	r.mu.Unlock()
	return min(time.Duration(seconds)*time.Second+jitter, longestBackoff)
}

func (*reactive) Close() {}

// replayed is the request with a fresh body.
func replayed(req *http.Request) *http.Request {
	if req.GetBody == nil {
		return req
	}
	again := req.Clone(req.Context())
	again.Body, _ = req.GetBody() // the body is a string
	return again
}
