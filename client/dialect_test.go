package client

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fleetlimit/fleetlimit/coordinator"
)

// A response of a server whose clock is nowhere near the one of this machine.
const serverDate = "Fri, 31 Jan 2031 12:00:00 GMT"

// Unix time of serverDate: 1927627200.

// response has the given "Name: value" lines as its header.
func response(status int, lines ...string) *http.Response {
	h := http.Header{}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		h.Add(name, value)
	}
	return &http.Response{StatusCode: status, Header: h, Body: http.NoBody}
}

func TestParseFeedback(t *testing.T) {
	all := []Dialect{XRateLimit, RateLimit, OpenAI, Anthropic}
	said := func(limit, remaining int, reset, retryAfter time.Duration) coordinator.Feedback {
		return coordinator.Feedback{Status: 200, Limit: limit, Remaining: remaining, Reset: reset, RetryAfter: retryAfter}
	}
	const s = time.Second
	tests := []struct {
		name  string
		lines []string
		want  coordinator.Feedback
	}{
		{"nothing", nil, said(-1, -1, -1, -1)},

		{"x-ratelimit, Unix seconds", []string{"X-RateLimit-Limit: 240", "X-RateLimit-Remaining: 17", "X-RateLimit-Reset: 1927627242"}, said(240, 17, 42*s, -1)},
		{"x-ratelimit, Unix milliseconds", []string{"X-RateLimit-Limit: 240", "X-RateLimit-Remaining: 17", "X-RateLimit-Reset: 1927627242500"}, said(240, 17, 42500*time.Millisecond, -1)},
		{"x-ratelimit, delta seconds", []string{"X-RateLimit-Limit: 240", "X-RateLimit-Remaining: 0", "X-RateLimit-Reset: 42"}, said(240, 0, 42*s, -1)},
		{"x-ratelimit, delta with a fraction", []string{"X-RateLimit-Reset: 0.25"}, said(-1, -1, 250*time.Millisecond, -1)},
		{"x-ratelimit, a reset that just went by", []string{"X-RateLimit-Reset: 1927627199"}, said(-1, -1, 0, -1)},
		{"x-ratelimit, a reset of last year", []string{"X-RateLimit-Limit: 240", "X-RateLimit-Reset: 1896091200"}, said(240, -1, -1, -1)},
		{"x-ratelimit, a reset in ten years", []string{"X-RateLimit-Limit: 240", "X-RateLimit-Remaining: 3", "X-RateLimit-Reset: 2242987200"}, said(240, 3, 24*time.Hour, -1)},
		{"x-ratelimit, ten years of delta", []string{"X-RateLimit-Reset: 315360000"}, said(-1, -1, 24*time.Hour, -1)},
		{"x-ratelimit, limit 0", []string{"X-RateLimit-Limit: 0", "X-RateLimit-Remaining: 0"}, said(-1, 0, -1, -1)},
		{"x-ratelimit, negative", []string{"X-RateLimit-Limit: -5", "X-RateLimit-Remaining: -1", "X-RateLimit-Reset: -3"}, said(-1, -1, -1, -1)},
		{"x-ratelimit, text", []string{"X-RateLimit-Limit: many", "X-RateLimit-Remaining: NaN", "X-RateLimit-Reset: soon"}, said(-1, -1, -1, -1)},
		{"x-ratelimit, overflow", []string{"X-RateLimit-Limit: 99999999999999999999", "X-RateLimit-Remaining: 2000000000", "X-RateLimit-Reset: 99999999999999999999"}, said(-1, -1, -1, -1)},
		{"x-ratelimit, signs and exponents", []string{"X-RateLimit-Limit: +5", "X-RateLimit-Remaining: 1e3", "X-RateLimit-Reset: 0x10"}, said(-1, -1, -1, -1)},
		{"x-ratelimit, more remaining than the limit", []string{"X-RateLimit-Limit: 5", "X-RateLimit-Remaining: 6"}, said(5, -1, -1, -1)},

		{"draft", []string{`RateLimit-Policy: "default";q=100;w=60`, `RateLimit: "default";r=50;t=30`}, said(100, 50, 30*s, -1)},
		{"draft, names as tokens", []string{`RateLimit-Policy: default;q=100;w=60`, `RateLimit: default;r=50;t=30`}, said(100, 50, 30*s, -1)},
		{"draft, the policy of the wanted window", []string{`RateLimit-Policy: "second";q=10;w=1, "minute";q=100;w=60, "day";q=5000;w=86400`, `RateLimit: "second";r=1;t=1, "minute";r=50;t=30, "day";r=9;t=40000`}, said(100, 50, 30*s, -1)},
		{"draft, two of the wanted window", []string{`RateLimit-Policy: "a";q=100;w=60, "b";q=20;w=60`, `RateLimit: "a";r=50;t=30, "b";r=2;t=20`}, said(20, 2, 20*s, -1)},
		{"draft, a window not given", []string{`RateLimit-Policy: "second";q=10;w=1, "a";q=100`, `RateLimit: "second";r=1;t=1, "a";r=50;t=30`}, said(100, 50, 30*s, -1)},
		{"draft, other windows only", []string{`RateLimit-Policy: "hour";q=10;w=3600`, `RateLimit: "hour";r=1;t=1000`}, said(-1, -1, -1, -1)},
		{"draft, another window exhausted", []string{`RateLimit-Policy: "hour";q=10;w=3600`, `RateLimit: "hour";r=0;t=1000`}, said(-1, -1, 1000*s, -1)},
		{"draft, bytes do not count", []string{`RateLimit-Policy: "bytes";q=1000;w=60;qu="content-bytes", "n";q=100;w=60;qu="requests"`, `RateLimit: "bytes";r=3;t=9, "n";r=50;t=30`}, said(100, 50, 30*s, -1)},
		{"draft, in several lines", []string{`RateLimit: "a";r=50;t=30`, `RateLimit: "b";r=0;t=10`}, said(-1, 0, 10*s, -1)},
		{"draft, policy alone", []string{`RateLimit-Policy: "default";q=100;w=60`}, said(100, -1, -1, -1)},
		{"draft, t of ten years", []string{`RateLimit: "default";r=50;t=315360000`}, said(-1, 50, 24*time.Hour, -1)},
		{"draft, negative", []string{`RateLimit-Policy: "default";q=-100;w=60`, `RateLimit: "default";r=-50;t=-30`}, said(-1, -1, -1, -1)},
		{"draft, wrong types", []string{`RateLimit-Policy: "default";q="100";w=60`, `RateLimit: "default";r=5.5;t=?1`}, said(-1, -1, -1, -1)},
		{"draft, broken", []string{`RateLimit: "default;r=50;t=30`}, said(-1, -1, -1, -1)},
		{"draft, inner lists", []string{`RateLimit: ("a" "b");r=50`}, said(-1, -1, -1, -1)},
		{"draft 07", []string{"RateLimit-Policy: 100;w=60", "RateLimit: limit=100, remaining=50, reset=5"}, said(100, 50, 5*s, -1)},
		{"draft 03", []string{"RateLimit-Limit: 100, 100;w=60", "RateLimit-Remaining: 50", "RateLimit-Reset: 5"}, said(100, 50, 5*s, -1)},
		{"draft 03 with a Unix time", []string{"RateLimit-Limit: 100", "RateLimit-Remaining: 50", "RateLimit-Reset: 1927627242"}, said(100, 50, 42*s, -1)},

		{"openai", []string{"x-ratelimit-limit-requests: 500", "x-ratelimit-remaining-requests: 499", "x-ratelimit-reset-requests: 120ms"}, said(500, 499, 120*time.Millisecond, -1)},
		{"openai, seconds", []string{"x-ratelimit-limit-requests: 60", "x-ratelimit-remaining-requests: 59", "x-ratelimit-reset-requests: 1s"}, said(60, 59, s, -1)},
		{"openai, tokens do not count", []string{"x-ratelimit-limit-tokens: 150000", "x-ratelimit-remaining-tokens: 149984", "x-ratelimit-reset-tokens: 6m0s"}, said(-1, -1, -1, -1)},
		{"openai, a daily limit", []string{"x-ratelimit-limit-requests: 10000", "x-ratelimit-remaining-requests: 9958", "x-ratelimit-reset-requests: 6m0s"}, said(-1, -1, 6*time.Minute, -1)},
		{"openai, nonsense", []string{"x-ratelimit-limit-requests: 500", "x-ratelimit-remaining-requests: 1", "x-ratelimit-reset-requests: -5s"}, said(500, 1, -1, -1)},
		{"openai, overflow", []string{"x-ratelimit-reset-requests: 999999999999h"}, said(-1, -1, -1, -1)},

		{"anthropic", []string{"anthropic-ratelimit-requests-limit: 50", "anthropic-ratelimit-requests-remaining: 49", "anthropic-ratelimit-requests-reset: 2031-01-31T12:00:01Z"}, said(50, 49, s, -1)},
		{"anthropic, another time zone", []string{"anthropic-ratelimit-requests-reset: 2031-01-31T14:00:30+02:00"}, said(-1, -1, 30*s, -1)},
		{"anthropic, nonsense", []string{"anthropic-ratelimit-requests-limit: 50", "anthropic-ratelimit-requests-reset: tomorrow"}, said(50, -1, -1, -1)},
		{"anthropic, ten years", []string{"anthropic-ratelimit-requests-reset: 2041-01-31T12:00:01Z"}, said(-1, -1, 24*time.Hour, -1)},

		{"the first dialect that finds anything", []string{"RateLimit-Remaining: 3", "X-RateLimit-Limit: 240"}, said(240, -1, -1, -1)},

		{"Retry-After in seconds", []string{"Retry-After: 12"}, said(-1, -1, -1, 12*s)},
		{"Retry-After 0", []string{"Retry-After: 0"}, said(-1, -1, -1, 0)},
		{"Retry-After with a fraction", []string{"Retry-After: 1.5"}, said(-1, -1, -1, 1500*time.Millisecond)},
		{"Retry-After as a date", []string{"Retry-After: Fri, 31 Jan 2031 12:01:30 GMT"}, said(-1, -1, -1, 90*s)},
		{"Retry-After as a date of RFC 850", []string{"Retry-After: Friday, 31-Jan-31 12:01:30 GMT"}, said(-1, -1, -1, 90*s)},
		{"Retry-After as a date in the past", []string{"Retry-After: Fri, 31 Jan 2031 11:00:00 GMT"}, said(-1, -1, -1, 0)},
		{"Retry-After of ten years", []string{"Retry-After: 315360000"}, said(-1, -1, -1, 5*time.Minute)},
		{"Retry-After at a date in ten years", []string{"Retry-After: Thu, 31 Jan 2041 12:00:00 GMT"}, said(-1, -1, -1, 5*time.Minute)},
		{"Retry-After beyond all numbers", []string{"Retry-After: 9999999999999999999999999999999999999999"}, said(-1, -1, -1, 5*time.Minute)},
		{"Retry-After negative", []string{"Retry-After: -1"}, said(-1, -1, -1, -1)},
		{"Retry-After as text", []string{"Retry-After: a while"}, said(-1, -1, -1, -1)},
		{"Retry-After infinite", []string{"Retry-After: inf"}, said(-1, -1, -1, -1)},
		{"retry-after-ms goes first", []string{"Retry-After: 12", "retry-after-ms: 11500"}, said(-1, -1, -1, 11500*time.Millisecond)},
		{"retry-after-ms is nonsense", []string{"Retry-After: 12", "retry-after-ms: -1"}, said(-1, -1, -1, 12*s)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			resp := response(200, append(tt.lines, "Date: "+serverDate)...)
			if diff := cmp.Diff(tt.want, ParseFeedback(resp, time.Minute, all...)); diff != "" {
				t.Errorf("feedback (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseFeedbackWithoutAWindowTakesTheLeast(t *testing.T) {
	resp := response(200, `RateLimit-Policy: "hour";q=100;w=3600, "day";q=5000;w=86400`, `RateLimit: "hour";r=90;t=30, "day";r=9;t=400`)
	f := ParseFeedback(resp, 0, RateLimit)
	if f.Limit != 5000 || f.Remaining != 9 || f.Reset != 400*time.Second {
		t.Errorf("feedback = %+v, want that of the day", f)
	}
}

func TestParseFeedbackWithoutDateUsesTheLocalClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the local clock shows 2000-01-01 00:00:00 UTC
		for name, lines := range map[string][]string{
			"no Date":     {"Retry-After: Sat, 01 Jan 2000 00:00:07 GMT"},
			"broken Date": {"Retry-After: Sat, 01 Jan 2000 00:00:07 GMT", "Date: yesterday"},
		} {
			if f := ParseFeedback(response(429, lines...), time.Minute); f.RetryAfter != 7*time.Second {
				t.Errorf("%s: RetryAfter = %v, want 7s", name, f.RetryAfter)
			}
		}
	})
}
