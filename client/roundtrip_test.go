package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

func mustRead(t *testing.T, resp *http.Response) string {
	t.Helper()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func expect(t *testing.T, fleet *fakeFleet, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, fleet.events()); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestOnly429And500And503AreSentAgain(t *testing.T) {
	for _, status := range []int{200, 204, 301, 400, 401, 402, 403, 404, 409, 422, 429, 500, 501, 502, 503, 504} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sent := 0
				base := roundTripper(func(r *http.Request) (*http.Response, error) {
					sent++
					text, _ := io.ReadAll(r.Body)
					if string(text) != "question" {
						t.Errorf("attempt %d sends %q", sent, text)
					}
					return withBody(response(status), fmt.Sprintf("answer %d", sent)), nil
				})
				tr, fleet := newTestTransport(t, base, Options{})
				resp, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/chat", "question"))
				if err != nil {
					t.Fatal(err)
				}
				want := 1
				if status == 429 || status == 500 || status == 503 {
					want = 1 + DefaultMaxRetries
				}
				if got := mustRead(t, resp); got != fmt.Sprintf("answer %d", want) || resp.StatusCode != status {
					t.Errorf("got %d %q", resp.StatusCode, got)
				}
				for n := 1; n <= want; n++ {
					for _, event := range []string{"report " + fmt.Sprint(status), "release"} {
						if c := fleet.count(fmt.Sprintf("%d: %s", n, event)); c != 1 {
							t.Errorf("attempt %d: %d × %s", n, c, event)
						}
					}
				}
				if sent != want || len(fleet.permits) != want {
					t.Errorf("sent %d times with %d permits, want %d", sent, len(fleet.permits), want)
				}
			})
		})
	}
}

func TestARetryNamesThePermitItRepeatsAndKeepsItsPriority(t *testing.T) {
	tr, fleet := newTestTransport(t, answers(response(429), response(429), response(200)), Options{})
	ctx := WithPriority(t.Context(), coordinator.Interactive)
	if _, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", "")); err != nil {
		t.Fatal(err)
	}
	expect(t, fleet,
		`1: acquire "POST /chat" priority 1`, "1: release",
		`2: acquire "POST /chat" priority 1 again after 1`, "2: release",
		`3: acquire "POST /chat" priority 1 again after 2`, "3: release")
}

func TestWaitsBetweenRetries(t *testing.T) {
	tests := []struct {
		name          string
		status        int
		lines         []string
		least, most   time.Duration // of one retry
		retriesInPath int
	}{
		{"429 waits for its permit alone", 429, []string{"Retry-After: 100"}, 0, 0, 1},
		{"500 backs off", 500, nil, 0, 500 * time.Millisecond, 1},
		{"503 backs off", 503, nil, 0, 500 * time.Millisecond, 1},
		{"503 waits Retry-After at least", 503, []string{"Retry-After: 7"}, 7 * time.Second, 7500 * time.Millisecond, 1},
		{"the backoff doubles", 500, nil, 0, 3500 * time.Millisecond, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr, _ := newTestTransport(t, answers(response(tt.status, tt.lines...)), Options{MaxRetries: tt.retriesInPath})
				for range 50 {
					start := time.Now()
					if _, err := tr.RoundTrip(newRequest(t, t.Context(), "GET", "/v1/x", "")); err != nil {
						t.Fatal(err)
					}
					if d := time.Since(start); d < tt.least || d > tt.most {
						t.Errorf("waited %v, want %v to %v", d, tt.least, tt.most)
					}
				}
			})
		})
	}
}

