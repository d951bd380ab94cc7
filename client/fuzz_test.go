package client

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// Values that servers send, and some that none should.
var headerValues = []string{
	"", "0", "1", "-1", "60", "1.5", ".", "1.2.3", "+7", "1e9", "0x1f", "NaN", "inf",
	"99999999999999999999", "315360000", "1927627242", "1927627242500", "1927627242500000000",
	"100, 100;w=60", "limit=100, remaining=50, reset=5",
	`"default";q=100;w=60`, `"default";r=50;t=30`, `"a";r=1;t=1, "b";r=0;t=999999999999999`,
	`"bytes";q=1000;w=60;qu="content-bytes"`, `("a" "b");r=5`, `"unterminated`, "default;r;t=?1", ";;;,,,",
	"6m0s", "120ms", "-5s", "999999999999h", "1h-2m",
	"2031-01-31T12:00:01Z", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00+23:59",
	"Fri, 31 Jan 2031 12:01:30 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "soon", "\x00\xff",
}

func FuzzParseFeedback(f *testing.F) {
	for i, v := range headerValues {
		next := headerValues[(i+1)%len(headerValues)]
		f.Add(v, v, v, next, serverDate)
		f.Add(next, "10", "60", v, v)
	}
	f.Fuzz(func(t *testing.T, limit, remaining, reset, retry, date string) {
		all := http.Header{}
		for _, d := range []struct {
			dialect Dialect
			names   [3]string
		}{
			{XRateLimit, [3]string{"X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset"}},
			{RateLimit, [3]string{"Ratelimit-Policy", "Ratelimit", "Ratelimit-Reset"}},
			{RateLimit, [3]string{"Ratelimit-Limit", "Ratelimit-Remaining", "Ratelimit-Reset"}},
			{OpenAI, [3]string{"X-Ratelimit-Limit-Requests", "X-Ratelimit-Remaining-Requests", "X-Ratelimit-Reset-Requests"}},
			{Anthropic, [3]string{"Anthropic-Ratelimit-Requests-Limit", "Anthropic-Ratelimit-Requests-Remaining", "Anthropic-Ratelimit-Requests-Reset"}},
		} {
			h := http.Header{"Date": {date}, "Retry-After": {retry}}
			for i, v := range []string{limit, remaining, reset} {
				h.Set(d.names[i], v)
				all.Set(d.names[i], v)
			}
			for _, window := range []time.Duration{0, time.Minute} {
				mustBeSane(t, ParseFeedback(&http.Response{StatusCode: 200, Header: h}, window, d.dialect))
			}
		}
		all.Set("Date", date)
		all.Set("Retry-After-Ms", retry)
		mustBeSane(t, ParseFeedback(&http.Response{StatusCode: 429, Header: all}, time.Minute, RateLimit, Anthropic, OpenAI, XRateLimit))
	})
}

func mustBeSane(t *testing.T, f coordinator.Feedback) {
	t.Helper()
	within := func(d, most time.Duration) bool { return d == -1 || d >= 0 && d <= most }
	switch {
	case f.Limit != -1 && (f.Limit < 1 || f.Limit > maxCount):
		t.Errorf("Limit = %d", f.Limit)
	case f.Remaining < -1 || f.Remaining > maxCount:
		t.Errorf("Remaining = %d", f.Remaining)
	case f.Limit > 0 && f.Remaining > f.Limit:
		t.Errorf("Remaining = %d of %d", f.Remaining, f.Limit)
	case !within(f.Reset, maxReset):
		t.Errorf("Reset = %v", f.Reset)
	case !within(f.RetryAfter, maxRetryAfter):
		t.Errorf("RetryAfter = %v", f.RetryAfter)
	}
}

func FuzzParseReset(f *testing.F) {
	for _, v := range headerValues {
		f.Add(v, int64(1927627200))
	}
	f.Fuzz(func(t *testing.T, value string, date int64) {
		if d := parseReset(value, time.Unix(date, 0)); d < -1 {
			t.Errorf("parseReset(%q) = %v", value, d)
		}
		if d := parseDuration(value); d < -1 {
			t.Errorf("parseDuration(%q) = %v", value, d)
		}
		if n := parseCount(value); n < -1 || n > maxCount {
			t.Errorf("parseCount(%q) = %d", value, n)
		}
	})
}

func FuzzJobFind(f *testing.F) {
	for _, text := range []string{
		`{"id":"va_1","status":"pending"}`, `{"status":"completed","id":7}`, `[]`, `null`, `{"id":`, `{"id":{}}`,
		`{"id":"va_1","status":null,"x":[{"id":"no"}]}`, `{"id":"va_1","result":{"huge":"trunca`, "",
	} {
		f.Add(text, false)
		f.Add(text, true)
	}
	job := Job{}.withDefaults()
	f.Fuzz(func(t *testing.T, text string, zipped bool) {
		h := http.Header{}
		if zipped {
			h.Set("Content-Encoding", "gzip")
		}
		id, _ := job.find(h, []byte(text))
		if validJobID(id) && len(id) > maxJobID {
			t.Errorf("an id of %d bytes is valid", len(id))
		}
	})
}

