package client

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// freeFleet admits at no cost, so that what is left is the transport's own.
type freeFleet struct{ permit freePermit }

func (freeFleet) Policy() coordinator.Policy { return testPolicy }
func (f freeFleet) acquire(context.Context, string, coordinator.Priority, permit) (permit, error) {
	return f.permit, nil
}
func (freeFleet) JobSeen(string, string) {}
func (freeFleet) JobDone(string, string) {}

type freePermit struct{}

func (freePermit) Context(parent context.Context) (context.Context, context.CancelFunc) {
	return context.WithCancel(parent)
}
func (freePermit) Valid() error                { return nil }
func (freePermit) Waited() time.Duration       { return 0 }
func (freePermit) Gate() coordinator.Gate      { return "" }
func (freePermit) Lost() <-chan struct{}       { return nil }
func (freePermit) Sending()                    {}
func (freePermit) Sent()                       {}
func (freePermit) Release()                    {}
func (freePermit) Return()                     {}
func (freePermit) Keep()                       {}
func (freePermit) BindJob(string)              {}
func (freePermit) ReleaseAfter(time.Duration)  {}
func (freePermit) Report(coordinator.Feedback) {}

// aRequest returns what sends one request and reads its answer to the end: through the
// transport, or through its base alone, which answers at once.
func aRequest(tb testing.TB, through bool, path string) func() {
	tb.Helper()
	header := http.Header{
		"Content-Type":                   {"application/json"},
		"X-Ratelimit-Limit-Requests":     {"600"},
		"X-Ratelimit-Remaining-Requests": {"599"},
		"X-Ratelimit-Reset-Requests":     {"1"},
	}
	var send http.RoundTripper = roundTripper(func(r *http.Request) (*http.Response, error) {
		return &http.Response{
			StatusCode: http.StatusOK, Header: header, Request: r,
			Body: io.NopCloser(strings.NewReader(`{"id":"1","usage":{"credits_used":1}}`)),
		}, nil
	})
	if through {
		t, err := newTransport(freeFleet{}, testProfile, Options{Base: send})
		if err != nil {
			tb.Fatal(err)
		}
		send = t
	}
	ctx := tb.Context()
	return func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api.test/v1"+path, strings.NewReader(`{"input":"hello"}`))
		if err != nil {
			tb.Fatal(err)
		}
		resp, err := send.RoundTrip(req)
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			tb.Fatal(err)
		}
		resp.Body.Close()
	}
}

// BenchmarkTransport shows what the transport itself costs: the difference between
// "transport" and "bare".
func BenchmarkTransport(b *testing.B) {
	for _, path := range []string{"/responses", "/chat"} {
		for name, through := range map[string]bool{"bare": false, "transport": true} {
			b.Run(strings.TrimPrefix(path, "/")+"/"+name, func(b *testing.B) {
				send := aRequest(b, through, path)
				b.ReportAllocs()
				for b.Loop() {
					send()
				}
			})
		}
	}
}

func TestTheTransportAllocatesLittle(t *testing.T) {
	for _, path := range []string{"/responses", "/chat"} {
		own := testing.AllocsPerRun(200, aRequest(t, true, path)) - testing.AllocsPerRun(200, aRequest(t, false, path))
		if own > 20 {
			t.Errorf("%s: the transport allocates %.0f times for each request, want 20 or fewer", path, own)
		}
	}
}