func TestBackoffStepsDoubleUpToTheCap(t *testing.T) {
	p, err := newRetryPolicy(Options{BackoffBase: time.Second, BackoffCap: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for retries, want := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second, 5 * time.Second} {
		if got := p.step(retries); got != want {
			t.Errorf("step(%d) = %v, want %v", retries, got, want)
		}
	}
	if got := p.step(1 << 20); got != 5*time.Second {
		t.Errorf("a late step = %v", got)
	}
}

func TestNegativeMaxRetriesMeansNone(t *testing.T) {
	tr, fleet := newTestTransport(t, answers(response(429)), Options{MaxRetries: -1})
	resp, err := tr.RoundTrip(newRequest(t, t.Context(), "GET", "/v1/x", ""))
	if err != nil || resp.StatusCode != 429 || len(fleet.permits) != 1 {
		t.Errorf("got %v, %v with %d permits", resp, err, len(fleet.permits))
	}
}

func TestABodyThatCannotBeHadAgainIsNotSentAgain(t *testing.T) {
	for name, getBody := range map[string]func() (io.ReadCloser, error){
		"no GetBody":     nil,
		"GetBody failed": func() (io.ReadCloser, error) { return nil, errBroken },
	} {
		tr, fleet := newTestTransport(t, answers(withBody(response(503), "busy")), Options{})
		req := newRequest(t, t.Context(), "POST", "/v1/chat", "question")
		req.GetBody = getBody
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, resp); got != "busy" || len(fleet.permits) != 1 {
			t.Errorf("%s: got %q after %d attempts", name, got, len(fleet.permits))
		}
	}
}

func TestARetryThatWouldComeTooLateIsLeftToTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, fleet := newTestTransport(t, answers(withBody(response(503, "Retry-After: 60"), "busy")), Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		start := time.Now()
		resp, err := tr.RoundTrip(newRequest(t, ctx, "GET", "/v1/x", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := mustRead(t, resp); got != "busy" || time.Since(start) != 0 || len(fleet.permits) != 1 {
			t.Errorf("got %q after %v and %d attempts", got, time.Since(start), len(fleet.permits))
		}
	})
}

func TestCancellationEndsTheWaitForARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr, fleet := newTestTransport(t, answers(response(503, "Retry-After: 60")), Options{})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Second, cancel)
		start := time.Now()
		req := newRequest(t, ctx, "POST", "/v1/chat", "")
		again := &trackedBody{Reader: strings.NewReader("question")}
		req.Body = io.NopCloser(strings.NewReader("question"))
		req.GetBody = func() (io.ReadCloser, error) { return again, nil }
		_, err := tr.RoundTrip(req)
		if !errors.Is(err, context.Canceled) || time.Since(start) != 10*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		if !again.closed {
			t.Error("the body for the retry was not closed")
		}
		expect(t, fleet, `1: acquire "POST /chat"`, "1: release")
	})
}

func TestARefusedPermitIsTheCallersErrorAndClosesTheBody(t *testing.T) {
	refusal := &coordinator.WaitError{Gate: coordinator.GateWindow, Wait: time.Minute}
	fleet := &fakeFleet{policy: testPolicy, refuse: refusal, permits: make([]*fakePermit, 1)}
	tr, err := newTransport(fleet, testProfile, Options{Base: answers(response(200))})
	if err != nil {
		t.Fatal(err)
	}
	body := &trackedBody{Reader: strings.NewReader("question")}
	req := newRequest(t, t.Context(), "POST", "/v1/chat", "")
	req.Body = body
	_, err = tr.Client().Do(req)
	var wait *coordinator.WaitError
	if !errors.As(err, &wait) || wait != refusal {
		t.Errorf("error = %v, want the limiter's", err)
	}
	if !body.closed {
		t.Error("the request's body was not closed")
	}
}

func TestOnAttemptSeesEveryAttempt(t *testing.T) {
	var seen []string
	opts := Options{OnAttempt: func(a Attempt) {
		seen = append(seen, fmt.Sprintf("%d %q %d remaining %d retried %v err %v", a.Number, a.Endpoint, a.Status, a.Feedback.Remaining, a.Retried, a.Err))
	}}
	calls := 0
	base := roundTripper(func(*http.Request) (*http.Response, error) {
		if calls++; calls == 1 {
			return response(429, "X-RateLimit-Remaining: 0"), nil
		}
		return nil, errBroken
	})
	tr, _ := newTestTransport(t, base, opts)
	if _, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/chat", "")); !errors.Is(err, errBroken) {
		t.Errorf("error = %v", err)
	}
	want := []string{
		`1 "POST /chat" 429 remaining 0 retried true err <nil>`,
		`2 "POST /chat" 0 remaining -1 retried false err connection broken`,
	}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("attempts (-want +got):\n%s", diff)
	}
}