// Patterns that collide are told in an error, and a request of any method and path is of
// one of the others, or of none.
func FuzzRoutes(f *testing.F) {
	patterns := []string{
		"POST /chat", "/chat", "POST /chat/", "POST /{x}", "POST /{y}", "GET /jobs/{id}", "GET /jobs/{id...}", "GET /jobs/{id}/{$}",
		"POST example.com/chat", "POST  /chat", "post /chat", "/{", "/{}", "/{a}{b}", "/a/../b", "/%2f", "/é", "", " ", "POST", "POST /\x00", "/{id}/x", "/x/{id}",
	}
	for i, p := range patterns {
		f.Add(p, patterns[(i+1)%len(patterns)], patterns[(i+2)%len(patterns)], "POST", "/v1/chat")
	}
	for _, path := range []string{"/v1", "/v1/", "/v1x/chat", "//chat", "/v1/chat///", "/v1/jobs/%2F", "/v1/jobs/..", "*", "", "/v1/jobs/\x00", "/v1/é"} {
		f.Add("POST /chat", "POST /{x}", "GET /jobs/{id}", "GET", path)
	}
	f.Fuzz(func(t *testing.T, a, b, poll, method, path string) {
		endpoints := []coordinator.Endpoint{{Pattern: a, Slots: 1}, {Pattern: b, Slots: 1, JobTTL: time.Minute}}
		rs, err := newRoutes(Profile{BasePath: "/v1", Jobs: []Job{{Start: b, Poll: poll}}}, endpoints)
		var bad *coordinator.ConfigError
		if err != nil {
			if !errors.As(err, &bad) || bad.Field == "" {
				t.Errorf("error %v, want a ConfigError that names the field", err)
			}
			return
		}
		req := &http.Request{Method: method, URL: &url.URL{Path: path}}
		if escaped, err := url.Parse(path); err == nil {
			req.URL = escaped
		}
		before := *req.URL
		r := rs.match(req)
		if r.endpoint != "" && r.endpoint != a && r.endpoint != b {
			t.Errorf("%s %q is of endpoint %q", method, path, r.endpoint)
		}
		if r.start != nil && r.endpoint != b || r.job != "" && r.poll == nil {
			t.Errorf("%s %q is %+v", method, path, r)
		}
		if *req.URL != before || req.Method != method {
			t.Error("the request was changed")
		}
	})
}

// Whatever an API says of a job, what is kept of it in Redis is bounded, and the caller
// gets the body as it came.
func FuzzJobAnswers(f *testing.F) {
	for _, text := range []string{
		`{"id":"va_1","status":"pending"}`, `{"id":"va_1","status":"completed"}`, `{"id":7}`, `{"id":{}}`, `{"id":`, `[]`, "", "\xff",
		`{"id":"a b"}`, `{"id":"}:{x"}`, `{"id":"` + strings.Repeat("x", 200) + `"}`, `{"status":"completed","status":"pending","id":"1"}`,
	} {
		f.Add(text, "va_1", 200, false)
		f.Add(text, "%2e%2e", 404, true)
	}
	f.Fuzz(func(t *testing.T, text, id string, status int, zipped bool) {
		for _, ask := range [][2]string{{"POST", "/v1/jobs"}, {"GET", "/v1/jobs/" + url.PathEscape(id)}} {
			resp := withBody(response(status), text)
			if zipped {
				resp.Header.Set("Content-Encoding", "gzip")
			}
			fleet := &fakeFleet{policy: testPolicy}
			tr, err := newTransport(fleet, testProfile, Options{Base: answers(resp), MaxRetries: -1})
			if err != nil {
				t.Fatal(err)
			}
			got, err := tr.RoundTrip(newRequest(t, t.Context(), ask[0], ask[1], ""))
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(got.Body); err != nil || string(body) != text {
				t.Errorf("read %q %v, want the answer as it came", body, err)
			}
			got.Body.Close()
			ended := 0
			for _, event := range fleet.events() {
				what, job, _ := strings.Cut(strings.TrimPrefix(event, "1: "), " ")
				switch what {
				case "release", "keep":
					ended++
				case "bind":
					ended++
					fallthrough
				case "seen", "done":
					if job = job[strings.LastIndexByte(job, ' ')+1:]; !validJobID(job) {
						t.Errorf("%q is written down", event)
					}
				}
			}
			if ended != 1 {
				t.Errorf("the permit ended %d times: %q", ended, fleet.events())
			}
		}
	})
}
