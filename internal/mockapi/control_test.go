package mockapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestStatsAreServedWithoutKeyAndBudget(t *testing.T) {
	inBubble(t, Config{Limit: 3, NoLatency: true}, func(t *testing.T, r *rig) {
		r.at(2 * time.Second)
		r.mustGet(200)
		r.url = strings.TrimSuffix(r.url, "/api/v1")
		r.at(5 * time.Second)
		for range 10 {
			got := r.doCtx(t.Context(), "", "GET /_stats", "")
			r.expect("status", got.status, 200)
			for field, want := range map[string]any{
				"requests": 1., "accepted": 1., "responses_429": 0., "limit_violations": 0.,
				"slot_violations": 0., "pause_violations": 0., "errors_injected": 0.,
				"max_in_window": 1., "limit": 3., "remaining": 2., "mode": "sliding",
				"stranger_accepted": 0., "stranger_rejected": 0., "keys": 1.,
				"first_request_seconds": 2., "last_request_seconds": 2., "now_seconds": 5.,
			} {
				r.expect(field, got.body[field], want)
			}
			for _, field := range []string{"max_in_flight", "in_flight", "requests_by_endpoint", "slot_violations_by_endpoint"} {
				if _, ok := got.body[field].(map[string]any)[PostVideoAnalyses]; !ok {
					t.Errorf("%s has no %s", field, PostVideoAnalyses)
				}
			}
			var typed Stats
			if err := json.Unmarshal([]byte(got.raw), &typed); err != nil || typed.Accepted != 1 {
				t.Errorf("Stats do not read back: %v, %+v", err, typed)
			}
		}
		r.expect("POST", r.do("POST /_stats", "").status, 405)
	})
}

func TestStatsBeforeTheFirstRequest(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		s := r.Stats()
		r.expect("first", s.FirstRequestSeconds, -1.)
		r.expect("last", s.LastRequestSeconds, -1.)
		r.expect("remaining", s.Remaining, 600)
	})
}

func TestControlChangesTheRunningAPI(t *testing.T) {
	inBubble(t, Config{NoLatency: true}, func(t *testing.T, r *rig) {
		control := func(status int, body string) answer {
			t.Helper()
			got := r.doCtx(t.Context(), "", "POST /_control", body)
			r.expect("status of "+body, got.status, status)
			return got
		}
		r.expect("limit", control(200, `{"tier":"basic"}`).body["limit"], 120.)
		r.expect("limit", control(200, `{"limit":20,"spend":3}`).body["limit"], 20.)
		r.expect("remaining", r.mustGet(200).int("X-RateLimit-Remaining"), 16)
		control(200, `{"faults":[{"kind":"error","status":503,"retry_after_seconds":1.5,"count":2}]}`)
		r.expect("Retry-After", r.mustGet(503).int("Retry-After"), 2)
		control(200, `{"clear_faults":true}`)
		r.mustGet(200)
		control(200, `{"stranger":{"burst":5,"every_seconds":2}}`)
		r.at(3 * time.Second)
		r.expect("spent", r.Stats().StrangerAccepted, int64(8))
		control(200, `{"stop_strangers":true}`)
		r.at(10 * time.Second)
		r.expect("spent", r.Stats().StrangerAccepted, int64(8))

		control(400, `{"tier":"gold"}`)
		control(400, `{"limit":-1}`)
		control(400, `{"stranger":{}}`)
		control(400, `{"faults":[{"kind":"flood"}]}`)
		control(400, `{"nonsense":1}`)
		control(400, `{`)
		r.expect("GET", r.do("GET /_control", "").status, 405)
	})
}

func TestControlIsForLoopbackOnly(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		for remote, status := range map[string]int{
			"127.0.0.1:4711": 200, "[::1]:4711": 200, "192.0.2.1:4711": 403, "": 403, "pipe": 200,
		} {
			req := httptest.NewRequest("POST", "/_control", strings.NewReader(`{"limit":7}`))
			req.RemoteAddr = remote
			w := httptest.NewRecorder()
			r.ServeHTTP(w, req)
			r.expect("status for "+remote, w.Code, status)
		}
	})
}

func TestClosedAPIAnswers503(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		r.Close()
		req := httptest.NewRequest("GET", "/personas", nil)
		req.Header.Set("Authorization", "Bearer "+testKey)
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		r.expect("status", w.Code, http.StatusServiceUnavailable)
	})
}

// The key must not show, whatever the API says.
func TestKeyNeverShows(t *testing.T) {
	inBubble(t, Config{Limit: 3}, func(t *testing.T, r *rig) {
		for _, what := range []string{PostResponses, GetPersonas, "GET /nothing", PostMaveChat, "GET /_stats", "POST /_control"} {
			got := r.do(what, "{}")
			for name, values := range got.header {
				if strings.Contains(strings.Join(values, " "), testKey) {
					t.Errorf("%s: header %s shows the key", what, name)
				}
			}
			if strings.Contains(got.raw, testKey) {
				t.Errorf("%s: the body shows the key", what)
			}
		}
	})
}
