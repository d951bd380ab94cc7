package mockapi

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const testKey = "mvra_live_0123456789abcdef"

// rig is an API served in memory inside a bubble, and a client of it.
type rig struct {
	*API
	t      *testing.T
	client *http.Client
	url    string
}

// inBubble runs a test in virtual time against an API that ends with it.
func inBubble(t *testing.T, cfg Config, test func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, newRig(t, cfg))
	})
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	l := a.Listen()
	return &rig{API: a, t: t, client: l.Client(), url: l.URL()}
}

// answer is a response that was read to its end, or the error instead.
type answer struct {
	status int
	header http.Header
	body   map[string]any
	raw    string
	err    error
}

// do sends one request, such as do("POST /responses", "{}").
func (r *rig) do(what, body string) answer {
	return r.doCtx(context.Background(), testKey, what, body)
}

func (r *rig) doCtx(ctx context.Context, key, what, body string) answer {
	r.t.Helper()
	method, path, _ := strings.Cut(what, " ")
	req, err := http.NewRequestWithContext(ctx, method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	got := answer{status: resp.StatusCode, header: resp.Header, raw: string(raw), err: err}
	json.Unmarshal(raw, &got.body) // streams are not JSON
	return got
}

// get sends the cheapest request that takes budget.
func (r *rig) get() answer { r.t.Helper(); return r.do(GetPersonas, "") }

// mustGet expects the status of a get.
func (r *rig) mustGet(status int) answer {
	r.t.Helper()
	got := r.get()
	if got.status != status {
		r.t.Fatalf("at %v: status %d, want %d (%s)", r.Since(), got.status, status, got.raw)
	}
	return got
}

// at sleeps to an offset from New.
func (r *rig) at(offset time.Duration) {
	r.t.Helper()
	if offset < r.Since() {
		r.t.Fatalf("%v is over", offset)
	}
	time.Sleep(offset - r.Since())
}

func (r *rig) expect(what string, got, want any) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("at %v: %s is %v, want %v", r.Since(), what, got, want)
	}
}

func (a answer) int(header string) int {
	n, err := strconv.Atoi(a.header.Get(header))
	if err != nil {
		return -1 << 30
	}
	return n
}

// untilReset is X-RateLimit-Reset minus Date, in seconds.
func (a answer) untilReset() int {
	date, err := http.ParseTime(a.header.Get("Date"))
	if err != nil {
		return -1 << 30
	}
	return a.int("X-RateLimit-Reset") - int(date.Unix())
}

func TestConfigErrorsNameFieldAndValue(t *testing.T) {
	for _, tc := range []struct {
		cfg   Config
		field string
		value string
	}{
		{Config{Tier: "gold"}, "Tier", "gold"},
		{Config{Limit: -1}, "Limit", "-1"},
		{Config{Window: -time.Second}, "Window", "-1s"},
		{Config{Mode: "hopping"}, "Mode", "hopping"},
		{Config{Phase: time.Minute}, "Phase", "1m0s"},
		{Config{JobDuration: Range{2, 1}}, "JobDuration", "2ns"},
		{Config{JobFailures: 1.5}, "JobFailures", "1.5"},
		{Config{JobsKept: -3}, "JobsKept", "-3"},
		{Config{StreamChunks: -3}, "StreamChunks", "-3"},
		{Config{TimeScale: -0.5}, "TimeScale", "-0.5"},
		{Config{HeaderRounding: "odd"}, "HeaderRounding", "odd"},
		{Config{Grace: -1}, "Grace", "-1ns"},
		{Config{Slots: map[string]int{"POST /nothing": 1}}, "Slots", "POST /nothing"},
		{Config{Slots: map[string]int{PostMaveChat: -1}}, "Slots", "-1"},
		{Config{Latency: map[string]Latency{"POST /nothing": {}}}, "Latency", "POST /nothing"},
		{Config{Latency: map[string]Latency{PostMaveChat: {Jitter: 2}}}, "Latency", "2"},
		{Config{Faults: []Fault{{Kind: "flood"}}}, "Fault.Kind", "flood"},
		{Config{Faults: []Fault{{Kind: FaultError, Status: 418}}}, "Fault.Status", "418"},
		{Config{Faults: []Fault{{Kind: FaultCut, Endpoint: "GET /x"}}}, "Fault.Endpoint", "GET /x"},
		{Config{Faults: []Fault{{Kind: FaultCut, Probability: 2}}}, "Fault.Probability", "2"},
		{Config{Faults: []Fault{{Kind: FaultCut, Count: -2}}}, "Count", "-2"},
	} {
		_, err := New(tc.cfg)
		if err == nil || !strings.Contains(err.Error(), tc.field) || !strings.Contains(err.Error(), tc.value) {
			t.Errorf("%s: error %v does not name the field and %s", tc.field, err, tc.value)
		}
	}
}