func TestTheCallersRequestIsNotChanged(t *testing.T) {
	tr, _ := newTestTransport(t, answers(response(429), response(200)), Options{})
	req := newRequest(t, t.Context(), "POST", "/v1/chat", "question")
	body, url, ctx := req.Body, *req.URL, req.Context()
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if req.Body != body || *req.URL != url || req.Context() != ctx || len(req.Header) != 0 {
		t.Error("the request was changed")
	}
	if resp.Request != req {
		t.Error("the response does not name the request that was made")
	}
}

func TestWhatBecomesOfThePermitOfAFailedCall(t *testing.T) {
	trace := func(r *http.Request) *httptrace.ClientTrace { return httptrace.ContextClientTrace(r.Context()) }
	tests := []struct {
		name string
		path string
		fail func(r *http.Request)
		want string
	}{
		{"never connected", "/v1/chat", func(r *http.Request) { trace(r).GetConn("") }, "1: return"},
		{"a job's, never connected", "/v1/jobs", func(r *http.Request) { trace(r).GetConn("") }, "1: return"},
		{"connected", "/v1/chat", func(r *http.Request) { trace(r).GetConn(""); trace(r).GotConn(httptrace.GotConnInfo{}) }, "1: release after 1s"},
		{"a job may have been started", "/v1/jobs", func(r *http.Request) { trace(r).GetConn(""); trace(r).GotConn(httptrace.GotConnInfo{}) }, "1: keep"},
		{"nobody knows", "/v1/chat", func(*http.Request) {}, "1: release after 1s"},
		{"nobody knows of a job", "/v1/jobs", func(*http.Request) {}, "1: keep"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base := roundTripper(func(r *http.Request) (*http.Response, error) {
				tt.fail(r)
				return nil, errBroken
			})
			tr, fleet := newTestTransport(t, base, Options{})
			if _, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", tt.path, "")); !errors.Is(err, errBroken) {
				t.Errorf("error = %v", err)
			}
			expect(t, fleet, fmt.Sprintf("1: acquire %q", "POST "+strings.TrimPrefix(tt.path, "/v1")), tt.want)
		})
	}
}

func TestAPermitThatGrewTooOldIsChangedForAnother(t *testing.T) {
	sent := 0
	tr, fleet := newTestTransport(t, roundTripper(func(*http.Request) (*http.Response, error) {
		sent++
		return withBody(response(200), "ok"), nil
	}), Options{})
	fleet.stale = 2
	resp, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/chat", "question"))
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, resp)
	if sent != 1 {
		t.Errorf("sent %d times", sent)
	}
	expect(t, fleet, acquired, "1: return", `2: acquire "POST /chat"`, "2: return", `3: acquire "POST /chat"`, "3: release")
	fleet.stale = 100
	if _, err := tr.RoundTrip(newRequest(t, t.Context(), "POST", "/v1/chat", "question")); !errors.Is(err, coordinator.ErrStale) || sent != 1 {
		t.Errorf("error %v and %d sent, want ErrStale after a few", err, sent)
	}
}

func TestAContextThatEndedDuringTheWaitSendsNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	base := roundTripper(func(*http.Request) (*http.Response, error) {
		t.Error("the request was sent")
		return nil, errBroken
	})
	tr, fleet := newTestTransport(t, base, Options{})
	if _, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/jobs", "")); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v", err)
	}
	expect(t, fleet, `1: acquire "POST /jobs"`, "1: return")
}

func TestEverySendIsToldAndTheCallersTraceStillWorks(t *testing.T) {
	written := 0
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		trace := httptrace.ContextClientTrace(r.Context())
		trace.WroteRequest(httptrace.WroteRequestInfo{})
		trace.WroteRequest(httptrace.WroteRequestInfo{})
		return response(200), nil
	})
	tr, fleet := newTestTransport(t, base, Options{})
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { written++ },
	})
	if _, err := tr.RoundTrip(newRequest(t, ctx, "POST", "/v1/chat", "")); err != nil {
		t.Fatal(err)
	}
	if fleet.count("1: sent") != 2 || written != 2 {
		t.Errorf("told %d times, the caller %d times", fleet.count("1: sent"), written)
	}
}
