package client

import (
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// retryPolicy says whether, and after what time, a request is sent again.
type retryPolicy struct {
	max       int
	base, cap time.Duration
}

func newRetryPolicy(opts Options) (retryPolicy, error) {
	p := retryPolicy{max: opts.MaxRetries, base: opts.BackoffBase, cap: opts.BackoffCap}
	if p.max == 0 {
		p.max = DefaultMaxRetries
	}
	if p.base == 0 {
		p.base = DefaultBackoffBase
	}
	if p.cap == 0 {
		p.cap = max(DefaultBackoffCap, p.base)
	}
	if p.base < 0 {
		return p, &coordinator.ConfigError{Field: "Options.BackoffBase", Value: p.base, Reason: "must not be negative"}
	}
	if p.cap < p.base {
		return p, &coordinator.ConfigError{Field: "Options.BackoffCap", Value: p.cap, Reason: "must not be less than BackoffBase"}
	}
	return p, nil
}

// delay is the time to wait on top of admission after the attempt with the
// given number, counted from 1, got this feedback. A 429 needs none: the pause
// that it causes holds the whole fleet, this request included.
func (p retryPolicy) delay(number int, f coordinator.Feedback) (d time.Duration, again bool) {
	if number > p.max {
		return 0, false
	}
	switch f.Status {
	case http.StatusTooManyRequests:
		return 0, true
	case http.StatusInternalServerError, http.StatusServiceUnavailable:
		return max(f.RetryAfter, 0) + p.jitter(number-1), true
	}
	return 0, false
}

// jitter is "full jitter": uniform between 0 and the exponential step, so that
// clients that failed together do not come back together.
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
func (p retryPolicy) jitter(retries int) time.Duration {
	return rand.N(p.step(retries) + 1)
}

func (p retryPolicy) step(retries int) time.Duration {
	step := p.base
	for ; retries > 0 && step < p.cap; retries-- {
		if step > p.cap/2 {
			return p.cap
		}
		step *= 2
	}
	return step
}