func TestDefaultsAreMaveras(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		for tier, limit := range map[string]int{"starter": 60, "basic": 120, "professional": 240, "enterprise": 600} {
			if err := r.SetTier(tier); err != nil {
				t.Fatal(err)
			}
			r.expect(tier, r.Stats().Limit, limit)
		}
		r.expect("chat slots", r.slots[maveChat], 10)
		r.expect("focus group slots", r.slots[focusGroups], 5)
		r.expect("video slots", r.slots[videoAnalyses], 3)
		if r.SetTier("gold") == nil || r.SetLimit(0) == nil {
			t.Error("an unknown tier or a limit of 0 is no error")
		}
	})
}

func TestAPIAnswersAlsoBelowItsPrefixAnd404Elsewhere(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		for what, status := range map[string]int{
			"GET /personas":               200, // r.url has the prefix
			"POST /generations":           200,
			"POST /focus-groups":          200,
			"GET /nothing":                404,
			"POST /personas":              404,
			"GET /video-analyses":         404,
			"GET /video-analyses/":        404,
			"GET /video-analyses/{id}":    404,
			"GET /video-analyses/a/b":     404,
			"DELETE /video-analyses/va_1": 404,
		} {
			r.expect(what, r.do(what, "").status, status)
		}
		r.url = strings.TrimSuffix(r.url, "/api/v1")
		r.expect("without prefix", r.get().status, 200)
		s := r.Stats()
		r.expect("requests", s.Requests, int64(11))
		r.expect("accepted: a 404 takes budget", s.Accepted, int64(11))
		r.expect("not found", s.NotFound, int64(6))
	})
}

func TestErrorsAreTheDocumentedJSON(t *testing.T) {
	inBubble(t, Config{Limit: 1, NoLatency: true}, func(t *testing.T, r *rig) {
		noKey := r.doCtx(context.Background(), "", GetPersonas, "")
		r.expect("status without a key", noKey.status, 401)
		r.expect("budget header without a key", noKey.header.Get("X-RateLimit-Limit"), "")
		r.mustGet(200)
		over := r.mustGet(429)
		want := `{"error":{"code":"rate_limit_exceeded","message":"Rate limit exceeded. Please slow down.","param":null,"type":"rate_limit_error"}}`
		r.expect("body", over.raw, want)
		r.expect("content type", over.header.Get("Content-Type"), "application/json")
		s := r.Stats()
		r.expect("unauthorized", s.Unauthorized, int64(1))
		r.expect("requests", s.Requests, int64(3))
		r.expect("keys", s.Keys, 1)
	})
}

func TestInvalidBodyIs400(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *rig) {
		r.expect("not JSON", r.do(PostResponses, "{").status, 400)
		r.expect("wrong type", r.do(PostResponses, `{"stream":"yes"}`).status, 400)
		r.expect("too large", r.do(PostResponses, `"`+strings.Repeat("x", maxBody)+`"`).status, 400)
		r.expect("empty", r.do(PostResponses, "").status, 200)
	})
}

func TestEachKeyHasItsOwnBudgetAndSlots(t *testing.T) {
	cfg := Config{Limit: 2, NoLatency: true, Slots: map[string]int{PostVideoAnalyses: 1}}
	inBubble(t, cfg, func(t *testing.T, r *rig) {
		for _, key := range []string{"mvra_a", "mvra_b"} {
			got := r.doCtx(context.Background(), key, PostVideoAnalyses, "{}")
			r.expect("job of "+key, got.status, 200)
			r.expect("remaining of "+key, got.int("X-RateLimit-Remaining"), 1)
		}
		id := r.doCtx(context.Background(), "mvra_c", PostVideoAnalyses, "{}").body["id"].(string)
		r.expect("job of another key", r.doCtx(context.Background(), "mvra_a", "GET /video-analyses/"+id, "").status, 404)
		s := r.Stats()
		r.expect("keys", s.Keys, 3)
		r.expect("remaining of the poorest", s.Remaining, 0)
		r.expect("jobs of all keys", s.InFlight[PostVideoAnalyses], 3)
		r.expect("most of one key", s.MaxInFlight[PostVideoAnalyses], 1)
	})
}

func TestIdleKeysAreForgottenButTheirPeaksAreNot(t *testing.T) {
	inBubble(t, Config{Limit: 5, NoLatency: true}, func(t *testing.T, r *rig) {
		r.mustGet(200)
		for range 5 {
			r.doCtx(context.Background(), "mvra_busy", GetPersonas, "")
		}
		time.Sleep(2 * time.Minute)
		for i := range 2 * manyAccounts {
			r.doCtx(context.Background(), "mvra_"+strconv.Itoa(i), GetPersonas, "")
			if i%100 == 0 {
				time.Sleep(time.Minute)
			}
		}
		s := r.Stats()
		if s.Keys > manyAccounts {
			t.Errorf("%d keys are remembered", s.Keys)
		}
		r.expect("most in a window", s.MaxInWindow, 5)
		r.expect("all were served", s.Accepted, s.Requests)
	})
}
