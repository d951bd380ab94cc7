package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// fakeFleet grants everything at once and writes down what becomes of it.
type fakeFleet struct {
	policy coordinator.Policy
	stale  int   // so many permits are too old to be used
	refuse error // if set, what acquire returns from the second request on

	mu      sync.Mutex
	log     []string
	permits []*fakePermit
}

func (f *fakeFleet) Policy() coordinator.Policy { return f.policy }

func (f *fakeFleet) acquire(ctx context.Context, endpoint string, priority coordinator.Priority, failed permit) (permit, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.permits) + 1
	if f.refuse != nil && n > 1 {
		return nil, f.refuse
	}
	what := fmt.Sprintf("acquire %q", endpoint)
	if priority != coordinator.Normal {
		what += fmt.Sprintf(" priority %d", priority)
	}
	if failed != nil {
		what += fmt.Sprintf(" again after %d", failed.(*fakePermit).n)
	}
	p := &fakePermit{fleet: f, n: n, lost: make(chan struct{})}
	f.permits = append(f.permits, p)
	f.write(n, what)
	return p, nil
}

func (p *fakePermit) Valid() error {
	p.fleet.mu.Lock()
	defer p.fleet.mu.Unlock()
	if p.fleet.stale > 0 {
		p.fleet.stale--
		return coordinator.ErrStale
	}
	return nil
}

func (f *fakeFleet) JobSeen(endpoint, job string) { f.note(0, "seen "+endpoint+" "+job) }
func (f *fakeFleet) JobDone(endpoint, job string) { f.note(0, "done "+endpoint+" "+job) }

func (f *fakeFleet) note(n int, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.write(n, what)
}

func (f *fakeFleet) write(n int, what string) {
	if n > 0 {
		what = fmt.Sprintf("%d: %s", n, what)
	}
	f.log = append(f.log, what)
}

// events returns what happened so far, without the reports and "sent", which
// stand in every log.
func (f *fakeFleet) events() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.log), func(s string) bool {
		return strings.HasSuffix(s, "sent") || strings.Contains(s, "report")
	})
}

func (f *fakeFleet) count(event string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.log {
		if s == event {
			n++
		}
	}
	return n
}

type fakePermit struct {
	fleet *fakeFleet
	n     int
	lost  chan struct{}
}

func (p *fakePermit) Context(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	go func() {
		select {
		case <-p.lost:
			cancel(coordinator.ErrLeaseLost)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

func (p *fakePermit) Waited() time.Duration { return 0 }

func (p *fakePermit) Gate() coordinator.Gate { return "" }
func (p *fakePermit) Lost() <-chan struct{}  { return p.lost }
func (p *fakePermit) Sending()               {}
func (p *fakePermit) Sent()                  { p.fleet.note(p.n, "sent") }
func (p *fakePermit) Release()               { p.fleet.note(p.n, "release") }
func (p *fakePermit) Return()                { p.fleet.note(p.n, "return") }
func (p *fakePermit) Keep()                  { p.fleet.note(p.n, "keep") }
func (p *fakePermit) BindJob(job string)     { p.fleet.note(p.n, "bind "+job) }

func (p *fakePermit) ReleaseAfter(d time.Duration) {
	p.fleet.note(p.n, fmt.Sprintf("release after %v", d))
}

func (p *fakePermit) Report(f coordinator.Feedback) {
	p.fleet.note(p.n, fmt.Sprintf("report %d", f.Status))
}

// The profile and policy of these tests.
var (
	testPolicy = coordinator.Policy{
		Limit: 100,
		Endpoints: []coordinator.Endpoint{
			{Pattern: "POST /chat", Slots: 2},
			{Pattern: "POST /jobs", Slots: 2, JobTTL: time.Minute},
		},
	}
	testProfile = Profile{
		BasePath: "/v1",
		Dialects: []Dialect{XRateLimit},
		Jobs:     []Job{{Start: "POST /jobs", Poll: "GET /jobs/{id}"}},
	}
)

// roundTripper is a base transport made of a function.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f(r)
	if r.Body != nil {
		r.Body.Close()
	}
	return resp, err
}

// answers is a base transport that gives these answers one after the other,
// and the last one for ever.
func answers(list ...*http.Response) roundTripper {
	var mu sync.Mutex
	return func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		resp := list[0]
		if len(list) > 1 {
			list = list[1:]
		}
		return resp, r.Context().Err()
	}
}

func withBody(resp *http.Response, text string) *http.Response {
	resp.Body = io.NopCloser(strings.NewReader(text))
	return resp
}

func newTestTransport(t *testing.T, base http.RoundTripper, opts Options) (*Transport, *fakeFleet) {
	t.Helper()
	fleet := &fakeFleet{policy: testPolicy}
	opts.Base = base
	tr, err := newTransport(fleet, testProfile, opts)
	if err != nil {
		t.Fatal(err)
	}
	return tr, fleet
}

func newRequest(t *testing.T, ctx context.Context, method, path, body string) *http.Request {
	t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://api.test"+path, r)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

var errBroken = errors.New("connection broken")

// trackedBody tells whether it was closed.
type trackedBody struct {
	io.Reader
	closed bool
}

func (b *trackedBody) Close() error {
	b.closed = true
	return nil
}
