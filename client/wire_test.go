package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fleetlimit/fleetlimit/internal/redistest"
)

// onWire serves a handler over real connections, as HTTP/1.1 and as HTTP/2, and
// counts the connections.
func onWire(t *testing.T, serve http.HandlerFunc, test func(t *testing.T, tr *Transport, fleet *fakeFleet, url string, conns *atomic.Int32)) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			var conns atomic.Int32
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Proto != proto {
					t.Errorf("a request came as %s", r.Proto)
				}
				serve(w, r)
			}))
			server.EnableHTTP2 = proto == "HTTP/2.0"
			server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					conns.Add(1)
				}
			}
			server.StartTLS()
			defer server.Close()
			tr, fleet := newTestTransport(t, server.Client().Transport, Options{})
			test(t, tr, fleet, server.URL+"/v1", &conns)
		})
	}
}

func post(t *testing.T, ctx context.Context, url, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestARetryReusesTheConnection(t *testing.T) {
	var calls atomic.Int32
	serve := func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		if string(text) != "question" {
			t.Errorf("the server reads %q", text)
		}
		if calls.Add(1)%3 != 0 {
			w.WriteHeader(429)
			io.WriteString(w, strings.Repeat("x", 10_000))
		}
	}
	onWire(t, serve, func(t *testing.T, tr *Transport, fleet *fakeFleet, url string, conns *atomic.Int32) {
		resp, err := tr.Client().Do(post(t, t.Context(), url+"/chat", "question"))
		if err != nil {
			t.Fatal(err)
		}
		mustRead(t, resp)
		if resp.StatusCode != 200 || conns.Load() != 1 {
			t.Errorf("status %d over %d connections", resp.StatusCode, conns.Load())
		}
		expect(t, fleet, acquired, "1: release",
			`2: acquire "POST /chat" again after 1`, "2: release",
			`3: acquire "POST /chat" again after 2`, "3: release")
		for _, sent := range []string{"1: sent", "2: sent", "3: sent"} {
			// With HTTP/2 the answer can be there before the end of writing is told.
			redistest.Eventually(t, "told once", func() error {
				if n := fleet.count(sent); n != 1 {
					return fmt.Errorf("%q stands %d times in the log", sent, n)
				}
				return nil
			})
		}
	})
}

func TestAStreamClosedEarlyOnTheWire(t *testing.T) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "data\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	onWire(t, serve, func(t *testing.T, tr *Transport, fleet *fakeFleet, url string, _ *atomic.Int32) {
		resp, err := tr.Client().Do(post(t, t.Context(), url+"/chat", ""))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		expect(t, fleet, acquired, "1: release after 1s")
	})
}

func TestACallCancelledOnTheWire(t *testing.T) {
	arrived := make(chan struct{})
	serve := func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
		// The end of TLS is told before the connection is closed: a quick answer
		// would still reach the client.
		panic(http.ErrAbortHandler)
	}
	onWire(t, serve,
		func(t *testing.T, tr *Transport, fleet *fakeFleet, url string, _ *atomic.Int32) {
			for _, path := range []string{"/chat", "/jobs"} {
				ctx, cancel := context.WithCancel(t.Context())
				req := post(t, ctx, url+path, "")
				go func() {
					<-arrived
					cancel()
				}()
				if _, err := tr.Client().Do(req); !errors.Is(err, context.Canceled) {
					t.Errorf("error = %v", err)
				}
			}
			expect(t, fleet, acquired, "1: release after 1s", `2: acquire "POST /jobs"`, "2: keep")
		})
}

func TestAServerThatIsNotThereCostsNothing(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	url := server.URL
	server.Close()
	tr, fleet := newTestTransport(t, nil, Options{})
	if _, err := tr.Client().Do(post(t, t.Context(), url+"/v1/jobs", "question")); err == nil {
		t.Error("an answer came")
	}
	expect(t, fleet, `1: acquire "POST /jobs"`, "1: return")
}

func TestAJobStartedOnTheWireReusesTheConnection(t *testing.T) {
	serve := func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"id":"va_1","status":"pending"}`)
	}
	onWire(t, serve, func(t *testing.T, tr *Transport, fleet *fakeFleet, url string, conns *atomic.Int32) {
		for range 2 {
			resp, err := tr.Client().Do(post(t, t.Context(), url+"/jobs", ""))
			if err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, resp); got != `{"id":"va_1","status":"pending"}` {
				t.Errorf("the caller reads %q", got)
			}
		}
		expect(t, fleet, `1: acquire "POST /jobs"`, "1: bind va_1", `2: acquire "POST /jobs"`, "2: bind va_1")
		if conns.Load() != 1 {
			t.Errorf("%d connections", conns.Load())
		}
	})
}
