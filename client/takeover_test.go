package client

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

func TestAHoldKeepsTheSlotBeyondTheResponse(t *testing.T) {
	tr, fleet := newTestTransport(t, answers(withBody(response(200), "session")), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	ctx, held := WithHold(ctx)
	if held.Held() || held.Lost() != nil {
		t.Error("something is held before the request")
	}
	resp, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", ""))
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, resp)
	resp.Body.Close()
	cancel() // the request's context is not the work's
	expect(t, fleet, `1: acquire "POST /chat"`)
	if !held.Held() {
		t.Fatal("nothing is held")
	}
	held.Release()
	held.Release()
	held.ReleaseAfter(time.Second)
	expect(t, fleet, `1: acquire "POST /chat"`, "1: release")
}

func TestWhatAHoldTakesOver(t *testing.T) {
	for _, tt := range []struct {
		name, method, path string
		status             int
		want               []string
		held               bool
	}{
		{"a call of an endpoint with slots", "POST", "/v1/chat", 201, []string{`1: acquire "POST /chat"`}, true},
		{"a call that starts a job", "POST", "/v1/jobs", 202, []string{`1: acquire "POST /jobs"`}, true},
		{"a refusal", "POST", "/v1/chat", 400, []string{`1: acquire "POST /chat"`, "1: release"}, false},
		{"a redirection", "POST", "/v1/chat", 307, []string{`1: acquire "POST /chat"`, "1: release"}, false},
		{"no slot", "GET", "/v1/models", 200, []string{`1: acquire ""`, "1: release"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr, fleet := newTestTransport(t, answers(withBody(response(tt.status), `{"id":"j"}`)), Options{})
			ctx, held := WithHold(t.Context())
			resp, err := tr.RoundTrip(newRequest(t, ctx, tt.method, tt.path, ""))
			if err != nil {
				t.Fatal(err)
			}
			mustRead(t, resp)
			resp.Body.Close()
			expect(t, fleet, tt.want...)
			if held.Held() != tt.held {
				t.Errorf("held: %v, want %v", held.Held(), tt.held)
			}
		})
	}
}

func TestAHoldIsForOneRequest(t *testing.T) {
	tr, fleet := newTestTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
		return withBody(response(200), "ok"), nil
	}), Options{})
	ctx, held := WithHold(t.Context())
	for range 2 {
		resp, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", ""))
		if err != nil {
			t.Fatal(err)
		}
		mustRead(t, resp)
	}
	expect(t, fleet, `1: acquire "POST /chat"`, `2: acquire "POST /chat"`, "2: release")
	held.Release()
	resp, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", "")) // nobody wants its slot
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, resp)
	expect(t, fleet, `1: acquire "POST /chat"`, `2: acquire "POST /chat"`, "2: release", "1: release", `3: acquire "POST /chat"`, "3: release")
}

func TestTheHolderIsToldWhenTheSlotIsLost(t *testing.T) {
	tr, fleet := newTestTransport(t, answers(withBody(response(200), "session")), Options{})
	ctx, held := WithHold(t.Context())
	idle, free := held.Context(t.Context())
	if idle.Err() != nil {
		t.Error("a context has ended although nothing is held")
	}
	free()
	resp, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", ""))
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, resp)
	work, free := held.Context(t.Context())
	defer free()
	close(fleet.permits[0].lost)
	<-held.Lost()
	<-work.Done()
	if cause := context.Cause(work); !errors.Is(cause, coordinator.ErrLeaseLost) {
		t.Errorf("the work's context ends with %v", cause)
	}
}
