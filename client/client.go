// Package client puts a fleet's shared limits under net/http: a [Transport]
// asks for admission before every request, passes on what every response says
// about the budget, and holds the endpoint's slot until the answer has been
// read to its end. Code above it, an official SDK included, stays as it is.
//
// The package knows HTTP and nothing of Redis: it sees the coordinator through
// [Limiter]. What differs from one API to the next is a [Profile].
package client

import (
	"context"
	"net/http"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Defaults of [Options].
const (
	DefaultMaxRetries  = 5
	DefaultBackoffBase = 500 * time.Millisecond
	DefaultBackoffCap  = 30 * time.Second
)

// Limiter decides who may send now. *[coordinator.Coordinator] is one.
type Limiter interface {
	// Policy is the policy in force. The patterns of its endpoints say which
	// requests need a slot, its window which of several limits in a response's
	// headers is the one meant.
	Policy() coordinator.Policy
	Acquire(ctx context.Context, r coordinator.Request) (*coordinator.Permit, error)
	JobSeen(endpoint, job string)
	JobDone(endpoint, job string)
}

// Options tune a [Transport]. The zero value works.
type Options struct {
	// Base sends the requests. It must honour the context of a request.
	// Default: a clone of [http.DefaultTransport].
	Base http.RoundTripper

	// MaxRetries is how often one request is sent again after a 429, 500 or
	// 503. Default: 5. Negative: never. The retries of an SDK above the
	// transport come on top of these.
	MaxRetries int

	// BackoffBase and BackoffCap bound the wait before a retry of a 500 or
	// 503: a random time between 0 and min(BackoffCap, BackoffBase × 2ⁿ), n
	// being the number of retries so far. Defaults: 500 ms and 30 s.
	BackoffBase, BackoffCap time.Duration

	// OnAttempt, if set, is called after every attempt, as soon as its
	// response's header or its error is known. It is called from the
	// goroutines of the requests, so possibly several times at once, and must
	// return soon.
	OnAttempt func(Attempt)

	// OnAnswer, if set, is called once for every response when its body has been
	// read to the end or closed, that of a response that is retried included. It is
	// called like OnAttempt.
	OnAnswer func(Answer)
}

// Attempt is one request that was sent, or one try to send it.
type Attempt struct {
	// Account is the account's name; empty if the limiter does not tell it.
	Account string
	// Endpoint is the pattern whose slot the request held; empty: none.
	Endpoint string
	// Number counts the attempts of one request from 1.
	Number int
	// Status is the HTTP status code; 0 if there was no response.
	Status int
	// Err is why there was no response.
	Err error
	// Waited is the time between asking for the permit and getting it.
	Waited time.Duration
	// Gate is what the permit waited for last; empty: nothing.
	Gate coordinator.Gate
	// Feedback is what the response said about the budget.
	Feedback coordinator.Feedback
	// Retried tells that another attempt will follow.
	Retried bool
}

// Answer is a response at its end.
type Answer struct {
	// Account is the account's name; empty if the limiter does not tell it.
	Account string
	// Endpoint is the pattern whose slot the request held; empty: none.
	Endpoint string
	// Status is the HTTP status code.
	Status int
	// CreditsUsed is what the response said in usage.credits_used, as far as its
	// body was read; 0 if it said nothing. Bodies are watched while they are read,
	// not kept; one that was asked for in a compressed form is not looked into.
	CreditsUsed float64
}

// Transport is an [http.RoundTripper] whose requests share the limits of a
// fleet. It is safe for concurrent use.
//
// The host of a request is ignored: a Transport belongs to one account, and
// whatever it sends counts against that account's budget, redirects included.
type Transport struct {
	admission admission
	base      http.RoundTripper
	routes    *routes
	dialects  []Dialect
	window    time.Duration
	retry     retryPolicy
	account   string
	onAttempt func(Attempt)
	onAnswer  func(Answer)
}

// New returns a transport whose requests are admitted by limiter. The error is
// a *[coordinator.ConfigError] that names the field and the value.
func New(limiter Limiter, profile Profile, opts Options) (*Transport, error) {
	if limiter == nil {
		return nil, &coordinator.ConfigError{Field: "limiter", Value: limiter, Reason: "must not be nil"}
	}
	return newTransport(fleet{limiter}, profile, opts)
}

func newTransport(a admission, profile Profile, opts Options) (*Transport, error) {
	retry, err := newRetryPolicy(opts)
	if err != nil {
		return nil, err
	}
	if err := checkDialects(profile.Dialects); err != nil {
		return nil, err
	}
	policy := a.Policy().WithDefaults()
	routes, err := newRoutes(profile, policy.Endpoints)
	if err != nil {
		return nil, err
	}
	t := &Transport{
		admission: a,
		base:      opts.Base,
		routes:    routes,
		dialects:  profile.Dialects,
		window:    policy.Window,
		retry:     retry,
		account:   accountOf(a),
		onAttempt: opts.OnAttempt,
		onAnswer:  opts.OnAnswer,
	}
	if t.base == nil {
		t.base = defaultBase()
	}
	if t.onAttempt == nil {
		t.onAttempt = func(Attempt) {}
	}
	return t, nil
}

// accountOf asks a limiter for the account's name, if it can tell it.
func accountOf(a admission) string {
	if f, ok := a.(fleet); ok {
		if named, ok := f.Limiter.(interface{ Account() string }); ok {
			return named.Account()
		}
	}
	return ""
}

// defaultBase allows for a program that has replaced http.DefaultTransport by
// something that cannot be cloned.
func defaultBase() http.RoundTripper {
	if std, ok := http.DefaultTransport.(*http.Transport); ok {
		return std.Clone()
	}
	return http.DefaultTransport
}

// Client returns a client that sends through t. It has no timeout of its own:
// a request's context bounds its wait for admission, its retries and its
// answer together.
func (t *Transport) Client() *http.Client {
	return &http.Client{Transport: t}
}

// CloseIdleConnections closes the idle connections of the base transport;
// [http.Client.CloseIdleConnections] calls it.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
