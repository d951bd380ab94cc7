package client

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
)

// A panic of the base transport, or of a listener, in a program that recovers (as net/http's
// servers do) ends the attempt as an error would: heartbeats would keep its slot for ever.
func TestAPanicEndsTheAttempt(t *testing.T) {
	ok := answers(&http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody})
	broken := roundTripper(func(*http.Request) (*http.Response, error) { panic("a fault of the base") })
	for name, c := range map[string]struct {
		path string
		base http.RoundTripper
		opts Options
		want string
	}{
		"base":                      {"/v1/chat", broken, Options{}, "1: release after 1s"},
		"base, for a job":           {"/v1/jobs", broken, Options{}, "1: keep"},
		"base that answers nothing": {"/v1/chat", roundTripper(func(*http.Request) (*http.Response, error) { return nil, nil }), Options{}, "1: release after 1s"},
		"listener":                  {"/v1/chat", ok, Options{OnAttempt: func(Attempt) { panic("a fault of the listener") }}, "1: release after 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr, fleet := newTestTransport(t, c.base, c.opts)
				func() {
					defer func() {
						if recover() == nil {
							t.Error("the panic was swallowed")
						}
					}()
					_, _ = tr.RoundTrip(newRequest(t, context.Background(), "POST", c.path, ""))
				}()
				synctest.Wait() // the attempt's context has ended
				if got := fleet.events(); !slices.Contains(got, c.want) || len(got) != 2 {
					t.Errorf("events %q, want %q as the only end", got, c.want)
				}
			})
		})
	}
}
