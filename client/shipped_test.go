package client

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// forgetful gives a slot back once the answer is there, and forgets that a stream goes
// on after that: its path returns before the release.
type forgetful struct {
	fleet *fakeFleet
	base  http.RoundTripper
}

func (f forgetful) RoundTrip(req *http.Request) (*http.Response, error) {
	p, err := f.fleet.acquire(req.Context(), "POST /chat", coordinator.Normal, nil)
	if err != nil {
		return nil, err
	}
	resp, err := f.base.RoundTrip(req)
	if err == nil && resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp, nil
	}
	p.Release()
	return resp, err
}

// slotsGivenBack is how many permits have been ended, however they ended.
func (f *fakeFleet) slotsGivenBack() (n int) {
	for _, event := range f.events() {
		if strings.Contains(event, "release") {
			n++
		}
	}
	return n
}

// A streamed call is one whose answer is a stream that the test writes.
type streamed struct {
	fleet  *fakeFleet
	cancel context.CancelFunc // of the caller's context
	resp   *http.Response
	api    *io.PipeWriter
}

// One path, that of streams, never gave its slot back, and locked the key for ever.
// Here a stream ends in every way that there is.
func TestEveryEndOfAStreamGivesItsSlotBack_Litellm17323(t *testing.T) {
	ends := map[string]func(*streamed){
		"read to its end": func(c *streamed) {
			c.api.Close()
			_, _ = io.ReadAll(c.resp.Body)
			c.resp.Body.Close()
		},
		"read to its end, and never closed": func(c *streamed) {
			c.api.Close()
			_, _ = io.ReadAll(c.resp.Body)
		},
		"closed before it was read": func(c *streamed) {
			c.resp.Body.Close()
		},
		"closed after its first byte": func(c *streamed) {
			go c.api.Write([]byte("data: 1\n\n"))
			_, _ = c.resp.Body.Read(make([]byte, 1))
			c.resp.Body.Close()
		},
		"broken by the API": func(c *streamed) {
			c.api.CloseWithError(errBroken)
			_, _ = io.ReadAll(c.resp.Body)
			c.resp.Body.Close()
		},
		"cancelled while it is read": func(c *streamed) {
			time.AfterFunc(time.Second, c.cancel)
			_, _ = io.ReadAll(c.resp.Body)
			c.resp.Body.Close()
		},
		"abandoned by its reader": func(c *streamed) {
			c.cancel() // nobody reads or closes
		},
		"its lease is lost": func(c *streamed) {
			close(c.fleet.permits[0].lost)
			_, _ = io.ReadAll(c.resp.Body)
			c.resp.Body.Close()
		},
		"a panic of its reader": func(c *streamed) {
			defer func() { _ = recover() }()
			defer c.resp.Body.Close()
			panic("a caller's mistake")
		},
	}
	for name, end := range ends {
		for who, transport := range map[string]func(*fakeFleet, http.RoundTripper) http.RoundTripper{
			"naive": func(f *fakeFleet, base http.RoundTripper) http.RoundTripper { return forgetful{f, base} },
			"fleetlimit": func(f *fakeFleet, base http.RoundTripper) http.RoundTripper {
				tr, err := newTransport(f, testProfile, Options{Base: base})
				if err != nil {
					t.Fatal(err)
				}
				return tr
			},
		} {
			t.Run(name+"/"+who, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					body, api := io.Pipe()
					base := roundTripper(func(r *http.Request) (*http.Response, error) {
						resp, err := stream(200, body)(r)
						resp.Header = http.Header{"Content-Type": {"text/event-stream"}}
						return resp, err
					})
					fleet := &fakeFleet{policy: testPolicy}
					resp, err := transport(fleet, base).RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", ""))
					if err != nil {
						t.Fatal(err)
					}
					if n := fleet.slotsGivenBack(); n != 0 {
						t.Fatalf("%d slots were given back while the stream goes on", n)
					}
					end(&streamed{fleet, cancel, resp, api})
					synctest.Wait()
					want := 1
					if who == "naive" {
						want = 0
					}
					if n := fleet.slotsGivenBack(); n != want {
						t.Errorf("given back %d times, want %d: %q", n, want, fleet.events())
					}
				})
			})
		}
	}
}
